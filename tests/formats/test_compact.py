"""Compact models on disk: files, restored state, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertModel,
    DebertaV2Model,
    GPT2Model,
    LlamaModel,
    Mamba2Config,
    Mamba2ForCausalLM,
    MistralModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Model,
    Qwen3ForCausalLM,
    RobertaForSequenceClassification,
    T5Model,
)

from finegates.adapters import adapter_for
from finegates.compaction import compact
from finegates.formats import compact as serialize
from finegates.formats.compact import load, save, save_checkpoint
from finegates.formats.structure import CompactFormatError
from finegates.gates.attachment import attach, attach_fixed
from finegates.gates.config import GateConfig
from support import tiny
from support.saved import edit, edit_tensors, seal, small_model


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "small"
    save(small_model(), folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "small")


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


def test_files_of_others_are_ignored_by_load_and_kept_by_save(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("a")
    model = load(folder)
    save(model, folder)
    assert (folder / "tokenizer.json").read_text() == "{}"
    assert (folder / "notes" / "a.txt").read_text() == "a"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["small"], "nothing left aside"


@pytest.mark.parametrize("trainers", [False, True])
def test_from_pretrained_refuses_a_compact_folder_before_it_makes_a_model(
    trainers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.joinpath("small").mkdir()
    (save_checkpoint if trainers else save)(small_model(), tmp_path / "small")

    def made(*_: object, **__: object) -> None:
        raise AssertionError("a model of default sizes is made")

    monkeypatch.setattr(PreTrainedModel, "__init__", made)
    for auto in (AutoModel, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="finegates-compact"):
            auto.from_pretrained(tmp_path / "small")
    for kind in (
        *(BertModel, RobertaForSequenceClassification, DebertaV2Model, T5Model, GPT2Model),
        *(LlamaModel, MistralModel, Qwen2Model, Qwen3ForCausalLM),
    ):
        with pytest.raises(Exception, match=r"a compact model: finegates\.load\(folder\) reads it"):
            kind.from_pretrained(tmp_path / "small")


def test_a_tokenizer_in_the_folder_is_read_without_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = Tokenizer(WordLevel({"<unk>": 0, "one": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert AutoTokenizer.from_pretrained(folder)("one")["input_ids"] == [1]
    assert not caplog.records


def test_a_folder_without_a_signpost_is_read_and_gets_one(folder: Path) -> None:
    expected = (folder / "config.json").read_text()
    (folder / "config.json").unlink()
    model = load(folder)
    save(model, folder)
    assert (folder / "config.json").read_text() == expected


def test_a_configuration_of_others_is_kept_by_save_and_replaced_in_a_trainers_folder(
    folder: Path,
) -> None:
    model = load(folder)
    model.config.save_pretrained(folder)  # type: ignore[operator, union-attr]
    theirs = (folder / "config.json").read_text()
    assert json.loads(theirs)["model_type"] == "roberta"
    save(model, folder)
    assert (folder / "config.json").read_text() == theirs
    save_checkpoint(model, folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "finegates-compact"


def test_save_is_reproducible(folder: Path, written: Path) -> None:
    save(load(folder), folder)
    for name in ("finegates.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (written / name).read_bytes()


def test_a_folder_of_others_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(FileExistsError, match="not an earlier finegates save"):
            save(small_model(), tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine"]
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_interrupted_save_leaves_the_earlier_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "model.safetensors").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    model = load(folder)
    monkeypatch.setattr(serialize, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(model, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [p.name for p in folder.parent.iterdir()] == ["small"]


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no compact layers"):
        save(tiny.tiny_model("roberta"), tmp_path / "a")
    with pytest.raises(ValueError, match="no config"):
        save(nn.Linear(2, 2), tmp_path / "a")

    changed = small_model()
    changed.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"extra\.weight"):
        save(changed, tmp_path / "a")

    class Own(type(small_model())):  # type: ignore[misc]
        pass

    own = small_model()
    own.__class__ = Own
    with pytest.raises(ValueError, match="'Own' is not a model"):
        save(own, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    small = small_model("language")
    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    embedding = again.get_input_embeddings().weight
    assert again.get_output_embeddings().weight is embedding
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert sum(t.shape == embedding.shape for t in stored.values()) == 1
    assert torch.equal(tiny.output(again, tiny.tokens()), tiny.output(small, tiny.tokens()))


def test_buffers_outside_the_state_dict_come_back(tmp_path: Path) -> None:
    small = small_model()
    outside = dict(small.named_buffers()).keys() - small.state_dict().keys()
    assert outside, "the architecture has some"
    save(small, tmp_path / "small")
    again = dict(load(tmp_path / "small").named_buffers())
    for name, buffer in small.named_buffers():
        assert torch.equal(again[name], buffer)
        assert again[name].dtype == buffer.dtype


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_and_attention_come_back(
    attention: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    small = small_model(_attn_implementation=attention).to(dtype)
    small.config.id2label = {0: "no", 1: "yes"}
    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert again.dtype == dtype
    assert again.config._attn_implementation == attention
    assert again.config.id2label == {0: "no", 1: "yes"}
    assert torch.equal(tiny.output(again, tiny.tokens()), tiny.output(small, tiny.tokens()))


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


def test_a_configuration_may_hold_numbers_that_json_has_not(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_heads": 4, "head_dim": 8, "state_size": 4, "n_groups": 1}
    config = Mamba2Config(**sizes, num_hidden_layers=1, vocab_size=20)
    assert config.time_step_limit[1] == float("inf")
    model = attach(Mamba2ForCausalLM(config), GateConfig(modules=("*out_proj",))).eval()
    small = compact(model)
    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert list(again.config.time_step_limit) == [0.0, float("inf")]  # type: ignore[union-attr]
    ids = torch.arange(6)[None]
    assert torch.equal(again(ids).logits, small(ids).logits)
