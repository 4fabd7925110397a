"""Readers of the workflow's files: configurations, records and data."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from target import Target, must

from finegates.files import parse_json
from finegates.suite.config.llama_runs import posttraining_runs, pretraining_runs, pruning_runs
from finegates.suite.config.load import CONFIG, ConfigError, load_tier
from finegates.suite.config.tasks import TASKS, DataError
from finegates.suite.config.tier import Tier
from finegates.suite.data.glue import read_split, split_path
from finegates.suite.data.text import TextError, read_documents
from finegates.suite.runs.llama_record import read_causal_record
from finegates.suite.runs.record import read_record
from finegates.suite.runs.signed import RecordError
from support.records import make_causal_record, make_record


def check_tier(tier: Tier) -> None:
    """Raises AcceptedInvalid for a tier that would write elsewhere, or that has invalid numbers."""
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
    # The shipped files are ten times as long, and as slow to parse.
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
    """Whether the result contains all values of the file; omitted values have defaults."""
    if isinstance(raw, dict):
        return isinstance(found, dict) and all(k in found and _says(found[k], raw[k]) for k in raw)
    if isinstance(raw, list):
        return isinstance(found, list) and len(found) == len(raw) and all(map(_says, found, raw))
    return bool(found == raw) and isinstance(found, bool) == isinstance(raw, bool)


def record() -> Target:
    """A run record."""
    # Without a digest, like old records: a digest would reject every mutation immediately.
    return _record(make_record(format_version=1), read_record)


def causal_record() -> Target:
    """A record of a run on plain text."""
    old = make_causal_record("reference", experiment="posttraining", format_version=1)
    return _record(old, read_causal_record)


def table() -> Target:
    """A Parquet table of a task."""

    def read(folder: Path, content: bytes) -> Callable[[], None]:
        for task in ("cola", "stsb"):
            path = split_path(folder, task, "train")
            path.parent.mkdir(parents=True)
            path.write_bytes(content)

        def check() -> None:
            # Only one of the two is valid, so both are tried.
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
