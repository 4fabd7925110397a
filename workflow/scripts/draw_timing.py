"""Draws time against MACs, both relative to the dense model, from the measurements."""

import json
from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    import pandas as pd

    from finegates.suite.figures import draw_inference, save_figure

    machine = json.loads(Path(job.input.machine).read_text(encoding="utf-8"))
    footer = (
        "Forward passes with random weights of the named shapes and random gates, float32, eager; "
        f"{machine['cpu']}, {machine['threads']} threads."
    )
    save_figure(draw_inference(pd.read_csv(job.input.csv), footer), *job.output)
