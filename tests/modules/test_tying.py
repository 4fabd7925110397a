"""Gates on an output layer that shares its weight with the embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from finegates.compaction import compact
from finegates.formats.compact import load, save
from finegates.formats.stock import NotUniformError, uniform
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.detachment import detach
from finegates.modules.tying import shares_embeddings
from finegates.training.trainer import GateTrainer
from support import tiny

HEADS = tiny.OUTPUT_LAYERS


def tied_model(architecture: str) -> nn.Module:
    model = tiny.tiny_model(architecture, "language", tie_word_embeddings=True)
    assert shares_embeddings(model)
    return model


def gated_model(architecture: str) -> nn.Module:
    model = attach(
        tied_model(architecture), GateConfig(modules=(HEADS[architecture],), train_biases=False)
    )
    tiny.scatter_gates(model, 0)
    return model.eval()


def same(found: nn.Module, expected: nn.Module) -> bool:
    results = (tiny.output(model.eval(), tiny.tokens()) for model in (found, expected))
    return torch.allclose(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", HEADS)
def test_gates_leave_the_weight_shared_and_the_embeddings_as_they_are(architecture: str) -> None:
    before, model = tied_model(architecture), gated_model(architecture)
    assert shares_embeddings(model)
    assert not same(model, before), "the gates do close something"
    assert same(detach(model), before)
    assert shares_embeddings(model)


@pytest.mark.parametrize("architecture", HEADS)
def test_folding_in_place_spares_the_embeddings(architecture: str) -> None:
    model = detach(gated_model(architecture), fold=True)
    assert same(model, gated_model(architecture))
    assert not shares_embeddings(model)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("architecture", HEADS)
def test_compacting_spares_the_embeddings(architecture: str, inplace: bool, tmp_path: Path) -> None:
    small = compact(gated_model(architecture), inplace=inplace)
    assert same(small, gated_model(architecture))
    save(small, tmp_path / "small")
    assert same(load(tmp_path / "small"), gated_model(architecture))


@pytest.mark.parametrize("architecture", [name for name in HEADS if name != "t5"])
def test_the_stock_model_keeps_both_weights(architecture: str, tmp_path: Path) -> None:
    small = compact(gated_model(architecture))
    uniform(small).save_pretrained(tmp_path)  # type: ignore[operator]
    stock = type(small).from_pretrained(tmp_path, dtype=torch.float64)  # type: ignore[attr-defined]
    assert same(stock, gated_model(architecture))


def test_an_architecture_that_always_ties_refuses_the_stock_model() -> None:
    with pytest.raises(NotUniformError, match="always shares the embeddings' weight"):
        uniform(compact(gated_model("t5")))


@pytest.mark.parametrize("architecture", [name for name in HEADS if name != "t5"])
def test_a_folded_model_is_saved_and_loaded_with_every_tensor_that_was_tied(
    architecture: str, tmp_path: Path
) -> None:
    model = detach(gated_model(architecture), fold=True)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    stock, said = type(model).from_pretrained(  # type: ignore[attr-defined]
        tmp_path, dtype=torch.float64, output_loading_info=True
    )
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    assert same(stock, gated_model(architecture))


@pytest.mark.parametrize("architecture", ["llama", "roberta"])
def test_training_is_saved_and_taken_up_again(architecture: str, tmp_path: Path) -> None:
    arguments = TrainingArguments(tmp_path, report_to="none", use_cpu=True)
    model = gated_model(architecture)
    GateTrainer(model, arguments).save_model(str(tmp_path / "checkpoint"))
    again = attach(
        tied_model(architecture), GateConfig(modules=(HEADS[architecture],), train_biases=False)
    )
    assert not same(again, model)
    GateTrainer(again, arguments)._load_from_checkpoint(str(tmp_path / "checkpoint"))
    assert same(again, model)
    assert shares_embeddings(again)


def test_a_whole_head_that_is_gated_and_not_in_a_block_is_in_the_stock_model() -> None:
    model = attach(tiny.tiny_model("bert"), GateConfig(modules=("*pooler.dense", "classifier")))
    tiny.scatter_gates(model, 0)
    assert same(uniform(compact(model.eval())), model)
