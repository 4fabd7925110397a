"""The users' view of the Llama experiments: one command, reproducible tables, bad text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.causal_tier import llama_section, write_llama, write_text
from support.paths import ROOT
from support.tier import tiny_tier


def write_tier(folder: Path) -> Path:
    write_llama(folder / "llama")
    write_text(folder / "text")
    raw: dict[str, Any] = tiny_tier(folder).model_dump(mode="json")
    section = llama_section(folder)
    section["pretraining"]["tokenizer"] = {"words": 60}
    section["text"] = {
        "name": "generated language",
        "generated": {"train_documents": 60, "validation_documents": 12, "seed": 0},
    }
    section["posttraining"]["models"]["tiny"] = {"name": "tiny Llama", "dense": "tiny"}
    section["on_task"]["model"] = {"name": "tiny Llama", "dense": "tiny"}
    raw |= {"results": "results", "methods": {"full": {"experiment": "full"}}, "llama": section}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def snakemake(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", str(folder), "--cores", "2", *arguments]
    done = subprocess.run(
        [*command, "--config", f"tier={folder / 'tiny.yaml'}"],
        cwd=folder, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_one_command_makes_the_tables_and_figures_and_the_same_bytes_again(tmp_path):
    write_tier(tmp_path)
    status, printed = snakemake(tmp_path, "llama")
    assert status == 0, printed
    llama = tmp_path / "results" / "llama"
    made = {
        str(path.relative_to(llama)): path.read_bytes()
        for part in ("tables", "figures")
        for path in (llama / part).rglob("*.*")
    }
    for name in ("task", "posttraining", "pretraining"):
        assert {f"tables/{name}.csv", f"tables/{name}.md", f"figures/{name}.png"} <= set(made)
    assert not list((llama / "checkpoints").rglob("checkpoint-*"))
    status, printed = snakemake(tmp_path, "llama")
    assert status == 0
    assert "Nothing to be done" in printed
    status, printed = snakemake(tmp_path, "publish_llama")
    assert status == 0, printed
    published = tmp_path / "results" / "published" / "tiny" / "llama"
    assert (published / "tables" / "posttraining.md").is_file()
    assert (published / "runs/pretraining/tiny/dense/seed0.json").is_file()
    status, printed = snakemake(tmp_path, "llama", "--forceall")
    assert status == 0, printed
    assert made == {name: (llama / name).read_bytes() for name in made}


@pytest.mark.thorough
def test_a_text_that_is_not_utf8_fails_its_job_and_leaves_no_record(tmp_path):
    path = write_tier(tmp_path)
    raw = yaml.safe_load(path.read_text())
    raw["llama"]["text"] = {"name": "mine", "path": "text", "validation_documents": 4}
    raw["llama"]["pretraining"]["tokenizer"] = {"path": "llama"}
    path.write_text(yaml.safe_dump(raw))
    (tmp_path / "text" / "train.txt").write_bytes(b"na\xefve\n")
    record = "results/llama/runs/pretraining/tiny/gated-s0.4/seed0.json"
    status, printed = snakemake(tmp_path, record)
    assert status != 0
    assert "TextError: text text/train.txt is not UTF-8: byte 0xef on line 1" in printed
    assert not list((tmp_path / "results").rglob("*.json"))


@pytest.mark.thorough
def test_a_run_that_matches_one_of_another_process_finds_its_record(tmp_path):
    path = write_tier(tmp_path)
    raw = yaml.safe_load(path.read_text())
    on_task = raw["llama"]["on_task"]
    on_task["model"] = {"name": "tiny Llama", "path": "llama"}
    matching = {label: m for label, m in on_task["methods"].items() if m.get("magnitude")}
    assert matching, "the tier has a method that matches another"
    raw |= {"runs_per_process": "run"}
    path.write_text(yaml.safe_dump(raw))
    (label,) = matching
    record = f"results/llama/runs/task/{on_task['tasks'][0]}/{label}/seed0.json"
    status, printed = snakemake(tmp_path, record)
    assert status == 0, printed
    assert (tmp_path / record).is_file()
