"""Reproduces and audits the paper with the library, which never imports the suite."""
