"""Compact folders that are wrong: load names the file, the place and the reason."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finegates.adapters import adapter_for
from finegates.compaction import compact
from finegates.formats.compact import load, save
from finegates.formats.structure import CompactFormatError
from finegates.gates.attachment import attach, attach_fixed
from finegates.gates.config import GateConfig
from support import tiny
from support.saved import edit, edit_tensors, seal


def first_layer(structure: dict[str, Any]) -> dict[str, Any]:
    layer: dict[str, Any] = next(iter(structure["layers"].values()))
    return layer


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def another_number(folder: Path) -> None:
    text = (folder / "finegates.json").read_text()
    assert '"layer_norm_eps": 1e-12' in text
    (folder / "finegates.json").write_text(
        text.replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-02')
    )


ROWS = "roberta.encoder.layer.0.attention.self.query.rows"
WEIGHT = "roberta.encoder.layer.0.attention.self.query.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no structure": (lambda f: (f / "finegates.json").unlink(), "finegates.json is missing"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "not json": (lambda f: (f / "finegates.json").write_text("{"), "not JSON"),
    "not utf-8": (lambda f: (f / "finegates.json").write_bytes(b"\xff\xfe{"), "not JSON"),
    "a list": (lambda f: (f / "finegates.json").write_text("[]"), "not of the format"),
    "foreign": (lambda f: edit(f, lambda s: s.update(format="other")), "not of the format"),
    "newer version": (lambda f: edit(f, lambda s: s.update(version=99)), "version 99"),
    "older version": (lambda f: edit(f, lambda s: s.update(version=2)), "version 2"),
    "no absent modules": (lambda f: edit(f, lambda s: s.pop("absent")), "'absent'"),
    "no version": (lambda f: edit(f, lambda s: s.pop("version")), "version None"),
    "no digest": (lambda f: edit(f, lambda s: s.pop("tensors_sha256")), "'tensors_sha256'"),
    "another number": (another_number, "finegates.json is corrupt"),
    "flipped bit": (flip, "corrupt: its SHA-256"),
    "truncated": (truncate, "corrupt: its SHA-256"),
    "truncated, digest renewed": (lambda f: (truncate(f), seal(f)), "cannot be read"),
    "class of torch": (lambda f: edit(f, lambda s: s.update({"class": "Linear"})), "'Linear'"),
    "function of transformers": (
        lambda f: edit(f, lambda s: s.update({"class": "pipeline"})),
        "'pipeline' is not a model",
    ),
    "class of another type": (
        lambda f: edit(f, lambda s: s.update({"class": "BertModel"})),
        "'BertModel' is not a model that transformers knows for type 'roberta'",
    ),
    "unknown type": (
        lambda f: edit(f, lambda s: s["config"].update(model_type="none such")),
        "'none such'",
    ),
    "type is not a string": (
        lambda f: edit(f, lambda s: s["config"].update(model_type=["roberta"])),
        "not a name",
    ),
    "another hidden size": (
        lambda f: edit(f, lambda s: s["config"].update(hidden_size=24)),
        "do not fit its 3 heads",
    ),
    "impossible configuration": (
        lambda f: edit(f, lambda s: s["config"].update(hidden_size="wide")),
        "does not describe a model",
    ),
    "layer that does not exist": (
        lambda f: edit(f, lambda s: s["layers"].update({"a.b": first_layer(s)})),
        "does not describe a model",
    ),
    "negative size": (
        lambda f: edit(f, lambda s: first_layer(s).update(kept_in=-1)),
        "does not describe a model",
    ),
    "size missing": (
        lambda f: edit(f, lambda s: first_layer(s).pop("kept_in")),
        "does not describe a model",
    ),
    "missing tensor": (lambda f: edit_tensors(f, lambda t: t.pop(WEIGHT)), f"{WEIGHT} is missing"),
    "tensor too many": (
        lambda f: edit_tensors(f, lambda t: t.update(more=torch.zeros(1))),
        "more is stored, but the model does not have it",
    ),
    "another shape": (
        lambda f: edit_tensors(f, lambda t: t.update({WEIGHT: t[WEIGHT][:-1].clone()})),
        "has shape",
    ),
    "another kind": (
        lambda f: edit_tensors(f, lambda t: t.update({WEIGHT: t[WEIGHT].long()})),
        "is torch.int64",
    ),
    "index out of range": (
        lambda f: edit_tensors(f, lambda t: t[ROWS].add_(100)),
        "does not increase strictly",
    ),
    "alias to nowhere": (
        lambda f: edit(f, lambda s: s["aliases"].update({WEIGHT: "nowhere"})),
        "missing",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(folder: Path, damage: str) -> None:
    load(folder)  # valid before
    harm, reason = DAMAGES[damage]
    harm(folder)
    with pytest.raises(CompactFormatError, match=reason) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert caught.value.folder == folder


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CompactFormatError, match="not a folder"):
        load(tmp_path / "nowhere")


def test_a_configuration_cannot_ask_for_code(folder: Path) -> None:
    def ask(structure: dict[str, Any]) -> None:
        structure["attention"] = "someone/some-kernel"
        structure["config"]["auto_map"] = {"AutoModel": "evil.py--Evil"}
        structure["config"]["_attn_implementation"] = "someone/some-kernel"
        structure["config"]["attn_implementation"] = "someone/some-kernel"

    edit(folder, ask)
    model = load(folder)
    assert model.config._attn_implementation in ("sdpa", "eager")
    assert not hasattr(model.config, "auto_map")


def head_entry(structure: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = next(iter(structure["heads"].values()))
    return entry


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h: h.update(width=0), "head sizes are inconsistent"),
        (lambda h: h.update(width=h["width"] + 2), "head sizes are inconsistent"),
        (lambda h: h.update(width="2"), "does not describe a model"),
        (lambda h: h.update(heads=h["heads"][::-1]), "head sizes are inconsistent"),
        (lambda h: h.update(groups=h["groups"][:-1]), "head sizes are inconsistent"),
        (lambda h: h["heads"].__setitem__(-1, 99), "do not fit its 4 heads"),
        (lambda h: h.update(head_dim=8), "do not fit its 4 heads"),
        (lambda h: h.update(pairs=None, width=6), "outputs, its heads need"),
        (lambda h: h.update(pairs=None), "is stored, but the model does not have it"),
        (lambda h: h.update(pairs=[[9] * (h["width"] // 2)] * 2), "head sizes are inconsistent"),
        (lambda h: h.update(fused=not h["fused"]), "does not describe a model"),
        (lambda h: h.update(surprise=1), "does not describe a model"),
    ],
)
def test_wrong_head_sizes_are_refused(
    change: Callable[[dict[str, Any]], object], reason: str, tmp_path: Path
) -> None:
    model = attach(tiny.tiny_model("llama", "language"), GateConfig(preset="structured"))
    for part in model.finegates_structure:
        if hasattr(part, "heads"):
            part.heads.latent.data[:] = torch.tensor([1.0, -1.0, 1.0, 1.0])
            part.scores.latent.data[:] = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 1.0])
            part.values.latent.data[::3] = -1.0
            part.values.latent.data[1::3] = -1.0
    save(compact(model.eval()), tmp_path / "small")
    edit(tmp_path / "small", lambda s: change(head_entry(s)))
    with pytest.raises(CompactFormatError, match=reason):
        load(tmp_path / "small")


def test_heads_of_what_is_no_attention_are_refused(tmp_path: Path) -> None:
    model = attach(tiny.tiny_model("llama"), GateConfig(preset="structured"))
    tiny.scatter_gates(model)
    save(compact(model.eval()), tmp_path / "small")
    edit(tmp_path / "small", lambda s: s["heads"].update({"model.norm": head_entry(s)}))
    with pytest.raises(CompactFormatError, match="model.norm is not an attention"):
        load(tmp_path / "small")


def irregular_llama() -> nn.Module:
    """A compact Llama without its second head; its two groups keep different rotated pairs."""
    model = tiny.tiny_model("llama", "language")
    gates = {}
    for block in adapter_for(model).blocks(model):
        for part in block.attentions:
            queries, values, contexts = torch.ones(4, 6), torch.ones(2, 6), torch.ones(4, 6)
            queries[:2, [0, 3]] = 0
            queries[2:, [1, 4]] = 0
            values[:, :2] = 0
            contexts[1] = 0
            gates[part.q] = (queries.flatten(), None)
            gates[part.v] = (values.flatten(), None)
            gates[part.o] = (None, contexts.flatten())
    return compact(attach_fixed(model, gates).eval())


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("groups", [0, 0, 1]),
        ("groups", [0, 1, 2]),
        ("dimensions", [[0, 2, 3, 5], [0, 2, 3, 5]]),
        ("dimensions", [[1, 2, 4, 6], [0, 2, 3, 5]]),
        ("of_head", [0, 0, 1]),
        ("of_head", [0, 1, -1]),
    ],
)
def test_stored_indices_that_the_head_sizes_do_not_imply_are_refused(
    name: str, wrong: list[Any], tmp_path: Path
) -> None:
    save(irregular_llama(), tmp_path / "small")
    load(tmp_path / "small")  # valid before
    place = f"model.layers.1.self_attn.{name}"
    edit_tensors(tmp_path / "small", lambda t: t[place].copy_(torch.tensor(wrong)))
    with pytest.raises(CompactFormatError, match=f"tensor {place} has other indices than"):
        load(tmp_path / "small")


@pytest.mark.parametrize("value", [None, "relu", 1e-5])
@pytest.mark.parametrize("key", ["hidden_act", "layer_norm_eps", "chunk_size_feed_forward"])
def test_a_structure_with_one_value_changed_is_refused(folder: Path, key: str, value: Any) -> None:
    text = (folder / "finegates.json").read_text()
    structure = json.loads(text)
    structure["config"][key] = value
    (folder / "finegates.json").write_text(json.dumps(structure))
    with pytest.raises(CompactFormatError, match=r"finegates.json is corrupt"):
        load(folder)
    (folder / "finegates.json").write_text(json.dumps(json.loads(text)))  # only whitespace differs
    load(folder)


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_labels", "vocab_size"])
@pytest.mark.parametrize("value", [2**20, 10**9, 2**70])
def test_a_description_of_a_giant_is_refused_at_once(folder: Path, key: str, value: int) -> None:
    edit(folder, lambda structure: structure["config"].update({key: value}))
    start = time.perf_counter()
    with pytest.raises(CompactFormatError):
        load(folder)
    assert time.perf_counter() - start < 20
