"""The workflow on a real Slurm: jobs use its queue, tables equal those of a local run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import cluster
import pytest
import yaml

from support.paths import ROOT
from support.tiny_workflow import TINY

TIER = {
    **{key: TINY[key] for key in ("tier", "description", "results", "seeds", "runs_per_process")},
    **{key: TINY[key] for key in ("threads", "model", "data")},
    "tasks": ["cola"],
    "training": {"epochs": 1, "batch_size": 8, "max_length": 64},
    "methods": {
        "full": {"experiment": "full"},
        "reference": {"experiment": "reference", "gates": {"target": 0.4}},
    },
}


PLACES = {"tables", "figures", "studies", "theory"}


def snakemake(
    folder: Path, tier: str, *arguments: str, environment: dict[str, str] | None = None
) -> str:
    """Runs the workflow on a file system folder and returns its output."""
    folder.mkdir(parents=True, exist_ok=True)
    if tier == "tiny":
        tier = str(folder / "tiny.yaml")
        Path(tier).write_text(yaml.safe_dump(TIER, sort_keys=False))
    command = [sys.executable, "-m", "snakemake", "all", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", str(folder), *arguments, "--config", f"tier={tier}"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=5400,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    return printed


def tables(folder: Path) -> dict[str, bytes]:
    """Every table and figure without measured times, by path."""
    results = folder / "results"
    found = {}
    for path in sorted(results.rglob("*.*")):
        parts = path.relative_to(results).parts
        shown = path.suffix in (".csv", ".md", ".tex", ".svg", ".png")
        if shown and PLACES & set(parts) and "timing" not in parts:
            found["/".join(parts)] = path.read_bytes()
    return found


@pytest.mark.cluster
@pytest.mark.parametrize("tier", ["tiny", pytest.param("smoke", marks=pytest.mark.slow)])
def test_the_workflow_runs_through_slurm_and_its_tables_are_the_local_ones(tmp_path, tier):
    reason = cluster.unavailable()
    if reason:
        pytest.skip(reason)
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="extra slurm is not installed")
    with ExitStack() as stack:
        try:
            environment = stack.enter_context(cluster.running(tmp_path / "cluster"))
        except TimeoutError as error:
            pytest.skip(f"Slurm does not start here: {error}")
        printed = snakemake(
            tmp_path / "queued",
            tier,
            *("--profile", str(ROOT / "profiles" / "slurm"), "--latency-wait", "10"),
            *("--cores", "2"),
            *("--default-resources", "slurm_partition=test", "slurm_account=test"),
            # Too little for the imports: Slurm kills the first attempt; the next has enough.
            *("--set-resources", "score_bag_of_words:mem_mb=40 * 30 ** (attempt - 1)"),
            environment=environment,
        )
        queue = subprocess.run(
            ["squeue", "--states=all", "--noheader", "--format=%T"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    submitted = len(re.findall(r"submitted with SLURM jobid", printed))
    assert submitted == len(queue) >= 8
    assert queue.count("COMPLETED") == len(queue) - 1, "the job that was killed ran once more"
    assert "score_bag_of_words" in printed
    snakemake(tmp_path / "local", tier, "--cores", "2")
    queued = tables(tmp_path / "queued")
    assert len(queued) >= 5
    assert queued == tables(tmp_path / "local")


@pytest.mark.cluster
def test_a_machine_without_slurm_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(cluster, "PROGRAMS", ("munged", "no-such-program"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "no-such-program" in str(cluster.unavailable())
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cluster.unavailable() == "starting Slurm needs root"
