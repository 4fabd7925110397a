"""Models with trained values are not re-initialised by a class that wraps them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import EncoderDecoderConfig, EncoderDecoderModel, PreTrainedModel

from finegates.compaction import compact
from finegates.formats.compact import load, save
from finegates.formats.stock import uniform
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from support import tiny

ARCHITECTURES = sorted(tiny.ARCHITECTURES)


def small_model(architecture: str, variant: str = "language", **overrides: object) -> nn.Module:
    model = attach(
        tiny.tiny_model(architecture, variant, **overrides), GateConfig(preset="structured")
    )
    tiny.scatter_gates(model)
    return compact(model.eval())


def loaded(model: nn.Module, folder: Path) -> nn.Module:
    save(model, folder / "small")
    return load(folder / "small")


WAYS: dict[str, Callable[[nn.Module, Path], nn.Module]] = {
    "compact": lambda model, _: model,
    "loaded": loaded,
    "uniform": lambda model, _: uniform(model),
}


def numbers(model: nn.Module) -> dict[str, torch.Tensor]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def assert_unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = numbers(model)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


@pytest.mark.sampled
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_init_weights_changes_nothing(architecture: str, way: str, tmp_path: Path) -> None:
    model = WAYS[way](small_model(architecture), tmp_path)
    before = numbers(model)
    model.init_weights()  # type: ignore[operator]
    assert_unchanged(model, before)


@pytest.mark.sampled
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_class_that_takes_a_model_in_and_calls_post_init_leaves_it_alone(
    architecture: str, way: str, tmp_path: Path
) -> None:
    """The wrapper derives from the architecture's own base.

    GPT-2's base initialises every module that it finds by name.
    """
    model = WAYS[way](small_model(architecture), tmp_path)
    before = numbers(model)
    base = next(c for c in type(model).__mro__ if PreTrainedModel in c.__bases__)

    class Around(base):  # type: ignore[misc, valid-type]
        def __init__(self, inner: nn.Module) -> None:
            super().__init__(inner.config)
            self.inner = inner
            self.head = nn.Linear(2, 3)
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            super()._init_weights(module)
            if module is self.head:  # T5's in transformers 5.9 initialises no plain layer
                nn.init.constant_(module.bias, 7.0)

    around = Around(model)
    assert_unchanged(around.inner, before)
    assert bool((around.head.bias == 7.0).all()), "its own layers are initialised"


def test_an_encoder_decoder_takes_loaded_parts(tmp_path: Path) -> None:
    def part(name: str, variant: str, **overrides: object) -> nn.Module:
        return loaded(small_model("bert", variant, **overrides), tmp_path / name)

    decoder = {"is_decoder": True, "add_cross_attention": True}
    encoder, decoder_model = part("a", "base"), part("b", "language", **decoder)
    before = numbers(encoder)
    both = EncoderDecoderModel(encoder=encoder, decoder=decoder_model)
    assert isinstance(both.config, EncoderDecoderConfig)
    assert_unchanged(both.encoder, before)
    assert_unchanged(copy.deepcopy(both).encoder, before)


@pytest.mark.parametrize("architecture", ["t5", "bert", "gpt2"])
def test_a_weight_that_gates_have_untied_is_not_tied_by_initialising(
    architecture: str, tmp_path: Path
) -> None:
    head = {"t5": "lm_head", "bert": "cls.predictions.decoder", "gpt2": "lm_head"}[architecture]
    model = tiny.tiny_model(architecture, "language", tie_word_embeddings=True)
    attach(model, GateConfig(preset="reference", modules=(head,), train_biases=False))
    tiny.scatter_gates(model)
    small = compact(model.eval())
    for found in (small, loaded(small, tmp_path)):
        before = numbers(found)
        found.init_weights()  # type: ignore[operator]
        found.tie_weights()  # type: ignore[operator]
        assert_unchanged(found, before)
