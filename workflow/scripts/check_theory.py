"""Gathers the checks of the theory, with the verdicts on the paper's claims that follow."""

import json
from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    import pandas as pd

    from finegates.files import write_text
    from finegates.suite.tables import to_csv
    from theory.checks.encoder import network_checks
    from theory.tables import (
        case_frame,
        check_markdown,
        check_table,
        closing_markdown,
        comparison_markdown,
        flat_markdown,
        level_markdown,
        share_markdown,
    )
    from theory.verdicts import judge_claims, verdict_markdown

    closing = pd.read_csv(job.input.closing)
    network = network_checks(pd.read_csv(job.input.points), closing)
    read = (json.loads(Path(path).read_text(encoding="utf-8")) for path in job.input.toys)
    records = [record for part in read for record in part]
    records += [check.record() for check in network]
    settings = job.params.settings
    setting = (
        f"Tier {job.params.tier}: {settings['problems']} random problems of each of five families "
        f"for a law, {settings['trials']} for the comparison of gates with LoRA; the network is "
        f"{job.params.model} on {job.params.task}. Predicted and measured are those of the case "
        "nearest to breaking its statement; tightness is the median over those that test the "
        "same constant, 1 where it is attained. Notices: the smallest factor on a constant at "
        "which the verdict changes; cases built to attain the constant give it and are not counted."
    )
    csv, md = job.output[:2]
    write_text(csv, to_csv(check_table(records)))
    compared = comparison_markdown(*(pd.read_csv(path) for path in job.input.compared))
    shares = share_markdown(*(pd.read_csv(path) for path in job.input.shares))
    judged = judge_claims(records)
    write_text(job.output.verdicts, to_csv(judged))
    parts = [check_markdown(records, setting), verdict_markdown(judged)]
    parts += [level_markdown(records), shares, compared]
    write_text(md, "\n".join([*parts, closing_markdown(closing)]))
    write_text(job.output.flat, flat_markdown(pd.read_csv(job.input.models)))
    found = {"setting": setting, "checks": records, "claims": judged.to_dict("records")}
    write_text(job.output.json, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    cases = [pd.read_csv(path, keep_default_na=False) for path in job.input.cases]
    cases.append(case_frame(network))
    write_text(job.output.cases, to_csv(pd.concat(cases)))
