"""Times dense, gated and compact models of one of the tier's shapes, and compaction."""

import json

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from dataclasses import asdict

    from finegates.files import write_text
    from finegates.suite.config.load import configured_tier
    from finegates.suite.runs.machine import hardware
    from finegates.suite.timing.control import load_average
    from finegates.suite.timing.inference import measure_compaction, measure_prices, time_inference

    shapes = configured_tier(job.config).inference_benchmarks
    shape = next(shape for shape in shapes if shape.label == job.wildcards.shape)
    # First: what the timed models left behind would count as memory that was there before.
    compaction = {shape.name: measure_compaction(shape, job.threads)} if shape.compaction else {}
    before = load_average()
    prices = measure_prices(job.threads)
    table = time_inference(shape, job.threads, prices)
    write_text(job.output.csv, table.to_csv(index=False, float_format="%.5f"))
    calibration = {"seconds": prices.seconds, **asdict(prices.fast)}
    machine = {
        **hardware(job.threads),
        "compaction": compaction,
        "calibration": calibration,
        "load": [before, load_average()],
    }
    write_text(job.output.machine, json.dumps(machine, indent=2) + "\n")
