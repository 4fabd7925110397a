"""One training run in as many processes as its settings ask for.

    torchrun --nproc-per-node 2 -m finegates.suite.runs.launch --config '{"tier": "smoke"}' RECORD

is what :func:`launch` starts where ``training.processes`` is more than one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from finegates.suite.config.llama_runs import run_named, training_of
from finegates.suite.config.load import configured_tier
from finegates.suite.paths import ROOT
from finegates.suite.runs.record import write_record


class LaunchError(RuntimeError):
    """A process of a run failed; its own message is in the log."""


def launch(config: Mapping[str, Any], path: str, code_digest: str | None = None) -> None:
    """Trains the run of a record's path and writes the record.

    Args:
        config: as of ``finegates.suite.config.load.configured_tier``.
        path: of the record.
        code_digest: for the record.

    Raises:
        LaunchError: with several processes, one of them failed.
    """
    tier = configured_tier(config)
    processes = training_of(tier, run_named(tier, path)).processes
    if processes == 1:
        train_and_write(config, path, code_digest)
        return
    settings = training_of(tier, run_named(tier, path))
    command = launch_line(settings.processes, settings.nodes, os.environ)
    command += ["-m", "finegates.suite.runs.launch"]
    command += ["--config", json.dumps(dict(config)), "--code", code_digest or "", path]
    root = str(ROOT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    if subprocess.run(command, env=environment).returncode:
        raise LaunchError(f"a process of {path} failed; its message is above in the log")


def launch_line(processes: int, nodes: int, environment: Mapping[str, str]) -> list[str]:
    """The command that starts the processes of a run, up to what each of them runs.

    On one node they find each other by themselves. On several, ``srun`` starts torchrun on each
    node of the Slurm job, and they meet at the first one.

    Args:
        processes: of all nodes together.
        nodes: machines.
        environment: of the job; on several nodes with ``SLURM_JOB_ID`` and, by Slurm or by hand,
            ``MASTER_ADDR``; ``MASTER_PORT`` if another than one that the job's number decides.

    Raises:
        LaunchError: several nodes outside a Slurm job.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    each = ["--nproc-per-node", str(processes // nodes)]
    if nodes == 1:
        return [*torchrun, "--standalone", *each]
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        raise LaunchError(
            f"{nodes} nodes need a Slurm job (SLURM_JOB_ID is not set); use profiles/slurm, or "
            "leave nodes out"
        )
    first = environment.get("MASTER_ADDR") or environment.get("SLURMD_NODENAME", "localhost")
    port = environment.get("MASTER_PORT", str(20_000 + int(job) % 20_000))
    meeting = ["--rdzv-backend", "c10d", "--rdzv-id", job, "--rdzv-endpoint", f"{first}:{port}"]
    # Overlap: the job's own step, which this runs in, holds the same cores.
    srun = ["srun", "--overlap", "--nodes", str(nodes), "--ntasks", str(nodes)]
    return [*srun, "--ntasks-per-node", "1", *torchrun, "--nnodes", str(nodes), *each, *meeting]


def train_and_write(config: Mapping[str, Any], path: str, code_digest: str | None) -> None:
    """What each process of a run does; the first writes the record."""
    from finegates.suite.runs.train_llama import finish, train_run

    tier = configured_tier(config)
    run = run_named(tier, path)
    record = train_run(tier, run, code_digest=code_digest)
    if record is not None:
        write_record(record, path)
        finish(tier, run)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description="Train one run on plain text.")
    parser.add_argument("--config", type=json.loads, required=True)
    parser.add_argument("--code", default="")
    parser.add_argument("path")
    given = parser.parse_args(arguments)
    train_and_write(given.config, given.path, given.code or None)


if __name__ == "__main__":
    main()
