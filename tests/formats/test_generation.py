"""Generation settings: saved with a compact model, and checked on loading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from finegates.compaction import compact
from finegates.formats.compact import load, save
from finegates.formats.structure import CompactFormatError
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from support import tiny
from support.saved import edit, small_model


def generating_model(architecture: str) -> nn.Module:
    """A compact language model whose settings alone decide when ``generate`` stops."""
    model = attach(
        tiny.tiny_model(architecture, "language", seed=3), GateConfig(preset="reference")
    )
    tiny.scatter_gates(model)
    small = compact(model.eval())
    small.generation_config.update(eos_token_id=None, max_new_tokens=9)
    written = generated(small)[0].tolist()
    # The first token that differs from the one before it ends the sequence.
    places = [i for i in range(1, 10) if written[-i] not in written[:-i]]
    small.generation_config.update(eos_token_id=[written[-places[-1]], 39])
    return small


_WHISPER = {"layers": 1, "attention_heads": 3, "ffn_dim": 16}


def generated(model: nn.Module) -> torch.Tensor:
    torch.manual_seed(0)
    found: torch.Tensor = model.generate(tiny.tokens(1, 4)["input_ids"])
    return found


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_generate_says_the_same_after_loading(architecture: str, tmp_path: Path) -> None:
    small = generating_model(architecture)
    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert again.generation_config == small.generation_config
    expected = generated(small)
    assert torch.equal(generated(again), expected)
    edit(tmp_path / "small", lambda s: s.pop("generation_config"))
    earlier = load(tmp_path / "small")  # written before settings were saved
    assert generated(earlier).shape != expected.shape, "settings matter here"


def test_sampling_after_loading_draws_the_same_tokens(tmp_path: Path) -> None:
    small = generating_model("llama")
    settings = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}
    small.generation_config.update(**settings, eos_token_id=[39, 38])
    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert torch.equal(generated(again), generated(small))
    assert again.generation_config.eos_token_id == [39, 38]
    again.generation_config.save_pretrained(
        tmp_path / "stock"
    )  # transformers refuses inconsistent settings


def test_loaded_settings_may_be_written_again_where_those_of_transformers_may(
    tmp_path: Path,
) -> None:
    odd = {"temperature": 0.9}  # ignored without sampling; Llama 2 was published with it
    (tmp_path / "generation_config.json").write_text(json.dumps(odd))
    published = GenerationConfig.from_pretrained(tmp_path)
    small = generating_model("llama")
    small.generation_config = published
    save(small, tmp_path / "small")
    loaded = load(tmp_path / "small").generation_config

    def is_written(config: GenerationConfig) -> bool:
        try:
            config.save_pretrained(tmp_path / "stock")
        except ValueError:  # changed since it was loaded
            return False
        return True

    assert is_written(loaded) == is_written(published)
    loaded.temperature = 0.8
    assert not is_written(loaded)


def test_a_model_that_cannot_generate_has_no_settings_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    save(small_model(), folder)
    assert "generation_config" not in json.loads((folder / "finegates.json").read_text())
    edit(folder, lambda s: s.update(generation_config={"max_new_tokens": 3}))
    assert getattr(load(folder), "generation_config", None) is None


def test_a_class_with_a_generate_of_its_own_keeps_settings_of_its_own(tmp_path: Path) -> None:
    sizes = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in _WHISPER.items()}
    config = WhisperConfig(
        **sizes, vocab_size=40, d_model=12, num_mel_bins=4, pad_token_id=0, eos_token_id=2
    )
    model = attach(WhisperForConditionalGeneration(config), GateConfig(modules=("*.fc1",)))
    tiny.scatter_gates(model)
    small = compact(model.eval())
    small.generation_config.lang_to_id = {"<|de|>": 7}
    save(small, tmp_path / "small")
    assert load(tmp_path / "small").generation_config.lang_to_id == {"<|de|>": 7}
    edit(tmp_path / "small", lambda s: s["generation_config"].update(to_dict=1))
    with pytest.raises(CompactFormatError, match="'to_dict' is not a generation setting"):
        load(tmp_path / "small")


@pytest.fixture(scope="module")
def written_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "llama"
    save(generating_model("llama"), folder)
    return folder


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ([], "'generation_config' is not a"),
        ("max_new_tokens=3", "'generation_config' is not a"),
        ({"surprise": 1}, "'surprise' is not a generation setting"),
        ({"hidden_size": 12, "model_type": "llama"}, "'hidden_size' is not a generation setting"),
        ({"trust_remote_code": True}, "'trust_remote_code' is not a generation setting"),
        ({"attention_mask": [[1]]}, "'attention_mask' is not a generation setting"),
        ({"update": 1}, "'update' is not a generation setting"),
        ({"_from_model_config": True}, "'_from_model_config' is not a generation setting"),
        ({"transformers_version": 5}, "'transformers_version' is not a generation setting"),
        ({"eos_token_id": "two"}, "eos_token_id = 'two' is neither a token's number nor"),
        ({"eos_token_id": [1, "x"]}, r"eos_token_id = \[1, 'x'\] is neither a token's number nor"),
        ({"pad_token_id": 0.5}, "pad_token_id = 0.5 is neither"),
        ({"max_new_tokens": "many"}, "max_new_tokens = 'many' is not a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens = True is not a whole number"),
        ({"max_new_tokens": 0}, "must be greater than 0"),
        ({"temperature": "hot"}, "temperature = 'hot' is not a number"),
        ({"do_sample": "no"}, "do_sample = 'no' is neither true nor false"),
        ({"compile_config": {"mode": "default"}}, "compile_config"),
        ({"watermarking_config": {"a": 1}}, "generation_config: .*'a'"),
        ({"cache_implementation": "theirs"}, "theirs"),
    ],
)
def test_wrong_settings_of_generation_are_refused(
    settings: Any, reason: str, written_llama: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(written_llama, tmp_path / "small")
    edit(folder, lambda s: s.update(generation_config=settings))
    with pytest.raises(CompactFormatError, match=reason):
        load(folder)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("surprise", 1, "'surprise' is not a generation setting"),
        ("temperature", float("nan"), "generation_config cannot be written"),
        ("eos_token_id", torch.tensor([2]), "generation_config cannot be written"),
        ("do_sample", "no", "do_sample = 'no' is neither true nor false"),
    ],
)
def test_settings_of_generation_that_could_not_be_loaded_are_not_saved(
    name: str, value: Any, reason: str, written_llama: Path, tmp_path: Path
) -> None:
    small = load(written_llama)
    setattr(small.generation_config, name, value)
    with pytest.raises(ValueError, match=reason):
        save(small, tmp_path / "small")
    assert not list(tmp_path.iterdir())
