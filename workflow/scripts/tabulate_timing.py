"""Makes the table of inference times from the measurements."""

import json
from pathlib import Path

from finegates.job import job_log

job = snakemake
with job_log(job.log[0]):
    import pandas as pd

    from finegates.inference import inference_table
    from finegates.record import write_text

    machine = json.loads(Path(job.input.machine).read_text(encoding="utf-8"))
    table = inference_table(pd.read_csv(job.input.csv), job.params.repeats, machine)
    write_text(job.output.md, table.markdown())
    write_text(job.output.tex, table.latex())
