"""Draws a study from its table."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    import pandas as pd

    from finegates.suite.config.studies import Study
    from finegates.suite.figures import draw_study, save_figure
    from finegates.suite.runs.record import read_records
    from finegates.suite.tables import figure_footer
    from finegates.suite.tables.wording import reworded

    study = Study.model_validate(job.params.study)
    records = reworded(read_records(job.input.records), job.params.words)
    footer = figure_footer(study.question, records, study.methods, job.params.tasks)
    frame = pd.read_csv(job.input.table)
    figure = draw_study(frame, job.params.seeds, vary=study.vary, lines=study.lines, footer=footer)
    save_figure(figure, *job.output)
