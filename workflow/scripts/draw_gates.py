"""Draws each gated method's gates over training, from the table that it writes with them."""

from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    import pandas as pd

    from finegates.files import write_text
    from finegates.suite.figures import draw_gate_histograms, gate_histogram_frame, save_figure
    from finegates.suite.runs.record import read_records
    from finegates.suite.tables import figure_footer, to_csv
    from finegates.suite.tables.wording import reworded

    records = reworded(read_records(job.input.records), job.params.words)
    methods, tasks = job.params.study["methods"], job.params.study["tasks"]
    frames = {
        label: gate_histogram_frame(records, label, methods, tasks) for label in job.params.gated
    }
    write_text(job.output.csv, to_csv(pd.concat(frames.values())))
    for label, frame in frames.items():
        title = frame["title"].iloc[0]
        lead = f"{title}: evaluation gates of all gated layers, by epoch."
        figure = draw_gate_histograms(frame, figure_footer(lead, records, methods, tasks))
        paths = [p for p in map(Path, job.output) if p.stem == label and p.suffix != ".csv"]
        save_figure(figure, *paths)
