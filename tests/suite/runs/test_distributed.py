"""Two processes (gloo, on the CPU) train like one process on the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finegates.suite.config.llama_runs import run_named
from finegates.suite.config.load import ConfigError, configured_tier
from finegates.suite.runs.launch import LaunchError, launch, launch_line
from finegates.suite.runs.llama_record import read_causal_record
from support.causal_tier import llama_section, write_llama, write_text
from support.paths import ROOT
from support.tier import tiny_tier


def write_tier(folder: Path, processes: int) -> Path:
    """Writes a tier file for programs: :func:`causal_tier` with the given number of processes."""
    if not (folder / "llama").is_dir():
        write_llama(folder / "llama")
        write_text(folder / "text")
    tier = tiny_tier(folder).model_dump(mode="json")
    tier["methods"] = {"full": {"experiment": "full"}}
    tier["results"] = str(folder / f"results{processes}")
    section = llama_section(folder, processes=processes, micro_batch_size=2, save_every=4)
    tier["llama"] = section
    path = folder / f"tier{processes}.yaml"
    path.write_text(yaml.safe_dump(tier))
    return path


@pytest.mark.thorough
@pytest.mark.parametrize(
    "method", ["gated-s0.4", pytest.param("structured-s0.4", marks=pytest.mark.slow)]
)
def test_two_processes_agree_with_one(tmp_path, method):
    experiment = "pretraining" if method.startswith("gated") else "posttraining"
    records = []
    for processes in (1, 2):
        path = write_tier(tmp_path, processes)
        results = tmp_path / f"results{processes}"
        record = results / "llama" / "runs" / experiment / "tiny" / method / "seed0.json"
        launch({"tier": str(path)}, str(record), "digest")
        records.append(read_causal_record(record))
        assert not list((results / "llama" / "checkpoints").rglob("checkpoint-*"))
    one, two = records
    assert one.config.training.processes == 1
    assert two.config.training.processes == 2
    # Sums are in another order: float32 rounding, amplified over eight steps.
    assert two.final.loss == pytest.approx(one.final.loss, rel=1e-5)
    assert two.closed == one.closed
    for ours, theirs in zip(two.curve, one.curve, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.task_loss == pytest.approx(theirs.task_loss, rel=1e-4)
    assert two.start.loss != pytest.approx(two.final.loss, rel=1e-4), "they were trained"


def fake_srun(folder: Path) -> Path:
    """A program that starts copies of a command as srun would, all on this machine."""
    path = folder / "bin" / "srun"
    path.parent.mkdir()
    path.write_text(
        "#!/bin/sh\n"
        'while [ "$1" != "" ]; do case "$1" in\n'
        "  --overlap) shift ;; --ntasks) n=$2; shift 2 ;; --*) shift 2 ;; *) break ;; esac; done\n"
        f'echo "$n" > {folder}/started\n'
        'while [ "$n" -gt 1 ]; do "$@" & n=$((n - 1)); done\n'
        '"$@"; status=$?; wait; exit $status\n'
    )
    path.chmod(0o755)
    return path.parent


@pytest.mark.slow
def test_two_nodes_of_one_process_agree_with_one(tmp_path, monkeypatch):
    path = write_tier(tmp_path, 1)
    monkeypatch.setenv("PATH", f"{fake_srun(tmp_path)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", str(os.getpid()))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    records = []
    for options in ({}, {"processes": 2, "nodes": 2}):
        config = {"tier": str(path), **options}
        raw = yaml.safe_load(path.read_text())
        raw["results"] = str(tmp_path / f"nodes{len(options)}")
        path.write_text(yaml.safe_dump(raw))
        record = Path(raw["results"], "llama/runs/pretraining/tiny/gated-s0.4/seed0.json")
        launch(config, str(record), "digest")
        records.append(read_causal_record(record))
    assert (tmp_path / "started").read_text().strip() == "2"
    one, two = records
    assert (one.config.training.nodes, two.config.training.nodes) == (1, 2)
    assert two.config.training.processes == 2
    assert two.final.loss == pytest.approx(one.final.loss, rel=1e-5)
    assert two.closed == one.closed


def test_the_launch_line_is_torchruns():
    line = launch_line(4, 1, {})
    assert line[1:] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    slurm = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "node3"}
    line = launch_line(8, 2, slurm)
    assert line[0] == "srun"
    assert " ".join(line).endswith(
        "--nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-id 7 --rdzv-endpoint node3:20007"
    )
    with pytest.raises(LaunchError, match="2 nodes need a Slurm job"):
        launch_line(8, 2, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes": 3}, "batch_size .* must be a multiple of processes"),
        ({"processes": 2, "nodes": 4}, r"processes \(2\) must be a multiple of nodes \(4\)"),
        ({"processes": 0}, "processes.*greater than 0"),
        ({"processes": "two"}, "processes.*integer"),
    ],
)
def test_processes_that_do_not_fit_are_refused_on_the_command_line(tmp_path, options, message):
    path = write_tier(tmp_path, 1)
    tier = configured_tier({"tier": str(path), "processes": "2"})
    assert tier.llama.pretraining.training.processes == 2
    assert tier.llama.posttraining.training.processes == 2
    with pytest.raises(ConfigError, match=message):
        configured_tier({"tier": str(path), **options})


def test_a_process_that_fails_is_named(tmp_path, monkeypatch):
    path = write_tier(tmp_path, 2)
    tier = configured_tier({"tier": str(path)})
    record = str(tmp_path / "results2/llama/runs/pretraining/tiny/dense/seed0.json")
    assert run_named(tier, record).method == "dense"
    monkeypatch.setattr(
        subprocess, "run", lambda command, env: subprocess.CompletedProcess(command, 1)
    )
    with pytest.raises(LaunchError, match=r"a process of .*dense/seed0.json failed"):
        launch({"tier": str(path)}, record)


@pytest.mark.slow
def test_a_run_that_is_really_killed_continues_and_ends_alike(tmp_path):
    path = write_tier(tmp_path, 1)
    raw = yaml.safe_load(path.read_text())
    raw["llama"] = llama_section(tmp_path, steps=100, save_every=20, log_every=20, eval_every=100)
    path.write_text(yaml.safe_dump(raw))
    records = []
    for name in ("whole", "killed"):
        raw["results"] = str(tmp_path / name)
        path.write_text(yaml.safe_dump(raw))
        record = tmp_path / name / "llama/runs/posttraining/tiny/reference-s0.4/seed0.json"
        command = [sys.executable, "-m", "finegates.suite.runs.launch", str(record)]
        command += ["--config", json.dumps({"tier": str(path)})]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if name == "killed":
            process = subprocess.Popen(command, env=environment, cwd=tmp_path)
            places = tmp_path / name / "llama" / "checkpoints"
            while not list(places.rglob("checkpoint-4*/text_position.json")):
                assert process.poll() is None
            process.kill()
            process.wait()
            assert not record.exists()
        subprocess.run(command, env=environment, cwd=tmp_path, check=True)
        records.append(read_causal_record(record).model_copy(update={"timing": {}}).model_dump())
    assert records[0] == records[1]
