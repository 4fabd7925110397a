"""Data sets of the suite: GLUE, plain text, and a language made here."""
