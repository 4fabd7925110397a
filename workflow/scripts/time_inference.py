"""Times dense, gated and compact models of the tier's shapes, interleaved, and their compaction."""

import json

from finegates.job import running

job = snakemake
with running(job):
    from dataclasses import asdict

    import pandas as pd

    from finegates.config import configured_tier
    from finegates.files import write_text
    from finegates.inference import measure_compaction, measure_prices, time_inference
    from finegates.record import hardware

    tier = configured_tier(job.config)
    shapes = tier.inference_benchmarks
    # First: what a large model left behind would count as memory that was there before.
    compaction = {
        shape.name: measure_compaction(shape, job.threads) for shape in shapes if shape.compaction
    }
    prices = measure_prices(job.threads)
    frames = [time_inference(shape, job.threads, prices) for shape in shapes]
    table = pd.concat(frames, ignore_index=True)
    write_text(job.output.csv, table.to_csv(index=False, float_format="%.5f"))
    calibration = {"seconds": prices.seconds, **asdict(prices.fast)}
    machine = {**hardware(job.threads), "compaction": compaction, "calibration": calibration}
    write_text(job.output.machine, json.dumps(machine, indent=2) + "\n")
