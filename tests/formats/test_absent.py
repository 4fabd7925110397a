"""Models built without an optional part are saved, loaded and exported without it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertModel, RobertaModel

from finegates.compaction import compact
from finegates.formats.compact import load, save
from finegates.formats.stock import uniform
from finegates.formats.structure import CompactFormatError
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from support import tiny
from support.saved import edit


def embedding_model(kind: type, architecture: str, folder: Path) -> nn.Module:
    """A model without a pooling layer, as embedding models are loaded."""
    tiny.tiny_model(architecture, "base").save_pretrained(folder)  # type: ignore[operator]
    model = kind.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float64)  # type: ignore[attr-defined]
    attach(model, GateConfig(preset="structured"))
    tiny.scatter_gates(model)
    return compact(model.eval())


KINDS = [(BertModel, "bert"), (RobertaModel, "roberta")]


@pytest.mark.parametrize(("kind", "architecture"), KINDS)
def test_a_model_without_a_pooling_layer_is_saved_and_loaded(
    kind: type, architecture: str, tmp_path: Path
) -> None:
    small = embedding_model(kind, architecture, tmp_path / "dense")
    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert again.pooler is None
    assert torch.equal(tiny.output(again, tiny.tokens()), tiny.output(small, tiny.tokens()))
    assert again(**tiny.tokens()).pooler_output is None


@pytest.mark.parametrize(("kind", "architecture"), KINDS)
def test_a_model_without_a_pooling_layer_has_a_stock_model_without_one(
    kind: type, architecture: str, tmp_path: Path
) -> None:
    small = embedding_model(kind, architecture, tmp_path / "dense")
    stock = uniform(small)
    assert stock.pooler is None
    stock.save_pretrained(tmp_path / "stock")  # type: ignore[operator]
    again = kind.from_pretrained(  # type: ignore[attr-defined]
        tmp_path / "stock", add_pooling_layer=False, dtype=torch.float64
    )
    for found in (stock, again):
        results = (tiny.output(m, tiny.tokens()) for m in (found, small))
        assert torch.allclose(*results, rtol=1e-9, atol=1e-9)


def test_an_absent_part_that_the_model_could_not_have_is_refused(tmp_path: Path) -> None:
    small = embedding_model(BertModel, "bert", tmp_path / "dense")
    save(small, tmp_path / "small")
    edit(tmp_path / "small", lambda s: s["absent"].append("no.such"))
    with pytest.raises(CompactFormatError, match=r"'no\.such' is not a module"):
        load(tmp_path / "small")
    edit(tmp_path / "small", lambda s: s.update(absent=["pooler", 1]))
    with pytest.raises(CompactFormatError, match="not a list of paths"):
        load(tmp_path / "small")
