"""What reads files of others, as functions of bytes: each takes any, and either reads a valid file
or refuses it with the error that its documentation names. Anything else escapes as a failure.

``python tests/fuzz/targets.py NAME -runs=25000`` fuzzes one by coverage (Atheris).
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["finegates", "yaml"]):
        import finegates.compaction
        import finegates.config
        import finegates.record
        import finegates.task_state
        import finegates.tasks.glue

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import finegates as fg
from finegates.compaction.serialize import (
    DIGEST,
    STRUCTURE,
    UNSIGNED_VERSION,
    CompactFormatError,
)
from finegates.config import CONFIG, ConfigError, load_tier
from finegates.record import RecordError, read_record
from finegates.task_state import TaskStateError, load_task, save_task
from finegates.tasks.glue import DataError, read_split, split_path
from records import make_record
from tiny import ARCHITECTURES


class Target:
    """Something that reads a file.

    Attributes:
        seeds: valid files, where mutations start.
        refusals: the errors that an invalid file may raise.
    """

    def __init__(
        self, seeds: list[bytes], refusals: type[Exception], read: Callable[[Path, bytes], Any]
    ) -> None:
        self.seeds = seeds
        self.refusals = refusals
        self._read = read

    def __call__(self, content: bytes) -> bool:
        """Whether the content was accepted. Whatever is no refusal passes through."""
        with tempfile.TemporaryDirectory(dir=_SHARED) as folder:
            before = _files(Path(folder).parent)
            try:
                self._read(Path(folder), content)
                accepted = True
            except self.refusals:
                accepted = False
            assert _files(Path(folder).parent) == before, "nothing is written elsewhere"
        return accepted


_SHARED = Path(tempfile.mkdtemp(prefix="fuzz"))


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def configuration() -> Target:
    """A tier's YAML file."""

    def read(folder: Path, content: bytes) -> None:
        (folder / "tier.yaml").write_bytes(content)
        tier = load_tier(folder / "tier.yaml", CONFIG / "experiments")
        assert tier.tasks
        assert tier.methods
        assert math.isfinite(sum(method.learning_rate for method in tier.methods.values()))

    small = b"""\
tier: t
description: d
results: results/t
seeds: [0]
runs_per_process: run
threads: 1
model: {name: m, path: folder}
data: {name: d, path: folder}
tasks: [cola]
training: {epochs: 1, batch_size: 8, max_length: 32}
methods:
  full: {experiment: full}
  gates: {experiment: reference, gates: {target: 0.4}}
"""
    return Target([small, (CONFIG / "local.yaml").read_bytes()], ConfigError, read)


def record() -> Target:
    """A run record."""

    def read(folder: Path, content: bytes) -> None:
        (folder / "r.json").write_bytes(content)
        found = read_record(folder / "r.json")
        assert math.isfinite(found.last.score)

    # Without a digest, as old records are: it would refuse every mutation at the door.
    unsigned = make_record(format_version=1)
    return Target([json.dumps(unsigned.model_dump()).encode()], RecordError, read)


def compact_model() -> Target:
    """The structure file of a saved compact model, its tensors untouched."""
    torch.manual_seed(0)
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_config(ARCHITECTURES["bert"]())
    fg.attach(model)
    with torch.no_grad():
        for layer in fg.gated_layers(model).values():
            for _, gate in layer.gates():
                for leaf in gate.leaves():
                    leaf.latent[::3] = -3.0
    saved = _SHARED / "model"
    fg.save(fg.compact(model), saved)
    tensors = (saved / "model.safetensors").read_bytes()

    def read(folder: Path, content: bytes) -> None:
        (folder / "model.safetensors").write_bytes(tensors)
        (folder / STRUCTURE).write_bytes(content)
        loaded = fg.load(folder)
        assert not any(p.is_meta for p in loaded.parameters())

    # Without its digest, as old ones are: it would refuse every mutation at the door.
    structure = json.loads((saved / STRUCTURE).read_text())
    del structure[DIGEST]
    unsigned = json.dumps({**structure, "version": UNSIGNED_VERSION}, indent=2)
    return Target([unsigned.encode()], CompactFormatError, read)


def table() -> Target:
    """A Parquet table of a task."""

    def read(folder: Path, content: bytes) -> None:
        path = split_path(folder, "cola", "train")
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        rows = read_split(folder, "cola", "train")
        assert rows.num_rows > 0
        assert set(rows["label"].to_pylist()) <= {0, 1}

    plain = pa.table({"sentence": ["a b", "c"], "label": pa.array([0, 1], pa.int64())})
    seeds = []
    for compression in ("none", "zstd"):
        sink = pa.BufferOutputStream()
        pq.write_table(plain, sink, compression=compression)
        seeds.append(sink.getvalue().to_pybytes())
    return Target(seeds, DataError, read)


def task_file() -> Target:
    """A saved task."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(ARCHITECTURES["bert"]())
    fg.attach(model)
    path = _SHARED / "task.safetensors"
    save_task(model, path)

    def read(folder: Path, content: bytes) -> None:
        (folder / "t.safetensors").write_bytes(content)
        load_task(model, folder / "t.safetensors")

    return Target([path.read_bytes()], TaskStateError, read)


TARGETS: dict[str, Callable[[], Target]] = {
    make.__name__: make for make in (configuration, record, compact_model, table, task_file)
}


def main(arguments: list[str]) -> None:
    """Fuzzes a target until libFuzzer's options end it."""
    name, *options = arguments
    target = TARGETS[name]()
    corpus = Path(tempfile.mkdtemp(prefix=f"corpus-{name}"))
    for place, seed in enumerate(target.seeds):
        (corpus / str(place)).write_bytes(seed)

    def once(content: bytes) -> None:
        target(content)

    longest = 4 * max(map(len, target.seeds))
    atheris.Setup([sys.argv[0], *options, f"-max_len={longest}", str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
