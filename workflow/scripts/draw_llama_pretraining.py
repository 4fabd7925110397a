"""Draws loss curves and closed weights of pretraining from their table."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    import pandas as pd

    from finegates.suite.figures import save_figure
    from finegates.suite.figures.llama import draw_pretraining
    from finegates.suite.runs.llama_record import read_causal_records
    from finegates.suite.tables.llama_captions import causal_caption
    from finegates.suite.tables.wording import text_reworded

    footer = causal_caption(
        "Held-out loss in evaluation mode and gated weights in closed rows or columns, against the "
        "tokens seen; same start and same tokens for every method.",
        text_reworded(read_causal_records(job.input.records), job.params.words),
    )
    save_figure(draw_pretraining(pd.read_csv(job.input.curves), footer), *job.output)
