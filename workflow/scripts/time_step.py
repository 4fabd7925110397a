"""Times one training step of each kind of method, interleaved, and writes ratios to LoRA's."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.files import write_text
    from finegates.suite.config.load import configured_tier
    from finegates.suite.runs.machine import hardware
    from finegates.suite.timing.control import is_noisy, load_average, load_note
    from finegates.suite.timing.training_step import time_training_step

    tier = configured_tier(job.config)
    before = load_average()
    table = time_training_step(tier, job.threads)
    machine = {**hardware(job.threads), "load": [before, load_average()]}
    noisy = is_noisy(float(table["ratio_to_lora"].iloc[-1]))
    write_text(job.output.csv, table.to_csv(index=False, float_format="%.4f"))
    write_text(
        job.output.md,
        f"One training step, {tier.model.name}, batch {tier.step_benchmark.batch_size} x "
        f"{tier.step_benchmark.length}, {tier.training.precision}, on {machine['cpu']} "
        f"({machine['threads']} threads); medians over {tier.step_benchmark.repeats} interleaved "
        f"rounds. The control is LoRA's step a second time. {load_note(machine)}"
        f"{'Noisy: the control is off by more than 5 %, so no ratio counts. ' if noisy else ''}"
        f"\n\n{table.to_markdown(index=False, floatfmt='.3f')}\n",
    )
