"""A one-machine Slurm from Debian's slurm-wlm and munge, started and stopped by a test.

It needs root, because its daemons start jobs as the submitting user. It uses its own ports. Outside
the given folder it creates one link, because jobs look for the configuration only in its usual
place. If a configuration is there already, no cluster is started.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo")

USUAL_PLACE = Path("/etc/slurm/slurm.conf")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ctld}
SlurmdPort={slurmd}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# A job that uses more memory than it asked for is killed, within seconds.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
MinJobAge=86400
ReturnToService=2
MpiDefault=none
NodeName=localhost CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=test Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def unavailable() -> str | None:
    """Why no cluster can be started here, or None."""
    if os.geteuid() != 0:
        return "starting Slurm needs root"
    if USUAL_PLACE.exists() or USUAL_PLACE.is_symlink():
        return f"{USUAL_PLACE} exists: this machine belongs to a cluster"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)} (Debian: slurm-wlm, munge)" if missing else None


@contextmanager
def running(folder: Path, cpus: int = 2, memory_mb: int = 8000) -> Iterator[dict[str, str]]:
    """Starts the cluster and yields the environment variables for its commands."""
    folder.mkdir(parents=True)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    ports = _free_ports(2)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            folder=folder, ctld=ports[0], slurmd=ports[1], cpus=cpus, memory=memory_mb
        )
    )
    environment = {"SLURM_CONF": str(configuration)}
    USUAL_PLACE.parent.mkdir(parents=True, exist_ok=True)
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
    munge += [f"--key-file={key}", f"--pid-file={folder}/munged.pid"]
    munge += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"]
    with ExitStack() as stack:
        USUAL_PLACE.symlink_to(configuration)
        stack.callback(USUAL_PLACE.unlink)
        stack.enter_context(_daemon(munge, folder, environment))
        _wait(lambda: (folder / "munge.socket").exists(), "munged", folder)
        stack.enter_context(_daemon(["slurmctld", "-D", "-i"], folder, environment))
        stack.enter_context(_daemon(["slurmd", "-D", "-N", "localhost"], folder, environment))
        _wait(lambda: "idle" in _states(environment), "slurmd", folder)
        yield environment


@contextmanager
def _daemon(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    with (folder / f"{command[0]}.out").open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _states(environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.stdout


def _wait(ready: object, name: str, folder: Path, seconds: float = 60) -> None:
    assert callable(ready)
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            logs = "".join(p.read_text(errors="replace") for p in sorted(folder.glob("*.out")))
            raise TimeoutError(f"{name} is not ready after {seconds:.0f} s:\n{logs}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
