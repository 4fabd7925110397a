"""Fine-tunes the runs of one job and writes a record each."""

from pathlib import Path

from finegates.job import job_log, seconds_since_start

job = snakemake
with job_log(job.log[0]):
    from finegates.config import configured_tier
    from finegates.finetune import TaskData, finetune, load_tokenizer
    from finegates.record import read_record, write_record

    tier = configured_tier(job.config)
    startup = seconds_since_start()
    data = TaskData(tier, job.wildcards.task, load_tokenizer(tier))
    outputs = [Path(path) for path in job.output]
    for number, path in enumerate(outputs, start=1):
        label, seed = path.parent.name, int(path.stem.removeprefix("seed"))
        print(f"[{number}/{len(outputs)}] {data.task} {label} seed {seed}", flush=True)
        magnitude = tier.methods[label].magnitude
        matched = (
            read_record(path.parent.parent / magnitude.match / path.name) if magnitude else None
        )
        record = finetune(
            tier,
            data,
            label,
            seed,
            matched=matched,
            code_digest=job.params.code,
            startup_s=startup / len(outputs),
        )
        write_record(record, path)
