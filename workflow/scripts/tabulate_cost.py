"""Tabulates what this tier's jobs cost, and the share of it that was start-up."""

from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.files import write_text
    from finegates.suite.runs.record import read_records
    from finegates.suite.tables.cost import cost_table

    records = read_records([*job.input.records, *job.input.studied])
    pretraining = job.params.pretraining if Path(job.params.pretraining).is_file() else None
    table = cost_table(records, job.params.benchmarks, pretraining)
    total = table.iloc[-1]
    machine = records[0].hardware
    write_text(job.output.csv, table.to_csv(index=False, float_format="%.2f"))
    write_text(
        job.output.md,
        f"Cost of the jobs behind the tables of tier {records[0].tier}, on {machine.cpu} "
        f"({machine.cores} cores). Start-up (processes starting, imports) is "
        f"{100 * total['startup_s'] / total['wall_s']:.1f} % of the jobs' time; measured for "
        "fine-tuning and pretraining the encoder, elsewhere taken as long as a fine-tuning "
        "process's. Jobs run side by side, so wall seconds add up to more than the run took."
        f"\n\n{table.to_markdown(index=False, floatfmt='.1f')}\n",
    )
