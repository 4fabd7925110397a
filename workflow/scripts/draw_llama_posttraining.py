"""Draws held-out perplexity against realised sparsity from its table."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    import pandas as pd

    from finegates.suite.figures import save_figure
    from finegates.suite.figures.llama import draw_posttraining
    from finegates.suite.runs.llama_record import read_causal_records
    from finegates.suite.tables.llama_captions import causal_caption
    from finegates.suite.tables.wording import text_reworded

    footer = causal_caption(
        "Held-out perplexity against the fraction of gated weights in closed rows or columns. "
        "Gates are trained, nothing else; one-shot pruning closes as many rows and columns of each "
        "layer as the gated run that it is named after.",
        text_reworded(read_causal_records(job.input.records), job.params.words),
    )
    save_figure(draw_posttraining(pd.read_csv(job.input.csv), footer), *job.output)
