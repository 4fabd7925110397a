"""Truncated files and files with a flipped bit: refused, then made again as the message says."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from outcomes import Outcome, recovery, refusal
from scratch import Scratch


def flip(path: Path) -> None:
    """Flips the lowest bit of a digit in the middle, so that the file remains well-formed."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    digits = [p for p in range(middle, len(content)) if 48 <= content[p] <= 57]
    content[digits[0] if digits else middle] ^= 1
    _overwrite(path, bytes(content))


def truncate(path: Path) -> None:
    """Removes the second half."""
    content = path.read_bytes()
    _overwrite(path, content[: len(content) // 2])


def _overwrite(path: Path, content: bytes) -> None:
    """Overwrites a file but keeps its dates, as a faulty disk would."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGES: dict[str, Callable[[Path], None]] = {"a bit flipped": flip, "cut short": truncate}

FILES = {
    "table of data (parquet)": "data/cola/train.parquet",
    "encoder (safetensors)": "models/encoder/model.safetensors",
    "teacher's weights (safetensors)": "models/trained/cola/full/seed0.safetensors",
    "record": "runs/cola/full/seed0.json",
    "table": "tables/glue.csv",
    "compact model (safetensors)": "llama/models/tiny/trained/gated-s0.4/seed0/model.safetensors",
    "compact model (structure)": "llama/models/tiny/trained/gated-s0.4/seed0/finegates.json",
    "seal": "tables/.glue.csv.sha256",
}


def damaged_files(folder: Path, whole: Scratch) -> Iterator[Outcome]:
    """Each kind of file, damaged in each way after its run has finished."""
    scratch = Scratch(folder, like=whole)
    for kind, name in FILES.items():
        path = scratch.results / name
        kept = path.with_name("kept")
        for damage, harm in DAMAGES.items():
            shutil.copy2(path, kept)
            harm(path)
            shutil.move(kept, folder / "kept")
            found, message = refusal(scratch, scratch.run(), Path(name).name.strip("."), "un again")
            shutil.move(folder / "kept", path)
            yield Outcome(f"{damage}, after the run", kind, "refuses", found, message)


def damage_made_good(folder: Path, whole: Scratch) -> Iterator[Outcome]:
    """Damages several files, deletes each as the message says, and runs the same command again."""
    scratch = Scratch(folder, like=whole)
    for name in ("data/cola/train.parquet", "runs/cola/full/seed0.json", "tables/glue.csv"):
        flip(scratch.results / name)
    scratch.run()
    for name in set(re.findall(r"Delete (\S+) and run again", scratch.printed)):
        (scratch.folder / name).unlink()
    found, message = recovery(scratch, whole, scratch.run())
    yield Outcome(
        "damaged files deleted as told", "data, record, table", "recovers", found, message
    )


def damage_met_by_a_job(folder: Path, whole: Scratch) -> Iterator[Outcome]:
    """Damages a record that only the job that reads it can notice."""
    scratch = Scratch(folder, like=whole)
    flip(scratch.results / "runs/cola/full/seed0.json")
    (scratch.results / "tables/glue.csv").unlink()
    snakemake = scratch.command()[-1].removeprefix("ARGS=").split()
    status = scratch.run(
        [".venv/bin/snakemake", "all", "--cores", "1", "--config", "tier=reduced.yaml", *snakemake]
    )
    found, message = refusal(scratch, status, "seed0.json", "Delete", "run again")
    if (scratch.results / "tables/glue.csv").exists():
        found = "makes a table of it"
    yield Outcome("a bit flipped, met by a job", "record", "refuses", found, message)
