"""Data sets of the suite: GLUE, plain text, and a generated language."""
