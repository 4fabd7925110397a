"""Times dense, gated and compact models of the tier's shapes, interleaved."""

import json

from finegates.job import job_log

job = snakemake
with job_log(job.log[0]):
    import pandas as pd

    from finegates.config import configured_tier
    from finegates.inference import time_inference
    from finegates.record import hardware, write_text

    tier = configured_tier(job.config)
    frames = [time_inference(shape, job.threads) for shape in tier.inference_benchmarks]
    table = pd.concat(frames, ignore_index=True)
    write_text(job.output.csv, table.to_csv(index=False, float_format="%.5f"))
    write_text(job.output.machine, json.dumps(hardware(job.threads), indent=2) + "\n")
