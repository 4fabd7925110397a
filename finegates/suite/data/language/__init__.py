"""A small synthetic language: a corpus and eight GLUE-like tasks.

With it, every step of the workflow runs on a fresh machine without downloads. Numbers measured on
it do not transfer to English.
"""

from finegates.suite.data.language.corpus import CONNECTIVES, SEPARATOR, generate_corpus
from finegates.suite.data.language.tasks import generate_task

__all__ = ["CONNECTIVES", "SEPARATOR", "generate_corpus", "generate_task"]
