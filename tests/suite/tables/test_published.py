"""Every published table follows from the published records and measurements, to the byte.

Two tables are excluded. The cost of a workflow needs files of its jobs that are not published. The
verdicts on claims have their own test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from finegates.suite.config.llama_runs import posttraining_runs, pretraining_runs, pruning_runs
from finegates.suite.config.llama_task import task_tier
from finegates.suite.config.load import load_tier
from finegates.suite.config.tier import Tier
from finegates.suite.runs.llama_record import CausalRecord, read_causal_records
from finegates.suite.runs.record import Record, read_records
from finegates.suite.tables import (
    Table,
    detectable_table,
    glue_table,
    read_references,
    runs_table,
    sparsity_table,
    to_csv,
)
from finegates.suite.tables.deployed import times_table
from finegates.suite.tables.inference import (
    backend_table,
    inference_table,
    joined_machine,
    machine_notes,
    parts_table,
    scattered_table,
)
from finegates.suite.tables.llama_posttraining import posttraining_table
from finegates.suite.tables.llama_pretraining import curve_table, pretraining_table
from finegates.suite.tables.llama_step import step_table
from finegates.suite.tables.llama_task import llama_task_table
from finegates.suite.tables.properties import properties_table
from finegates.suite.tables.shared_encoder import shared_table
from finegates.suite.tables.study import read_times, study_table
from finegates.suite.tables.wording import reworded, text_reworded, text_words_of, words_of
from support.paths import ROOT

PUBLISHED = ROOT / "results" / "published"
# An unfinished tier has records only.
TIERS = sorted(f.parent.name for f in PUBLISHED.glob("*/runs") if f.with_name("tables").is_dir())

Made = Iterator[tuple[str, str]]
"""Paths below a tier's folder, with the text that the current code produces."""


def forms(place: str, table: Table) -> Made:
    yield f"{place}.csv", table.csv()
    yield f"{place}.md", table.markdown()
    yield f"{place}.tex", table.latex()


def own(tier: Tier, labels: list[str], tasks: list[str], seeds: list[int]) -> list[Record]:
    runs = PUBLISHED / tier.tier / "runs"
    paths = [runs / t / m / f"seed{s}.json" for t in tasks for m in labels for s in seeds]
    return reworded(read_records(paths), words_of(tier, labels))


def main_tables(tier: Tier, folder: Path) -> Made:
    methods, tasks = list(tier.methods), tier.tasks
    records = own(tier, methods, tasks, tier.seeds)
    references = read_references(folder / "bag_of_words.json")
    asked = {"seeds": tier.seeds, "references": references}
    yield from forms("tables/glue", glue_table(records, methods, tasks, **asked))
    best = glue_table(records, methods, tasks, epoch="best", **asked)
    yield from forms("tables/glue_best_epoch", best)
    sparsity = sparsity_table(records, methods, tasks, seeds=tier.seeds)
    yield from forms("tables/sparsity", sparsity)
    yield from forms("tables/detectable", detectable_table(records, methods, tasks))
    yield "tables/runs.csv", to_csv(runs_table(records, methods, tasks))


def study_tables(tier: Tier, folder: Path) -> Made:
    studies = tier.studies
    for name, study in studies.compared.items() if studies else ():
        assert studies is not None
        records = own(tier, study.methods, studies.tasks, studies.seeds)
        asked = (name, study, records, studies.tasks, studies.seeds)
        yield from forms(f"studies/{name}", study_table(*asked))
        yield f"studies/runs/{name}.csv", to_csv(runs_table(records, study.methods, studies.tasks))
        if study.timed:
            times = read_times(pd.read_csv(folder / "timing" / "deployed.csv"))
            yield from forms(f"timing/study_{name}", study_table(*asked, times))


def shared_tables(tier: Tier, folder: Path) -> Made:
    studies = tier.studies
    if studies and studies.shared:
        rows = pd.read_csv(folder / "studies" / "shared_encoder.csv").to_dict("records")
        records = own(tier, studies.shared, tier.tasks, tier.seeds[:1])
        yield from forms(
            "studies/shared_encoder", shared_table(rows, records, studies.shared, tier.tasks)
        )


def measured_tables(tier: Tier, folder: Path) -> Made:
    studies = tier.studies
    if studies and studies.timed:
        frame = pd.read_csv(folder / "timing" / "deployed.csv")
        machine = json.loads((folder / "timing" / "inference_machine.json").read_text())
        yield from forms("timing/deployed", times_table(frame, tier, machine))
        if studies.properties:
            records = own(tier, studies.properties, studies.tasks, studies.seeds)
            times = read_times(frame)
            table = properties_table(studies.properties, records, studies.tasks, times)
            yield from forms("timing/properties", table)


def inference_tables(tier: Tier, folder: Path) -> Made:
    shapes = [folder / "timing" / "inference" / s.label for s in tier.inference_benchmarks]
    if not shapes:
        return
    machine = joined_machine(
        [json.loads(s.with_name(f"{s.name}.json").read_text()) for s in shapes]
    )
    frames = [pd.read_csv(s.with_name(f"{s.name}.csv")) for s in shapes]
    frame = pd.concat(frames, ignore_index=True)
    repeats = sorted({shape.repeats for shape in tier.inference_benchmarks})
    makers = (inference_table, parts_table, scattered_table, backend_table)
    tables = [t for t in (make(frame, repeats, machine) for make in makers) if t.cells]
    notes = machine_notes(machine)
    yield "timing/inference.md", "\n".join([*(table.markdown() for table in tables), *notes])
    yield "timing/inference.tex", "\n".join(table.latex() for table in tables)


def llama_records(tier: Tier, runs: list) -> list[CausalRecord]:
    methods = list(dict.fromkeys(["dense", *(run.method for run in runs)]))
    names = list(dict.fromkeys(run.name for run in runs))
    ordered = sorted(runs, key=lambda r: (names.index(r.name), methods.index(r.method)))
    records = read_causal_records(run.record(str(PUBLISHED / tier.tier)) for run in ordered)
    return text_reworded(records, text_words_of(tier, runs))


def llama_tables(tier: Tier, folder: Path) -> Made:
    if not (folder / "llama").is_dir():
        return
    records = llama_records(tier, [*posttraining_runs(tier), *pruning_runs(tier)])
    yield from forms("llama/tables/posttraining", posttraining_table(records))
    records = llama_records(tier, pretraining_runs(tier))
    yield from forms("llama/tables/pretraining", pretraining_table(records))
    yield "llama/tables/pretraining_curves.csv", to_csv(curve_table(records))
    on_task = task_tier(tier)
    methods, runs = list(on_task.methods), folder / "llama" / "runs" / "task"
    paths = [
        runs / task / method / f"seed{seed}.json"
        for task in on_task.tasks
        for method in methods
        for seed in tier.seeds
    ]
    found = reworded(read_records(paths), words_of(on_task, methods))
    yield from forms("llama/tables/task", llama_task_table(found, methods, on_task.tasks))
    frame = pd.read_csv(folder / "llama" / "timing" / "step.csv")
    machine = json.loads((folder / "timing" / "inference_machine.json").read_text())
    yield from forms("llama/timing/step", step_table(frame, tier, machine))


MAKERS: list[Callable[[Tier, Path], Made]] = [
    main_tables,
    study_tables,
    shared_tables,
    measured_tables,
    inference_tables,
    llama_tables,
]


CASES = [
    pytest.param(name, make, id=f"{name}-{make.__name__}") for name in TIERS for make in MAKERS
]


@pytest.mark.parametrize(("name", "make"), CASES)
def test_published_tables_are_made_again_to_the_byte(name, make):
    folder = PUBLISHED / name
    tier = load_tier(ROOT / "config" / f"{name}.yaml")
    for place, text in make(tier, folder):
        assert (folder / place).read_bytes() == text.encode(), place
