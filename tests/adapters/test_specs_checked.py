"""Mistakes in descriptions written by hand are named before gates are attached."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import finegates as fg
from finegates.adapters import (
    AttentionSpec,
    FeedForwardSpec,
    MixerSpec,
    described,
    register,
    registered,
)
from finegates.compaction.certificate import NotEqualError
from finegates.gates.block_parts import AttentionGates
from finegates.spec_search.description import describe

HERE = __name__


class Attn(nn.Module):
    """Scores are divided by the root of the width that forward finds."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.hd = 4, 6
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, states: Tensor) -> Tensor:
        shape = (*states.shape[:2], self.h, self.hd)
        layers = (self.wq, self.wk, self.wv)
        q, k, v = (layer(states).view(shape).transpose(1, 2) for layer in layers)
        context = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.wo(context.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(states)))
        return out


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Attn(), Mlp()

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.attn(states)
        out: Tensor = states + self.mlp(states)
        return out


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers:
            states = layer(states)
        return states


ATTENTION = AttentionSpec(
    classes=(f"{HERE}.Attn",),
    q="wq",
    k="wk",
    v="wv",
    o="wo",
    width="hd",
    sizes={"h": "heads", "hd": "width"},
    scaled_by_width=True,
)
FEED = FeedForwardSpec(classes=(f"{HERE}.Mlp",), up="fc1", down="fc2", phi="act")
CONFIG = fg.GateConfig(target=0.3, sequence_length=9)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    tables = (described._attention_specs(), described._feed_specs(), described._mixer_specs())
    before = [dict(table) for table in (*tables, registered.REGISTERED)]
    yield
    for table, values in zip((*tables, registered.REGISTERED), before, strict=True):
        table.clear()  # type: ignore[attr-defined]
        table.update(values)  # type: ignore[attr-defined]


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def test_right_descriptions_are_attached() -> None:
    register(ATTENTION, FEED)
    model = fg.attach(net(), CONFIG)
    assert fg.gated_layers(model)


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (ATTENTION, {"width": "hdd"}, r"width='hdd'.*layers\.0\.attn \(Attn\).*h=4, hd=6"),
    (ATTENTION, {"width": "head_dim"}, r"width='head_dim'.*layers\.0\.attn \(Attn\).*h=4, hd=6"),
    (ATTENTION, {"sizes": {"heads": "heads"}}, r"sizes.*'heads'.*layers\.0\.attn.*h=4, hd=6"),
    (ATTENTION, {"q": "wqq"}, r"q='wqq'.*layers\.0\.attn.*wq, wk, wv, wo"),
    (ATTENTION, {"o": "^wo"}, r"o='\^wo'.*layers\.0\.attn.*wq, wk, wv, wo"),
    (ATTENTION, dict.fromkeys("qkvo", "none"), r"q='none'.*layers\.0\.attn.*wq, wk, wv, wo"),
    (ATTENTION, {"per_head": {"bias": 0}}, r"per_head.*'bias'.*layers\.0\.attn"),
    (FEED, {"phi": "intermediate.act"}, r"phi='intermediate\.act'.*layers\.0\.mlp \(Mlp\).*act"),
    (FEED, {"down": "fc3"}, r"down='fc3'.*layers\.0\.mlp \(Mlp\).*fc1, fc2"),
    (FEED, {"gate": "fc3"}, r"gate='fc3'.*layers\.0\.mlp \(Mlp\).*fc1, fc2"),
]


@pytest.mark.parametrize("call", [fg.attach, fg.prune])
@pytest.mark.parametrize(("spec", "change", "message"), WRONG, ids=[str(c) for _, c, _ in WRONG])
def test_a_name_that_a_module_does_not_have_is_refused(
    spec: Any, change: dict[str, Any], message: str, call: Any
) -> None:
    register(ATTENTION, FEED)
    register(dataclasses.replace(spec, **change))
    model = net()
    options = {"config": CONFIG} if call is fg.attach else {"criterion": "magnitude", "target": 0.3}
    kind = f"{type(spec).__name__} of {spec.classes[0]}"
    with pytest.raises(ValueError, match=f"^{kind}: {message}"):
        call(model, **options)
    assert not fg.gated_layers(model)


def test_layers_that_some_modules_of_a_class_do_not_have_are_no_mistake() -> None:
    spec = FeedForwardSpec(classes=(f"{HERE}.Layer",), up="mlp.fc1", down="mlp.fc2", phi="mlp.act")
    register(ATTENTION, spec)
    model = net()
    model.layers[1].mlp = nn.Identity()  # type: ignore[index, union-attr]
    assert fg.gated_layers(fg.attach(model, CONFIG))


@pytest.mark.parametrize("kind", [AttentionSpec, FeedForwardSpec])
def test_classes_that_are_one_text_are_refused_at_once(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"classes=\('own\.Attn',\)"):
        kind(classes="own.Attn")
    with pytest.raises(TypeError, match="own"):
        MixerSpec(classes="own.Attn", reads=(), writes=())  # type: ignore[arg-type]


def test_unknown_factors_of_sizes_are_refused_at_once() -> None:
    for name in ("sizes", "config_sizes"):
        with pytest.raises(ValueError, match=rf"{name}.*'h'.*'head'.*heads, kv_heads, each, width"):
            AttentionSpec(classes=("own.Attn",), **{name: {"h": "head"}})


def test_unknown_activations_are_refused_at_registration() -> None:
    spec = FeedForwardSpec(classes=(f"{HERE}.Mlp",), phi=None, activation="geluu")
    with pytest.raises(
        ValueError, match=rf"FeedForwardSpec of {HERE}.Mlp: activation='geluu'.*gelu"
    ):
        register(spec)


def test_a_class_that_its_module_does_not_define_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong = dataclasses.replace(ATTENTION, classes=(f"{HERE}.Attention",))
    register(wrong, FEED)
    with caplog.at_level(logging.WARNING, "finegates"):
        fg.attach(net(), fg.GateConfig(target=0.1, sequence_length=9))
    assert any(
        f"AttentionSpec of {HERE}.Attention" in m and f"{HERE}.Attn" in m for m in caplog.messages
    )


def test_a_class_of_another_model_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    other = dataclasses.replace(ATTENTION, classes=("elsewhere.Attn", f"{HERE}.Layer"))
    register(ATTENTION, FEED)
    register(other)
    registered.REGISTERED.pop((AttentionSpec, f"{HERE}.Layer"))
    described._attention_specs().pop(f"{HERE}.Layer")
    with caplog.at_level(logging.WARNING, "finegates"):
        fg.attach(net(), CONFIG)
    assert not caplog.messages


def test_a_model_without_described_modules_names_what_was_registered() -> None:
    register(dataclasses.replace(ATTENTION, classes=("own.Attention",)))
    with pytest.raises(ValueError, match=r"registered: own\.Attention"):
        fg.attach(net(), CONFIG)


def test_verify_says_which_fields_of_a_description_to_check() -> None:
    register(dataclasses.replace(ATTENTION, scaled_by_width=False), FEED)
    model = fg.attach(net(), CONFIG)
    with torch.no_grad():
        for part in model.finegates_structure:  # type: ignore[union-attr]
            if isinstance(part, AttentionGates):
                for gate in (part.scores, part.values):
                    gate.latent.view(4, 6)[:, 3:] = -1.0  # type: ignore[union-attr]
    message = rf"AttentionSpec of {HERE}\.Attn.*first scaled_by_width"
    with pytest.raises(NotEqualError, match=message) as e:
        fg.compact(model.eval(), verify={"states": torch.randn(2, 9, 24)})
    assert "report" not in str(e.value)


class OfTorch(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer])

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.layers[0](states)
        return out


def test_layers_of_torch_that_read_weights_are_named_with_the_remedy() -> None:
    model = OfTorch(nn.TransformerEncoderLayer(24, 4, 40, batch_first=True)).eval()
    message = r"TransformerEncoderLayer.*without calling.*nn\.Linear.*scaled_dot_product_attention"
    with pytest.raises(ValueError, match=message):
        fg.attach(model, CONFIG)
    notes = describe(model, {"states": torch.randn(2, 9, 24)}).notes
    assert any("TransformerEncoderLayer" in note and "nn.Linear" in note for note in notes)
