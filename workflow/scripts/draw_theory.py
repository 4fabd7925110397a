"""Draws the figures of the theory from their tables."""

from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    import pandas as pd

    from finegates.suite.figures import save_figure
    from theory.figures import draw

    paths = [*job.input.tables, *job.input.network]
    frames = {Path(path).stem: pd.read_csv(path) for path in paths}
    network = f"{job.params.model} on {job.params.task}"
    for name in job.params.figures:
        figure = draw(name, frames, f"Tier {job.params.tier}.", network)
        save_figure(figure, *(path for path in job.output if Path(path).stem == name))
