"""What reads files of others, as functions of bytes: each takes any, and either reads a valid file
or refuses it with the error that its documentation names. Anything else escapes as a failure.

What is read is checked for what must hold of it, and what is done in reading is watched.
``python tests/fuzz/targets.py NAME -runs=25000`` fuzzes one by coverage (Atheris).
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["finegates", "yaml"]):
        import finegates.causal.record
        import finegates.causal.text
        import finegates.compaction
        import finegates.config
        import finegates.peft_gates
        import finegates.pretrained
        import finegates.record
        import finegates.task_state
        import finegates.tasks.glue

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save
from watch import watched

import finegates as fg
from finegates.causal.record import read_causal_record
from finegates.causal.study import posttraining_runs, pretraining_runs, pruning_runs
from finegates.causal.text import TextError, read_documents
from finegates.compaction.serialize import STRUCTURE, TENSORS, CompactFormatError
from finegates.compaction.serialize import _seal as seal
from finegates.config import CONFIG, ConfigError, load_tier
from finegates.files import parse_json
from finegates.peft_gates import ADAPTER_FILE, PeftGatesError
from finegates.pretrained import ModelError, load_pretrained
from finegates.record import RecordError, read_record
from finegates.schema import Tier
from finegates.task_state import TaskStateError, load_task, save_task, task_state
from finegates.tasks.glue import TASKS, DataError, read_split, split_path
from records import make_causal_record, make_record
from tiny import ARCHITECTURES


class AcceptedInvalid(AssertionError):
    """A file was read that does not hold what it must."""


def must(condition: bool, what: str) -> None:
    """Raises AcceptedInvalid unless the condition holds."""
    if not condition:
        raise AcceptedInvalid(what)


class Target:
    """Something that reads a file.

    Attributes:
        seeds: valid files, where mutations start.
        refusals: the errors that an invalid file may raise.
        tree: the format whose values, not only bytes, can be replaced: ``json``, ``yaml`` or None.
        accepted, refused: how often each happened.
    """

    def __init__(
        self,
        seeds: list[bytes],
        refusals: type[Exception],
        read: Callable[[Path, bytes], Callable[[], Any]],
        tree: str | None = None,
    ) -> None:
        self.seeds = seeds
        self.refusals = refusals
        self.tree = tree
        self.accepted = self.refused = 0
        self._read = read
        # What is imported late is imported now: an import does what reading must not.
        for seed in seeds:
            with tempfile.TemporaryDirectory(dir=_SHARED) as folder:
                read(Path(folder), seed)()

    def __call__(self, content: bytes) -> bool:
        """Whether the content was accepted. Whatever is no refusal passes through."""
        with tempfile.TemporaryDirectory(dir=_SHARED) as folder:
            reader = self._read(Path(folder), content)
            try:
                with watched():
                    reader()
            except self.refusals:
                self.refused += 1
                return False
        self.accepted += 1
        return True


_SHARED = Path(tempfile.mkdtemp(prefix="fuzz"))


def check_tier(tier: Tier) -> None:
    """Raises AcceptedInvalid for a tier that would write elsewhere, or with senseless numbers."""
    llama = bool(tier.llama)
    runs = [
        *(pretraining_runs(tier) if llama else []),
        *(posttraining_runs(tier) if llama else []),
        *(pruning_runs(tier) if llama else []),
    ]
    paths = [run.record(tier.results) for run in runs]
    paths += [
        f"{tier.results}/runs/{task}/{method}/seed{seed}.json"
        for task in tier.tasks
        for method in tier.methods
        for seed in tier.seeds
    ]
    must(bool(tier.tasks) and bool(tier.methods) and bool(tier.seeds), "nothing to do")
    must(len(set(paths)) == len(paths), "two runs have one path")
    root = PurePath(tier.results)
    for path in map(PurePath, paths):
        must(path.is_relative_to(root) and ".." not in path.parts, f"{path} leads elsewhere")
        must(len(path.parts) - len(root.parts) in (4, 6), f"{path} has parts of its own")
    must(bool(re.fullmatch(r"[\w.-]+", tier.tier)) and tier.tier not in (".", ".."), tier.tier)
    must(all(task in TASKS for task in tier.tasks), "an unknown task")
    for value in _numbers(tier.model_dump()):
        must(math.isfinite(value), "a number that is none")


def _numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        return [n for value in tree.values() for n in _numbers(value)]
    if isinstance(tree, list | tuple):
        return [n for value in tree for n in _numbers(value)]
    return [tree] if isinstance(tree, float) else []


def configuration() -> Target:
    """A tier's YAML file."""

    def read(folder: Path, content: bytes) -> Callable[[], None]:
        (folder / "tier.yaml").write_bytes(content)
        return lambda: check_tier(load_tier(folder / "tier.yaml", CONFIG / "experiments"))

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
    # The files that ship are ten times as long, and as slow to parse.
    llama = b"""\
llama:
  description: d
  text:
    {name: t, hub: a/b, revision: 0123456789012345678901234567890123456789, validation_documents: 5}
  pretraining:
    sizes: {s: {hidden: 8, layers: 1, heads: 2, feed_forward: 8, positions: 16}}
    tokenizer: {words: 50}
    training: &
    methods: {g: {title: G, targets: [0.4]}}
  posttraining:
    models: {m: {name: M, dense: s}}
    training: &
    methods: {g: {title: G, targets: [0.2]}}
    match: [g]
  step_benchmark: {batch_size: 1, length: 8}
""".replace(
        b"&", b"{steps: 4, length: 8, batch_size: 4, final_rate: 0.1, log_every: 2, eval_every: 2}"
    )
    return Target([small, small + llama], ConfigError, read, "yaml")


def _record(made: Any, reader: Callable[[Path], Any]) -> Target:
    def read(folder: Path, content: bytes) -> Callable[[], None]:
        path = folder / "r.json"
        path.write_bytes(content)

        def check() -> None:
            found = reader(path)
            raw = parse_json(content.decode())
            must(_says(found.model_dump(), raw), "the record says other than its file")
            must(0 <= found.realised_sparsity <= 1 and found.seed >= 0, "numbers out of range")
            must(".." not in (found.tier, found.method), "a name that climbs")

        return check

    return Target([json.dumps(made.model_dump()).encode()], RecordError, read, "json")


def _says(found: Any, raw: Any) -> bool:
    """Whether what was read holds all that the file does; what it leaves out has a default."""
    if isinstance(raw, dict):
        return isinstance(found, dict) and all(k in found and _says(found[k], raw[k]) for k in raw)
    if isinstance(raw, list):
        return isinstance(found, list) and len(found) == len(raw) and all(map(_says, found, raw))
    return bool(found == raw) and isinstance(found, bool) == isinstance(raw, bool)


def record() -> Target:
    """A run record."""
    return _record(make_record(), read_record)


def causal_record() -> Target:
    """A record of a run on plain text."""
    return _record(make_causal_record("reference", experiment="posttraining"), read_causal_record)


def _encoder() -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(ARCHITECTURES["bert"]())


def _saved_model() -> Path:
    folder = _SHARED / "model"
    if folder.exists():
        return folder
    model = _encoder()
    fg.attach(model)
    with torch.no_grad():
        for layer in fg.gated_layers(model).values():
            for _, gate in layer.gates():
                for leaf in gate.leaves():
                    leaf.latent[::3] = -3.0
    fg.save(fg.compact(model), folder)
    return folder


def compact_model() -> Target:
    """The structure file of a saved compact model, its tensors untouched: as it is, and with its
    digest made to fit, as someone who means harm would."""
    saved = _saved_model()
    tensors = (saved / TENSORS).read_bytes()
    sealed = json.loads((saved / STRUCTURE).read_text())

    def read(folder: Path, content: bytes) -> Callable[[], None]:
        for name, file in (("as it is", content), ("sealed", _sealed(content))):
            (folder / name).mkdir()
            (folder / name / TENSORS).write_bytes(tensors)
            (folder / name / STRUCTURE).write_bytes(file)

        def check() -> None:
            refusal = None
            try:
                fg.load(folder / "as it is")
            except CompactFormatError as error:
                refusal = error
            else:
                must(parse_json(content.decode()) == sealed, "a structure that was changed")
            loaded = fg.load(folder / "sealed")
            must(not any(p.is_meta for p in loaded.parameters()), "a tensor without storage")
            if refusal:
                raise refusal

        return check

    return Target([(saved / STRUCTURE).read_bytes()], CompactFormatError, read, "json")


def _sealed(content: bytes) -> bytes:
    try:
        structure = parse_json(content.decode())
        return json.dumps({**structure, "structure_sha256": seal(structure)}).encode()
    except (ValueError, TypeError):
        return content


def compact_tensors() -> Target:
    """The tensor file of a saved compact model, its digest made to fit."""
    import hashlib

    saved = _saved_model()
    structure = json.loads((saved / STRUCTURE).read_text())

    def read(folder: Path, content: bytes) -> Callable[[], None]:
        (folder / TENSORS).write_bytes(content)
        described = {**structure, "tensors_sha256": hashlib.sha256(content).hexdigest()}
        (folder / STRUCTURE).write_bytes(_sealed(json.dumps(described).encode()))

        def check() -> None:
            loaded = fg.load(folder)
            with torch.no_grad():
                loaded(input_ids=torch.arange(4)[None])

        return check

    return Target([(saved / TENSORS).read_bytes()], CompactFormatError, read)


def table() -> Target:
    """A Parquet table of a task."""

    def read(folder: Path, content: bytes) -> Callable[[], None]:
        for task in ("cola", "stsb"):
            path = split_path(folder, task, "train")
            path.parent.mkdir(parents=True)
            path.write_bytes(content)

        def check() -> None:
            # One of the two fits; both are tried.
            refusals = []
            for task in ("cola", "stsb"):
                try:
                    rows = read_split(folder, task, "train")
                except DataError as error:
                    refusals.append(error)
                    continue
                labels = rows["label"].to_pylist()
                must(rows.num_rows > 0, "no rows")
                must(all(0 <= label <= 5 for label in labels), "labels out of range")
                must(task == "stsb" or set(labels) <= {0, 1}, "labels of another task")
                texts = [t for c in TASKS[task].columns for t in rows[c].to_pylist()]
                must(all(isinstance(text, str) for text in texts), "a text that is none")
            if len(refusals) == 2:
                raise refusals[0]

        return check

    cola = pa.table({"sentence": ["a b", "c"], "label": pa.array([0, 1], pa.int64())})
    stsb = pa.table({"sentence1": ["a b"], "sentence2": ["c"], "label": pa.array([2.5])})
    seeds = []
    for plain, compression in ((cola, "none"), (cola, "zstd"), (stsb, "none")):
        sink = pa.BufferOutputStream()
        pq.write_table(plain, sink, compression=compression)
        seeds.append(sink.getvalue().to_pybytes())
    return Target(seeds, DataError, read)


def text() -> Target:
    """Plain text as a UTF-8 file or as a Parquet column."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["a b", "c"]}), sink, compression="none")

    def read(folder: Path, content: bytes) -> Callable[[], None]:
        suffix = ".parquet" if content.startswith(b"PAR1") else ".txt"
        path = folder / f"train{suffix}"
        path.write_bytes(content)

        def check() -> None:
            documents = read_documents(path)
            must(bool(documents), "no documents")
            for document in documents:
                must(isinstance(document, str) and not document.isspace(), "an empty document")
                document.encode()

        return check

    seeds = [sink.getvalue().to_pybytes(), "a b\n\nc ä\n".encode()]
    return Target(seeds, TextError, read)


def task_file() -> Target:
    """A saved task."""
    model = _encoder()
    fg.attach(model)
    path = _SHARED / "task.safetensors"
    save_task(model, path)
    saved = {name: tensor.detach().clone() for name, tensor in task_state(model).items()}

    def read(folder: Path, content: bytes) -> Callable[[], None]:
        (folder / "t.safetensors").write_bytes(content)

        def check() -> None:
            load_task(model, folder / "t.safetensors")
            found = task_state(model)
            must(all(torch.equal(found[k], saved[k]) for k in saved), "other numbers")

        return check

    return Target([path.read_bytes()], TaskStateError, read)


def adapter() -> Target:
    """An adapter with gates of the library peft."""
    model = _encoder()
    path = "bert.encoder.layer.0.intermediate.dense"
    rows, columns = model.get_submodule(path).weight.shape
    state = {
        f"base_model.model.{path}.finegates_rows": torch.linspace(-2, 2, rows),
        f"base_model.model.{path}.finegates_columns": torch.linspace(-2, 2, columns),
        "base_model.model.classifier.bias": torch.zeros(2),
    }

    def read(folder: Path, content: bytes) -> Callable[[], None]:
        (folder / ADAPTER_FILE).write_bytes(content)

        def check() -> None:
            fg.detach(fg.attach_from_peft(model, folder))
            must(bool(model.classifier.bias.isfinite().all()), "a bias that is no number")

        return check

    return Target([save(state)], PeftGatesError, read)


def model_configuration() -> Target:
    """The ``config.json`` of a pretrained model's folder."""
    from transformers import AutoConfig

    def read(folder: Path, content: bytes) -> Callable[[], None]:
        (folder / "config.json").write_bytes(content)

        def check() -> None:
            found = load_pretrained(AutoConfig, folder, "m")
            must(not hasattr(found, "auto_map"), "code of its own")

        return check

    seed = _encoder().config.to_json_string().encode()
    return Target([seed], ModelError, read, "json")


TARGETS: dict[str, Callable[[], Target]] = {
    make.__name__: make
    for make in (
        configuration, record, causal_record, compact_model, compact_tensors, table, text,
        task_file, adapter, model_configuration,
    )
}  # fmt: skip


def main(arguments: list[str]) -> None:
    """Fuzzes a target until libFuzzer's options end it; ``COUNTS`` names a file for its counts."""
    name, *options = arguments
    target = TARGETS[name]()
    corpus = Path(tempfile.mkdtemp(prefix=f"corpus-{name}"))
    for place, seed in enumerate(target.seeds):
        (corpus / str(place)).write_bytes(seed)
    counts = os.environ.get("COUNTS")

    def once(content: bytes) -> None:
        target(content)
        # libFuzzer ends the process without a word to Python.
        if counts and (target.accepted + target.refused) % 100 == 0:
            written = json.dumps({"accepted": target.accepted, "refused": target.refused})
            Path(counts).write_text(written)

    longest = 4 * max(map(len, target.seeds))
    atheris.Setup([sys.argv[0], *options, f"-max_len={longest}", str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
