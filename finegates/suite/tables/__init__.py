"""Tables of run records: all runs, GLUE scores, realised sparsity, cost.

All numbers come from records. A missing run leaves a blank cell. An average over tasks is given
only if all tasks are present. Captions are composed from the records, too.
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
