"""Tabulates the runs: GLUE scores after the last and the best epoch, and realised sparsity."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.files import write_text
    from finegates.suite.runs.record import read_records
    from finegates.suite.tables import (
        detectable_table,
        glue_table,
        read_references,
        runs_table,
        sparsity_table,
        to_csv,
        write_table,
    )
    from finegates.suite.tables.wording import reworded

    records = reworded(read_records(job.input.records), job.params.words)
    methods, tasks, seeds = (job.params.study[key] for key in ("methods", "tasks", "seeds"))
    references = read_references(job.input.bag_of_words)
    study = {"seeds": seeds, "references": references}
    write_table(glue_table(records, methods, tasks, **study), *job.output[:3])
    write_table(glue_table(records, methods, tasks, epoch="best", **study), *job.output.best)
    write_table(sparsity_table(records, methods, tasks, seeds=seeds), *job.output.sparsity)
    write_table(detectable_table(records, methods, tasks), *job.output.detectable)
    write_text(job.output.runs, to_csv(runs_table(records, methods, tasks)))
