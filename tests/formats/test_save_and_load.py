"""A successful save can be loaded; a failed one gives its reason and writes nothing."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, YosoConfig, YosoModel

from finegates.compaction import compact
from finegates.formats import bounds
from finegates.formats.compact import load, save
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from support import tiny
from support.described import described_model
from support.described_types import CONFIGURATIONS

SIZES = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}

whole = st.integers(-(2**80), 2**80)
plain = st.one_of(whole, st.floats(), st.booleans(), st.none(), st.text(max_size=3))
keys = st.text("abcdefg_", min_size=3, max_size=6).map(lambda key: f"x_{key}")
extras = st.dictionaries(
    keys,
    st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=4,
    ),
    max_size=4,
)
odd = st.fixed_dictionaries(
    {},
    optional={
        "pad_token_id": st.sampled_from([None, 0, 39]),
        "bos_token_id": st.one_of(st.none(), whole),
        "initializer_range": st.floats(0, 1),
        "layer_norm_eps": st.floats(1e-12, 1e-2),
        "num_labels": st.integers(2, 5),
        "hidden_dropout_prob": st.floats(0, 1),
        "problem_type": st.sampled_from([None, "single_label_classification"]),
    },
)


def comes_back(small: nn.Module) -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            save(small, folder / "small")
        except ValueError:
            assert not list(folder.iterdir())
            return False
        again = load(folder / "small")
    assert torch.equal(tiny.output(again, tiny.tokens()), tiny.output(small, tiny.tokens()))
    return True


def compact_bert(**values: Any) -> nn.Module:
    model = BertForSequenceClassification(BertConfig(**{**SIZES, **values})).eval()
    attach(model, GateConfig(preset="reference"))
    tiny.scatter_gates(model)
    return compact(model)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(extra=extras, values=odd)
def test_a_save_that_succeeds_can_be_loaded(extra: dict[str, Any], values: dict[str, Any]) -> None:
    comes_back(compact_bert(**extra, **values))


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    first=st.integers(-3, 5),
    labels=st.sampled_from([2, 300]),
    number=st.integers(0, 2**70),
)
def test_positions_labels_and_large_numbers_come_back_or_are_refused(
    first: int, labels: int, number: int
) -> None:
    small = compact_bert(num_labels=labels, tokens_seen=number)
    small.bert.embeddings.position_ids += first  # type: ignore[union-attr, operator]
    # The table has 16 rows for 16 positions starting at 0.
    assert comes_back(small) == (first == 0)


def test_more_labels_than_a_few_digits_may_ask_for_come_back_with_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "LARGEST_LABELS", 300)
    assert comes_back(compact_bert(num_labels=301))
    with pytest.raises(ValueError, match="num_labels = 301 is larger"):
        bounds.check_numbers({"model_type": "bert", "num_labels": 301})


def test_positions_may_begin_where_their_table_has_room() -> None:
    model = YosoModel(YosoConfig(**SIZES, use_expectation=True)).double().eval()
    attach(model, GateConfig(preset="reference", modules=("*dense*",)))
    tiny.scatter_gates(model)
    small = compact(model)
    assert small.embeddings.position_ids[0, 0] == 2  # type: ignore[union-attr, index]
    assert comes_back(small)


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size"])
def test_a_number_that_the_class_knows_is_bounded_when_it_is_saved(
    key: str, tmp_path: Path
) -> None:
    small = compact_bert()
    setattr(small.config, key, 2**60)
    with pytest.raises(ValueError, match=f"does not describe a model.*{key} = {2**60} is larger"):
        save(small, tmp_path / "small")
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_come_back(tmp_path: Path) -> None:
    small = compact_bert(x_limit=math.inf, x_list=[-math.inf, 1.0])
    save(small, tmp_path / "small")
    again: Any = load(tmp_path / "small").config
    assert again.x_limit == math.inf
    assert again.x_list == [-math.inf, 1.0]


def test_a_tensor_that_is_not_a_buffer_is_named_with_what_can_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TrOCR keeps the sines of its positions so, and transformers does not load such a model."""
    options = {"use_learned_position_embeddings": False, "layernorm_embedding": False}
    monkeypatch.setitem(CONFIGURATIONS, "trocr", {**CONFIGURATIONS["trocr"], **options})
    model = attach(described_model("trocr", "causal"), GateConfig(sequence_length=9))
    tiny.scatter_gates(model, mean=0.7)
    small = compact(model.eval())
    with pytest.raises(ValueError, match=r"embed_positions\.weights of TrOCRSinus.*torch\.save"):
        save(small, tmp_path / "small")
    assert not (tmp_path / "small").exists()
