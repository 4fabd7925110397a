"""Pretrained models are data: no code that comes with one is executed."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from finegates.suite.config.load import ConfigError, configured_tier
from finegates.suite.models.pretrained import ModelError, load_pretrained
from support.tier import tiny_tier, write_encoder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An encoder with a Python file that leaves a trace if it is executed."""
    write_encoder(tmp_path / "encoder")
    mark = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    (tmp_path / "encoder" / "evil.py").write_text(code)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    # transformers asks whether to run code; a person or a script answers yes.
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 10))
    yield tmp_path / "encoder"
    assert not mark.exists(), "code of the folder was run"


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_encoder_is_loaded(folder):
    loaded = load_pretrained(AutoModelForSequenceClassification, folder, "m")
    assert loaded.config.model_type == "roberta"
    assert len(load_pretrained(AutoTokenizer, folder, "m")) > 5


@pytest.mark.parametrize("model_type", ["roberta", "evil"])
@pytest.mark.parametrize("auto_class", [AutoConfig, AutoModelForSequenceClassification])
def test_a_model_that_asks_for_code_of_its_own_is_refused(folder, model_type, auto_class):
    asked = {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}
    edit(folder / "config.json", auto_map=asked, model_type=model_type)
    with pytest.raises(ModelError, match=r"config\.json asks for code of its own \('auto_map'\)"):
        load_pretrained(auto_class, folder, "m")


def test_a_tokenizer_that_asks_for_code_of_its_own_is_refused(folder):
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    with pytest.raises(ModelError, match=r"tokenizer_config\.json asks for code of its own"):
        load_pretrained(AutoTokenizer, folder, "m")


def test_an_attention_function_from_elsewhere_is_refused(folder):
    edit(folder / "config.json", attn_implementation="someone/kernels")
    with pytest.raises(ModelError, match="'attn_implementation'"):
        load_pretrained(AutoConfig, folder, "m")


def test_weights_as_pickle_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"from \.safetensors files only"):
        load_pretrained(AutoModelForSequenceClassification, folder, "m")


@pytest.mark.parametrize("text", ["", "[]", "3", '{"model_type": []}', '{"model_type": "roberta"'])
def test_what_is_no_configuration_is_refused_with_its_folder(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=f"cannot load model 'm' from {folder}"):
        load_pretrained(AutoConfig, folder, "m")


@pytest.mark.parametrize("place", ["model", "llama.on_task.model", ""])
def test_the_configuration_refuses_trust_remote_code_with_the_reason(tmp_path, place):
    import yaml

    from support.causal_tier import llama_section

    raw = tiny_tier(tmp_path).model_dump(mode="json")
    raw["methods"] = {"full": {"experiment": "full"}}
    raw["llama"] = llama_section(tmp_path)
    section = raw
    for part in filter(None, place.split(".")):
        section = section[part]
    section["trust_remote_code"] = True
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match="trust_remote_code.*: code that comes with a model is"):
        configured_tier({"tier": str(path)})


def test_the_command_line_refuses_trust_remote_code_with_the_reason():
    with pytest.raises(ConfigError, match="code that comes with a model is never run"):
        configured_tier({"trust_remote_code": True})


def test_a_missing_folder_is_not_taken_for_a_hub_id(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"someone/model \(no such folder\)"):
        load_pretrained(AutoConfig, "someone/model", "m")
