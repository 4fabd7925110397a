"""Draws a Llama's scores as a classifier against realised sparsity."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.suite.figures import draw_tradeoff, save_figure, tradeoff_frame
    from finegates.suite.runs.record import read_records
    from finegates.suite.tables import figure_footer
    from finegates.suite.tables.wording import reworded

    records = reworded(read_records(job.input.records), job.params.words)
    methods, tasks = job.params.methods, job.params.tasks
    footer = figure_footer(
        "Score after the last epoch against realised sparsity of the gated weights.",
        records,
        methods,
        tasks,
    )
    save_figure(draw_tradeoff(tradeoff_frame(records, methods, tasks), footer), *job.output)
