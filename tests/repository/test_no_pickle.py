"""No pickle anywhere: neither code nor files can execute data.

One kind of file is an exception while a run on plain text or of ``finegates shrink`` is unfinished.
The checkpoints of ``transformers.Trainer`` contain the state of the optimizer and of the random
generators as ``torch.save`` writes it. They are read with ``weights_only=True``, which executes
nothing, and deleted with the last step.
"""

from __future__ import annotations

import pickle
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from finegates.suite.config.llama_runs import Run
from finegates.suite.jobs.seals import seal
from finegates.suite.runs.llama_trainer import CausalTrainer
from finegates.suite.runs.train_llama import checkpoint_folder, finish, train_run
from support.causal_tier import causal_tier
from support.paths import ROOT
from support.scan import faults, holds_pickle, pickles_below

SOURCES = sorted(p for d in ("finegates", "theory", "workflow") for p in (ROOT / d).rglob("*.py"))
RULES = [ROOT / "Snakefile", *sorted((ROOT / "workflow").rglob("*.smk"))]
CHECKPOINTED = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
"""Checkpoint files that ``transformers`` reads to resume a run."""


def test_no_source_reads_or_writes_pickle_or_runs_a_text():
    assert len(SOURCES) > 100
    found = {str(p.relative_to(ROOT)): f for p in SOURCES if (f := faults(p.read_text()))}
    assert found == {}


def test_no_rule_starts_a_shell_or_reads_pickle():
    for path in RULES:
        assert not re.search(r"pickle|eval\(|exec\(|^\s+(shell|run):", path.read_text(), re.M), path


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import pickle", "imports pickle"),
        ("import os, dill as d", "imports dill"),
        ("from joblib import load", "imports joblib"),
        ("import shelve", "imports shelve"),
        ("def f():\n    import marshal", "line 2: imports marshal"),
        ("torch.load(p)", "torch.load without"),
        ("torch.load(p, weights_only=False)", "torch.load without"),
        ("torch.load(p, weights_only=flag)", "torch.load without"),
        ("np.load(p)", "may hold pickle"),
        ("np.lib.format.read_array(f, allow_pickle=True)", "allows pickle"),
        ("pd.read_pickle(p)", "read_pickle"),
        ("frame.to_pickle(p)", "to_pickle"),
        ("eval(text)", "calls eval"),
        ("exec(text)", "calls exec"),
        ("__import__(name)", "calls __import__"),
        ("yaml.load(text, Loader=yaml.Loader)", "another loader"),
        ("yaml.load(text, yaml.UnsafeLoader)", "another loader"),
        ("yaml.load(text)", "another loader"),
        ("yaml.unsafe_load(text)", "another loader"),
        ("AutoModel.from_pretrained(p)", "from_pretrained without trust_remote_code=False"),
        ("AutoModel.from_pretrained(p, trust_remote_code=True)", "sets trust_remote_code"),
        ("f(**{'trust_remote_code': True})", "sets trust_remote_code"),
        ("settings['trust_remote_code'] = True", "sets trust_remote_code"),
        ("subprocess.run(c, shell=True)", "starts a shell"),
        ("os.system(c)", "os.system"),
    ],
)
def test_the_scan_of_sources_finds_what_is_planted(source, fault):
    assert any(fault in found for found in faults(source)), faults(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "torch.load(p, weights_only=True)",
        "yaml.load(text, Loader=_StrictLoader)",
        "f(p, trust_remote_code=False)",
        "why = {'trust_remote_code': 'never run'}",
        "re.compile(x)",
    ],
)
def test_the_scan_of_sources_lets_pass_what_is_safe(source):
    assert faults(source) == []


class Program:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize("protocol", range(6))
def test_the_scan_of_files_finds_a_pickle_under_any_name(tmp_path, protocol):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "seed0.json").write_bytes(pickle.dumps(Program(), protocol))
    assert pickles_below(tmp_path) == ["runs/seed0.json"]


def test_the_scan_of_files_finds_pickle_in_archives_and_arrays(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    np.save(tmp_path / "a", np.array([Program()]), allow_pickle=True)
    (tmp_path / "a.npy").rename(tmp_path / "a.parquet")
    (tmp_path / "empty.bin").touch()
    (tmp_path / "plain.json").write_text("{}")
    assert pickles_below(tmp_path) == ["a.parquet", "empty.bin", "model.safetensors"]


def test_no_committed_file_holds_pickle():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True)
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert len(files) > 300
    assert [p for p in files if p.is_file() and holds_pickle(p.read_bytes())] == []


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A run on plain text, killed after its second checkpoint."""
    tier = causal_tier(tmp_path, save_every=2)
    run = Run("posttraining", "tiny", "reference", 0.4, 0)
    step = CausalTrainer.training_step

    def mortal(self, *args, **kwargs):
        if self.state.global_step >= 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(CausalTrainer, "training_step", mortal)
        with pytest.raises(KeyboardInterrupt):
            train_run(tier, run, progress=False)
    return tier, run


def test_a_checkpoint_holds_pickle_where_transformers_reads_it_and_is_deleted(
    interrupted, monkeypatch
):
    tier, run = interrupted
    folder = checkpoint_folder(tier, run)
    assert {Path(name).name for name in pickles_below(folder)} == CHECKPOINTED
    read = []
    load = torch.load

    def watched(file, *args, **kwargs):
        read.append((Path(str(file)).name, kwargs.get("weights_only")))
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    assert train_run(tier, run, progress=False) is not None
    assert {name for name, _ in read} == CHECKPOINTED
    # None leaves it to torch, which uses this default.
    assert all(weights_only in (True, None) for _, weights_only in read)
    finish(tier, run)
    assert pickles_below(Path(tier.results)) == []


@pytest.mark.parametrize("file", sorted(CHECKPOINTED))
def test_a_program_in_place_of_a_checkpoint_is_not_run(interrupted, tmp_path, file):
    tier, run = interrupted
    mark = tmp_path / "ran"

    class Touch:
        def __reduce__(self):
            return Path.touch, (mark,)

    for path in checkpoint_folder(tier, run).rglob(file):
        torch.save(Touch(), path)
        seal(path.parent)  # otherwise it would be skipped as damaged
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        train_run(tier, run, progress=False)
    assert not mark.exists()
