"""Fine-tunes the runs of one job: writes a record each, and the weights that others start from."""

from pathlib import Path

from finegates.suite.jobs.job import running, seconds_since_start

job = snakemake
with running(job):
    from finegates.suite.config.llama_task import task_tier
    from finegates.suite.config.load import configured_tier
    from finegates.suite.config.searched import searched_tier, with_factors
    from finegates.suite.runs.chosen_rates import read_choices
    from finegates.suite.runs.finetune import TaskData, finetune, load_tokenizer
    from finegates.suite.runs.predictions import predictions_path
    from finegates.suite.runs.record import read_record, write_record

    tier = configured_tier(job.config)
    if job.params.get("on_llama"):
        tier = task_tier(tier)
    if job.params.get("is_trial"):
        tier = searched_tier(tier)
    if job.input.get("rates"):
        tier = with_factors(tier, read_choices(job.input.rates[0]))
    startup = seconds_since_start()
    data = TaskData(tier, job.wildcards.task, load_tokenizer(tier))
    # <method>/seed<n>: records, and what runs kept, of this job or of those before it.
    files = {(p.parent.name, p.name): p for p in map(Path, [*job.output, *job.input.predecessors])}
    outputs = [path for path in map(Path, job.output) if path.suffix == ".json"]
    for number, path in enumerate(outputs, start=1):
        label, seed = path.parent.name, int(path.stem.removeprefix("seed"))
        print(f"[{number}/{len(outputs)}] {data.task} {label} seed {seed}", flush=True)
        method = tier.all_methods[label]
        kept = path.with_suffix(".safetensors").name
        record = finetune(
            tier,
            data,
            label,
            seed,
            matched=read_record(files[method.matched, path.name]) if method.matched else None,
            start=files[method.start, kept] if method.start else None,
            keep=files.get((label, kept)),
            predictions=predictions_path(path),
            code_digest=job.params.code,
            startup_s=startup / len(outputs),
        )
        write_record(record, path)
