"""Times the deployed models of timed studies, interleaved with the dense model."""

from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    import torch

    from finegates.compaction import calibrate
    from finegates.seeds import derive_seed
    from finegates.suite.config.load import configured_tier
    from finegates.suite.models.sources import load_classifier
    from finegates.suite.runs.machine import hardware
    from finegates.suite.runs.record import read_record
    from finegates.suite.tables import write_table
    from finegates.suite.tables.deployed import times_table
    from finegates.suite.timing.control import load_average
    from finegates.suite.timing.deployed import DENSE, deployed, time_deployed

    tier = configured_tier(job.config)
    task, seed = job.params.task, job.params.seed
    torch.set_num_threads(job.threads)
    records = {Path(path).parent.name: path for path in job.input.matched}
    kept = {Path(path).parent.name: path for path in job.input.trained}
    cost = calibrate(onednn=False)  # all multiply by the same product
    dense = load_classifier(tier, task, derive_seed(task, seed, "init"), "pretrained")
    models = {DENSE: dense.eval()}
    for label in tier.studies.timed:
        matched = tier.all_methods[label].matched
        record = read_record(records[matched]) if matched else None
        models[label] = deployed(tier, label, task, seed, kept[label], record, cost)
    before = load_average()
    frame = time_deployed(tier, models, task, seed)
    machine = {**hardware(job.threads), "load": [before, load_average()]}
    table = times_table(frame, tier, machine)
    write_table(table, job.output.csv, job.output.md, job.output.tex)
