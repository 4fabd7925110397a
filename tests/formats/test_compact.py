"""Compact models on disk: files, restored state, and folders of others."""

from __future__ import annotations

import json
import logging
from pathlib import Path

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

from finegates.compaction import compact
from finegates.formats import compact as serialize
from finegates.formats.compact import load, save, save_checkpoint
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from support import tiny
from support.saved import small_model


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
