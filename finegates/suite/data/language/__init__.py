"""A small generated language: a pretraining corpus and eight tasks shaped like GLUE, all synthetic.

It exists so that every step of the workflow runs on a fresh machine with no data to fetch. Numbers
measured on it say nothing about English.
"""

from finegates.suite.data.language.corpus import CONNECTIVES, SEPARATOR, generate_corpus
from finegates.suite.data.language.tasks import generate_task

__all__ = ["CONNECTIVES", "SEPARATOR", "generate_corpus", "generate_task"]
