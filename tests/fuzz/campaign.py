"""Feeds many inputs to every reader and tabulates the outcomes: ``make fuzz``.

    python tests/fuzz/campaign.py results/fuzz [number of processes]

There are two engines. Atheris follows code coverage in separate processes. Hypothesis replaces
values in place, so that more inputs pass the parser.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATHS = [str(HERE), str(HERE.parent), str(ROOT)]
sys.path[:0] = PATHS

INPUTS = {"atheris": 12_000, "hypothesis": 3_000}
"""Inputs for each reader."""

SECONDS = 30
"""An input that takes longer than this counts as a hang and as a crash."""

MEMORY_MIB = 4000
"""A process that uses more memory than this also counts as a crash."""


def by_coverage(name: str, inputs: int, folder: Path) -> dict[str, Any]:
    """Fuzzes a reader with Atheris."""
    counts = folder / f"{name}.json"
    command = [sys.executable, str(HERE / "targets.py"), name, f"-runs={inputs}", "-seed=1"]
    command += [f"-timeout={SECONDS}", f"-rss_limit_mb={MEMORY_MIB}"]
    done = _run([*command, f"-artifact_prefix={folder}/"], folder, counts)
    finished = re.search(r"Done (\d+) runs", done.stderr)
    return _row(name, "atheris", done, counts, int(finished[1]) if finished else 0)


def by_values(name: str, inputs: int, folder: Path) -> dict[str, Any]:
    """Feeds inputs of :func:`mutations.inputs` to a reader."""
    counts = folder / f"{name}.json"
    done = _run([sys.executable, str(Path(__file__)), "--one", name, str(inputs)], folder, counts)
    return _row(name, "hypothesis", done, counts, None)


ENGINES: dict[str, Callable[[str, int, Path], dict[str, Any]]] = {
    "atheris": by_coverage,
    "hypothesis": by_values,
}


def _run(command: list[str], folder: Path, counts: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])
    environment = {"COUNTS": str(counts), "PYTHONPATH": path, "TMPDIR": str(folder)}
    defaults = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        env={**defaults, **os.environ, **environment},
        capture_output=True,
        text=True,
        errors="replace",
    )
    done.seconds = time.monotonic() - start  # type: ignore[attr-defined]
    return done


def _row(
    name: str,
    engine: str,
    done: subprocess.CompletedProcess[str],
    counts: Path,
    inputs: int | None,
) -> dict[str, Any]:
    found = json.loads(counts.read_text()) if counts.is_file() else {"accepted": 0, "refused": 0}
    message = (done.stdout + done.stderr)[-3000:] if done.returncode else ""
    invalid = "AcceptedInvalid" in message
    return {
        "reader": name,
        "engine": engine,
        "inputs": found["accepted"] + found["refused"] if inputs is None else inputs,
        "accepted": found["accepted"],
        "refused": found["refused"],
        "seconds": round(done.seconds),  # type: ignore[attr-defined]
        "crashes": int(done.returncode != 0 and not invalid),
        "accepted invalid": int(invalid),
        "message": message,
    }


def one(name: str, inputs: int) -> None:
    """Runs Hypothesis on one reader in this process and writes its counts."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from mutations import inputs as mutated
    from targets import TARGETS

    target = TARGETS[name]()

    @settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @seed(1)
    @given(mutated(target))
    def every(content: bytes) -> None:
        target(content)

    every()
    written = json.dumps({"accepted": target.accepted, "refused": target.refused})
    Path(os.environ["COUNTS"]).write_text(written)


def main(folder: Path, processes: int) -> int:
    """Runs every reader under every engine and writes ``fuzz.csv`` and ``fuzz.md``."""
    import pandas as pd
    from targets import TARGETS

    from finegates.files import write_text
    from finegates.suite.runs.machine import hardware, package_versions

    jobs = [(engine, name) for engine in ENGINES for name in TARGETS]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(processes) as pool:

        def job(number: int, engine: str, name: str) -> dict[str, Any]:
            place = Path(scratch, str(number))
            place.mkdir()
            row = ENGINES[engine](name, INPUTS[engine], place)
            print(*(f"{key} {value}" for key, value in row.items() if value != ""), flush=True)
            return row

        rows = list(pool.map(lambda at: job(at[0], *at[1]), enumerate(jobs)))
    table = pd.DataFrame(rows).drop(columns="message")
    faults = int(table[["crashes", "accepted invalid"]].to_numpy().sum())
    versions = package_versions()
    write_text(folder / "fuzz.csv", table.to_csv(index=False))
    write_text(
        folder / "fuzz.md",
        "### Files that are wrong\n\n"
        + table.to_markdown(index=False)
        + f"\n\n{table['inputs'].sum():,} inputs, {faults} faults. Accepted and refused are as of "
        "the last hundred inputs. A crash is any other error than the documented refusal, more "
        f"than {SECONDS} s or {MEMORY_MIB} MiB, or an act that reading has no business with: a "
        "process, a connection, an unpickled object, code of the file's folder, a file written. "
        "Accepted invalid: what was read breaks a rule of its format. Python "
        f"{versions['python']}, transformers {versions['transformers']}, torch "
        f"{versions['torch']}, {hardware(1)['cpu']}.\n",
    )
    return faults


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        one(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
