"""Joins the measurements of all shapes, and tabulates their times.

The tables are of inference times and of compaction's own cost.
"""

import json
from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    import pandas as pd

    from finegates.files import write_text
    from finegates.suite.tables.inference import (
        backend_table,
        inference_table,
        joined_machine,
        machine_notes,
        parts_table,
        scattered_table,
    )

    machine = joined_machine(
        [json.loads(Path(path).read_text(encoding="utf-8")) for path in job.input.machines]
    )
    frame = pd.concat([pd.read_csv(path) for path in job.input.csvs], ignore_index=True)
    makers = (inference_table, parts_table, scattered_table, backend_table)
    tables = [make(frame, job.params.repeats, machine) for make in makers]
    tables = [table for table in tables if table.cells]
    notes = machine_notes(machine)
    write_text(job.output.csv, frame.to_csv(index=False, float_format="%.5f"))
    write_text(job.output.machine, json.dumps(machine, indent=2) + "\n")
    write_text(job.output.md, "\n".join([*(table.markdown() for table in tables), *notes]))
    write_text(job.output.tex, "\n".join(table.latex() for table in tables))
