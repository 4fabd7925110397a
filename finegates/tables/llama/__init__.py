"""Tables of the three experiments on Llama: on a task, posttraining, pretraining.

Numbers are means over seeds of what the records hold; a blank stands where a record has nothing.
"""

from finegates.tables.llama.captions import causal_caption
from finegates.tables.llama.on_task import llama_task_table
from finegates.tables.llama.on_text import (
    curve_table,
    posttraining_table,
    pretraining_table,
    tokens_to_reach,
)

__all__ = [
    "causal_caption",
    "curve_table",
    "llama_task_table",
    "posttraining_table",
    "pretraining_table",
    "tokens_to_reach",
]
