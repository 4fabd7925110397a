"""Launches a training run in one or more processes.

If ``training.processes`` is more than one, :func:`launch` starts

    torchrun --nproc-per-node 2 -m finegates.suite.runs.launch --config '{"tier": "smoke"}' RECORD
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
    """A process of a run failed. Its own message is in the log."""


def launch(config: Mapping[str, Any], path: str, code_digest: str | None = None) -> None:
    """Trains the run that belongs to a record's path and writes the record.

    Args:
        config: see ``finegates.suite.config.load.configured_tier``.
        path: path of the record.
        code_digest: digest of the source files behind the run, for the record.

    Raises:
        LaunchError: one of several processes failed.
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
    """The ``torchrun`` command of a run, without the module that it runs.

    One node uses a standalone rendezvous. On several nodes, ``srun`` starts torchrun on each node
    of the Slurm job, with the rendezvous on the first one.

    Args:
        processes: total over all nodes.
        nodes: number of machines.
        environment: environment variables of the job. Several nodes need ``SLURM_JOB_ID``, and
            ``MASTER_ADDR`` from Slurm or set by hand. ``MASTER_PORT`` overrides a port that is
            derived from the job's number.

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
    # --overlap: this process is a step of the same job and already holds its cores.
    srun = ["srun", "--overlap", "--nodes", str(nodes), "--ntasks", str(nodes)]
    return [*srun, "--ntasks-per-node", "1", *torchrun, "--nnodes", str(nodes), *each, *meeting]


def train_and_write(config: Mapping[str, Any], path: str, code_digest: str | None) -> None:
    """Trains in each process of a run. The first process writes the record."""
    from finegates.suite.runs.train_llama import finish, train_run

    tier = configured_tier(config)
    run = run_named(tier, path)
    record = train_run(tier, run, code_digest=code_digest)
    if record is not None:
        write_record(record, path)
        finish(tier, run)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command in the module's docstring."""
    parser = argparse.ArgumentParser(description="Train one run on plain text.")
    parser.add_argument("--config", type=json.loads, required=True)
    parser.add_argument("--code", default="")
    parser.add_argument("path")
    given = parser.parse_args(arguments)
    train_and_write(given.config, given.path, given.code or None)


if __name__ == "__main__":
    main()
