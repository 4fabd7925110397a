"""Makes the tables of inference times, and of compaction's own cost, from the measurements."""

import json
from pathlib import Path

from finegates.job import running

job = snakemake
with running(job):
    import pandas as pd

    from finegates.files import write_text
    from finegates.tables.inference import (
        backend_table,
        inference_table,
        machine_notes,
        parts_table,
        scattered_table,
    )

    machine = json.loads(Path(job.input.machine).read_text(encoding="utf-8"))
    frame = pd.read_csv(job.input.csv)
    makers = (inference_table, parts_table, scattered_table, backend_table)
    tables = [make(frame, job.params.repeats, machine) for make in makers]
    tables = [table for table in tables if table.cells]
    notes = machine_notes(machine)
    write_text(job.output.md, "\n".join([*(table.markdown() for table in tables), *notes]))
    write_text(job.output.tex, "\n".join(table.latex() for table in tables))
