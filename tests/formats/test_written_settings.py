"""What a call leaves in a module is not a setting; what a user changed is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, FunnelConfig, FunnelModel, Wav2Vec2BertConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.reformer.modeling_reformer import LSHSelfAttention, ReformerConfig
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import (
    Wav2Vec2BertRotaryPositionalEmbedding,
)

import finegates as fg
from finegates.adapters import FeedForwardSpec, register
from finegates.formats.module_settings import ModuleSettingsError
from finegates.formats.written_settings import written_by_calls
from support.own_model import SPECS, OwnConfig, OwnModel, gated, logits
from support.tiny import scatter_gates
from support.undescribed import forget


class Notes(nn.Module):
    """A module without a forward, which a model calls by other names."""

    def __init__(self) -> None:
        super().__init__()
        self.length: int | None = None
        self.count = 0
        self.scale: float | None = None
        self.limit: int | None = None

    def note(self, hidden: Tensor) -> None:
        self.count += 1
        self.length = hidden.shape[1]
        if self.limit is None:
            self.limit = hidden.shape[1]

    def set_scale(self, scale: float) -> None:
        self.scale = scale


class NotingConfig(OwnConfig):
    model_type = "noting_of_the_tests"

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)


class NotingModel(OwnModel):
    config_class = NotingConfig

    def __init__(self, config: NotingConfig) -> None:
        super().__init__(config)
        self.notes = Notes()

    def forward(self, input_ids: Tensor, **_: Any) -> dict[str, Tensor]:
        found = super().forward(input_ids)
        self._finish(found["logits"])
        return found

    def _finish(self, hidden: Tensor) -> None:
        self.notes.note(hidden)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register(*SPECS)
    AutoConfig.register(NotingConfig.model_type, NotingConfig)
    AutoModel.register(NotingConfig, NotingModel)
    torch.manual_seed(0)
    yield
    CONFIG_MAPPING._extra_content.pop(NotingConfig.model_type)
    AutoModel._model_mapping._extra_content.pop(NotingConfig)
    forget()


def test_calls_write_what_methods_that_they_reach_assign() -> None:
    assert written_by_calls(NotingModel(NotingConfig()))[Notes] == {"length", "count"}


@pytest.mark.parametrize("compact", [True, False])
def test_a_value_of_the_last_call_does_not_stop_a_save(compact: bool, tmp_path: Path) -> None:
    model = gated(NotingModel(NotingConfig()))
    model = fg.compact(model) if compact else model
    expected = logits(model)
    model.notes.count, model.notes.limit = 0, None
    assert model.notes.length == 2
    fg.save(model, tmp_path / "model")
    assert torch.equal(logits(fg.load(tmp_path / "model")), expected)
    if compact:
        assert fg.uniform(model).notes.length is None


@pytest.mark.parametrize(("name", "value"), [("scale", 2.0), ("count", 1), ("limit", 4)])
def test_what_a_user_can_change_is_still_refused(name: str, value: float, tmp_path: Path) -> None:
    model = fg.compact(gated(NotingModel(NotingConfig())))
    setattr(model.notes, name, value)
    with pytest.raises(ModuleSettingsError, match=rf"notes\.{name} is {value}"):
        fg.save(model, tmp_path / "model")


def test_a_funnel_model_that_has_run_is_saved_and_padded(tmp_path: Path) -> None:
    register(
        FeedForwardSpec(
            classes=("funnel.FunnelPositionwiseFFN",),
            up="linear_1",
            down="linear_2",
            phi="activation_function",
        )
    )
    sizes = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32, "vocab_size": 40}
    model = FunnelModel(FunnelConfig(**sizes, block_sizes=[1, 1])).eval()
    fg.attach(model, fg.GateConfig(preset="structured", sequence_length=8))
    scatter_gates(model, mean=0.7)
    small: Any = fg.compact(model.eval())
    inputs = torch.arange(16).view(2, 8)
    with torch.no_grad():
        expected = small(input_ids=inputs).last_hidden_state
        fg.save(small, tmp_path / "model")
        again: Any = fg.load(tmp_path / "model")
        assert torch.equal(again(input_ids=inputs).last_hidden_state, expected)
        stock: Any = fg.uniform(small)
        torch.testing.assert_close(stock(input_ids=inputs).last_hidden_state, expected)


def test_the_cache_of_a_rotary_table_is_of_its_calls() -> None:
    module = Wav2Vec2BertRotaryPositionalEmbedding(Wav2Vec2BertConfig())
    names = {"cached_sequence_length", "cached_rotary_positional_embedding"}
    assert names <= written_by_calls(module)[type(module)]


def test_a_default_that_a_call_fills_in_is_not_of_its_calls() -> None:
    module = LSHSelfAttention(ReformerConfig())
    assert "num_buckets" not in written_by_calls(module)[LSHSelfAttention]
