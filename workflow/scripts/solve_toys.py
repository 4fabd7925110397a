"""Checks an item of the theory on random problems, and writes the tables behind its figures."""

import json
from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.files import write_text
    from finegates.suite.tables import to_csv
    from theory.checks.settings import Settings
    from theory.study import ITEM_CHECKS, figure_frames, run_checks
    from theory.tables import case_frame

    checks = run_checks(Settings(**job.params.settings), ITEM_CHECKS[job.params.item])
    frames = figure_frames(checks)
    for path in job.output.tables:
        write_text(path, to_csv(frames[Path(path).stem]))
    write_text(job.output.cases, to_csv(case_frame(checks)))
    records = [check.record() for check in checks]
    write_text(job.output.checks, json.dumps(records, indent=1, ensure_ascii=False) + "\n")
