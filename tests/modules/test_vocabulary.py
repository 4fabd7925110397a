"""Resized vocabularies: the logits of remaining tokens do not change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finegates.compaction import CompactLinear, CostModel, compact, use_products
from finegates.formats.compact import load, save
from finegates.formats.stock import uniform
from finegates.gates.attachment import attach, attach_fixed
from finegates.gates.config import GateConfig
from finegates.gates.gated_linear import GatedLinear
from support import tiny

HEADS = tiny.OUTPUT_LAYERS
TIED = [(name, tied) for name in HEADS for tied in (True, False) if name != "t5" or tied]


def language_model(architecture: str, tied: bool = True, **overrides: object) -> nn.Module:
    return tiny.tiny_model(architecture, "language", tie_word_embeddings=tied, **overrides)


def gated(architecture: str, tied: bool) -> nn.Module:
    model = attach(
        language_model(architecture, tied),
        GateConfig(preset="reference", modules=(HEADS[architecture],), train_biases=False),
    )
    tiny.scatter_gates(model, 0)
    return model.eval()


def fast(architecture: str, tied: bool) -> nn.Module:
    model = language_model(architecture, tied, dtype=torch.float32)
    attach(model, GateConfig(preset="structured"))
    tiny.scatter_gates(model, 0)
    return use_products(compact(model.eval()), CostModel(onednn_from=1))


def small(architecture: str, tied: bool) -> nn.Module:
    return compact(gated(architecture, tied))


MAKERS = {"gated": gated, "other products": fast, "compact": small}


@torch.no_grad()
def logits(model: nn.Module, tokens: int) -> Tensor:
    """Logits of the first tokens, after a text of tokens that always remain."""
    inputs = tiny.tokens()
    inputs["input_ids"] = 3 + inputs["input_ids"] % 30
    return tiny.output(model.eval(), inputs)[..., :tokens]


@pytest.mark.sampled
@pytest.mark.parametrize("size", [tiny.VOCABULARY + 5, tiny.VOCABULARY - 3])
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(("architecture", "tied"), TIED)
def test_tokens_that_stay_keep_their_logits(
    architecture: str, tied: bool, kind: str, size: int, tmp_path: Path
) -> None:
    model = MAKERS[kind](architecture, tied)
    same = min(size, tiny.VOCABULARY)
    expected = logits(model, same)
    head = model.get_output_embeddings()  # type: ignore[operator]
    model.resize_token_embeddings(size)  # type: ignore[operator]
    after = model.get_output_embeddings()  # type: ignore[operator]
    assert type(after) is type(head)
    assert logits(model, size).shape[-1] == size
    if size > tiny.VOCABULARY:
        assert (logits(model, size)[..., tiny.VOCABULARY :] != 0).all(), "new tokens are open"
    close = {"rtol": 0, "atol": 1e-5 if kind == "other products" else 1e-12}
    assert torch.allclose(logits(model, same), expected, **close)
    if kind == "gated":
        again = compact(model)
        assert torch.allclose(logits(again, same), expected, **close)
        return
    save(model, tmp_path / "small")
    assert torch.equal(logits(load(tmp_path / "small"), size), logits(model, size))


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("llama", False)])
def test_the_products_of_a_resized_output_layer_are_what_they_were(
    architecture: str, tied: bool
) -> None:
    model = fast(architecture, tied)
    model.resize_token_embeddings(50)  # type: ignore[operator]
    head = model.get_output_embeddings()  # type: ignore[operator]
    assert isinstance(head, CompactLinear)
    assert (head.onednn_from, head.out_features, head.dense_shape[0]) == (1, 50, 50)
    assert (head.weight is model.get_input_embeddings().weight) == tied  # type: ignore[operator]


def test_new_tokens_are_open_and_old_gates_what_they_were() -> None:
    model = gated("llama", False)
    head = model.get_output_embeddings()  # type: ignore[operator]
    assert isinstance(head, GatedLinear)
    assert head.rows is not None
    before, latent = head.rows.value().detach().clone(), head.rows.latent
    model.resize_token_embeddings(tiny.VOCABULARY + 4)  # type: ignore[operator]
    assert model.get_output_embeddings() is head  # type: ignore[operator]
    assert head.rows.latent is latent, "an optimizer may have it"
    assert torch.equal(head.rows.value()[: tiny.VOCABULARY], before)
    assert (head.rows.value()[tiny.VOCABULARY :] > 0.95).all()
    model.train()
    tiny.output(model, tiny.tokens()).sum().backward()
    assert latent.grad is not None
    assert latent.grad.shape == (tiny.VOCABULARY + 4,)


def test_fixed_gates_grow_too() -> None:
    rows = torch.ones(tiny.VOCABULARY)
    rows[::3] = 0
    model = attach_fixed(language_model("gpt2", False), {"lm_head": (rows, None)}).eval()
    expected = logits(model, tiny.VOCABULARY)
    model.resize_token_embeddings(tiny.VOCABULARY + 2)  # type: ignore[operator]
    assert torch.equal(logits(model, tiny.VOCABULARY), expected)
    assert (logits(model, tiny.VOCABULARY + 2)[..., tiny.VOCABULARY :] != 0).any()


def test_asking_for_no_other_size_changes_nothing() -> None:
    for make in MAKERS.values():
        model = make("llama", False)
        head = model.get_output_embeddings()  # type: ignore[operator]
        expected = logits(model, tiny.VOCABULARY)
        model.resize_token_embeddings()  # type: ignore[operator]
        model.resize_token_embeddings(tiny.VOCABULARY)  # type: ignore[operator]
        assert model.get_output_embeddings() is head  # type: ignore[operator]
        assert torch.equal(logits(model, tiny.VOCABULARY), expected)


def test_a_resized_compact_model_has_a_stock_model() -> None:
    model = small("llama", False)
    model.resize_token_embeddings(tiny.VOCABULARY + 5)  # type: ignore[operator]
    found, expected = (logits(m, tiny.VOCABULARY + 5) for m in (uniform(model), model))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_an_output_layer_with_an_adapter_is_refused_before_anything_changes() -> None:
    from peft import LoraConfig, get_peft_model

    model = language_model("llama", False)
    get_peft_model(model, LoraConfig(target_modules=["lm_head"]))  # type: ignore[arg-type]
    attach(model, GateConfig(preset="reference", modules=("lm_head",)))
    with pytest.raises(ValueError, match=r"lm_head contains Linear.*merge adapters first"):
        model.resize_token_embeddings(50)  # type: ignore[operator]
    assert model.get_input_embeddings().weight.shape[0] == tiny.VOCABULARY  # type: ignore[operator]
