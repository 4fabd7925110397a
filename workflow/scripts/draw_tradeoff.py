"""Draws score against realised sparsity and MACs, from a table that it also writes."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.files import write_text
    from finegates.suite.figures import draw_tradeoff, save_figure, tradeoff_frame
    from finegates.suite.runs.record import read_records
    from finegates.suite.tables import figure_footer, read_references, to_csv
    from finegates.suite.tables.wording import reworded

    records = reworded(read_records(job.input.records), job.params.words)
    methods, tasks = job.params.study["methods"], job.params.study["tasks"]
    frame = tradeoff_frame(records, methods, tasks, read_references(job.input.bag_of_words))
    write_text(job.output.csv, to_csv(frame))
    for against, paths, lead in (
        (
            "realised_sparsity",
            job.output.sparsity,
            "Score after the last epoch against realised sparsity of the gated weights.",
        ),
        (
            "macs_removed",
            job.output.macs,
            "Score after the last epoch against the encoder's multiply-accumulates that compaction "
            "removes.",
        ),
    ):
        footer = figure_footer(lead, records, methods, tasks)
        save_figure(draw_tradeoff(frame, footer, against), *paths)
