"""The workflow as its users meet it: one command, killed and continued, misconfigured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from finegates.config import load_tier
from finegates.record import read_record
from scan import pickles_below
from tier import TINY_SHAPE

ROOT = Path(__file__).parents[2]

TINY = {
    "tier": "tiny",
    "description": "a tiny tier for tests (synthetic data)",
    "results": "results",
    "seeds": [0],
    "runs_per_process": "task",
    "threads": 1,
    "model": {
        "name": "tiny",
        "pretraining": {
            "hidden": 16,
            "layers": 2,
            "heads": 2,
            "feed_forward": 32,
            "max_length": 64,
            "documents": 200,
            "steps": 3,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "threads": 1,
        },
    },
    "data": {"name": "tiny", "generated": {"train_rows": 40, "validation_rows": 32, "seed": 3}},
    "tasks": ["cola", "stsb"],
    "training": {"epochs": 2, "batch_size": 8, "max_length": 64},
    "methods": {
        "full": {"experiment": "full"},
        "lora": {"experiment": "lora"},
        "reference-s0.4": {
            "experiment": "reference",
            "gates": {"target": 0.4},
            "gate_learning_rate": 0.2,
        },
        "magnitude-s0.4": {
            "experiment": "magnitude",
            "magnitude": {"match": "reference-s0.4"},
        },
        "distilled": {
            "experiment": "structured",
            "gates": {"target": 0.4},
            "distillation": {"teacher": "full"},
        },
    },
    "step_benchmark": {"batch_size": 2, "length": 8, "repeats": 2},
    "inference_benchmarks": [TINY_SHAPE],
    "theory": {
        "problems": 1,
        "trials": 3,
        "limit": 20,
        "runs": 8,
        "steps": 1000,
        "samples": 1000,
        "gate_steps": 20,
        "network": {"steps": 4, "looks": 2, "rows": 8},
    },
}


def start(folder: Path, tier: dict, *arguments: str) -> subprocess.Popen[str]:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tier, sort_keys=False))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", str(folder), *arguments, "--config", f"tier={folder / 'tiny.yaml'}"]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(folder: Path, tier: dict, *arguments: str) -> tuple[int, str]:
    process = start(folder, tier, *arguments)
    printed, _ = process.communicate(timeout=400)
    return process.returncode, printed


def tables(folder: Path) -> dict[str, bytes]:
    """Tables and figures, but not the measured times."""
    results = folder / "results"
    return {
        str(path.relative_to(results)): path.read_bytes()
        for part in ("tables", "figures", "theory")
        for path in sorted((results / part).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The results of an undisturbed run of the tiny tier."""
    folder = tmp_path_factory.mktemp("undisturbed")
    status, printed = run(folder, TINY, "all", "--cores", "2")
    assert status == 0, printed
    return folder


def test_one_command_makes_every_table_figure_and_record(finished):
    made = {str(p.relative_to(finished / "results")) for p in (finished / "results").rglob("*.*")}
    for task in TINY["tasks"]:
        for method in TINY["methods"]:
            assert f"runs/{task}/{method}/seed0.json" in made
    for name in ("glue.csv", "glue.md", "glue.tex"):
        assert f"tables/{name}" in made
    assert {"figures/tradeoff.svg", "figures/tradeoff.png"} <= made
    assert {"theory/checks.csv", "theory/checks.md", "theory/figures/network.pdf"} <= made
    assert {"timing/step.csv", "timing/cost.csv", "claims.csv", "claims.md", "report.html"} <= made


def test_a_finished_workflow_leaves_no_pickle(finished):
    assert list((finished / "results").rglob("*.safetensors"))
    assert pickles_below(finished / "results") == []


def test_a_finished_workflow_has_nothing_to_do(finished):
    status, printed = run(finished, TINY, "all", "--cores", "2")
    assert status == 0
    assert "Nothing to be done" in printed


def test_a_killed_workflow_continues_and_ends_with_the_same_tables(finished, tmp_path):
    process = start(tmp_path, TINY, "all", "--cores", "1")
    killed_at = tmp_path / "results" / "models" / "encoder" / "model.safetensors"
    for _ in range(1200):
        if killed_at.exists() and list((tmp_path / "results").glob("logs/finetune/*.log")):
            break
        time.sleep(0.1)
    time.sleep(4)  # into the training of the first task
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "results" / "tables").exists()
    run(tmp_path, TINY, "--unlock", "--cores", "1")
    status, printed = run(tmp_path, TINY, "all", "--cores", "1", "--rerun-incomplete")
    assert status == 0, printed
    assert tables(tmp_path) == tables(finished)


def test_a_process_for_each_run_gives_the_records_that_one_for_all_gives(finished, tmp_path):
    methods = {label: TINY["methods"][label] for label in ("full", "distilled")}
    model = {"name": "tiny", "path": str(finished / "results" / "models" / "encoder")}
    tier = {**TINY, "runs_per_process": "run", "methods": methods, "tasks": ["cola"]}
    status, printed = run(tmp_path, {**tier, "model": model}, "runs", "--cores", "2")
    assert status == 0, printed
    for label in methods:
        record = Path("results", "runs", "cola", label, "seed0.json")
        alone, together = (read_record(folder / record) for folder in (tmp_path, finished))
        assert alone.epochs == together.epochs
        assert alone.closed == together.closed


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
    assert status != 0
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "results").exists()


def test_a_loss_that_diverges_fails_its_job_and_leaves_no_record(finished, tmp_path):
    model = {"name": "tiny", "path": str(finished / "results" / "models" / "encoder")}
    methods = {"full": {"experiment": "full", "learning_rate": 1e30}}
    tier = {**TINY, "model": model, "methods": methods, "tasks": ["cola"]}
    status, printed = run(tmp_path, tier, "runs", "--cores", "1")
    assert status != 0
    assert "NonFiniteLossError" in printed
    assert "lower learning rate" in printed
    assert not list((tmp_path / "results").rglob("*.json"))


@pytest.mark.parametrize("tier", ["paper", "paper_large", "rehearsal", "local", "structured"])
def test_every_tier_plans_without_a_network(tier, tmp_path):
    data = ROOT.parent / "shared" / "data" / "glue"
    if tier in ("local", "structured") and not data.is_dir():
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
    """Every method in a process of its own, on one task; ``--config tier=rehearsal`` runs all."""
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
    from finegates.sources import ModelError, load_tokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tier = load_tier(ROOT / "config" / "paper.yaml")
    with pytest.raises(ModelError, match=r"roberta-base.*check the network.*model.path"):
        load_tokenizer(tier)
