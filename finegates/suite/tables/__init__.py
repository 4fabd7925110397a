"""Tables of a study's run records: every run, GLUE scores, realised sparsity.

Numbers come from records alone. A missing run leaves a blank, an average over tasks is given only
where every task is there, and the caption, composed from the records, says what was run on what.
"""

from finegates.suite.tables.captions import figure_footer, metric_title, table_caption, task_title
from finegates.suite.tables.detectable import detectable_table
from finegates.suite.tables.glue import glue_table, read_references, sparsity_table
from finegates.suite.tables.render import BLANK, Column, Table, escape_latex, to_csv, write_table
from finegates.suite.tables.runs import runs_table

__all__ = [
    "BLANK",
    "Column",
    "Table",
    "detectable_table",
    "escape_latex",
    "figure_footer",
    "glue_table",
    "metric_title",
    "read_references",
    "runs_table",
    "sparsity_table",
    "table_caption",
    "task_title",
    "to_csv",
    "write_table",
]
