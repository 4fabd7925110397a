"""A search describes models of one's own, in the whole model, or leaves parts whole and says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import finegates as fg
from finegates.adapters import AttentionSpec, FeedForwardSpec
from finegates.compaction import compact
from finegates.spec_search.description import describe
from support.closed_by_description import pruned
from support.described import (
    described_inputs,
    described_model,
    relative_difference,
)


class Plain(nn.Module):
    """An attention of a home-made model."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim, self.num_heads = 6, 4
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(24, 24) for _ in range(4))

    def heads_of(self, states: Tensor) -> list[Tensor]:
        shape = (*states.shape[:2], -1, self.head_dim)
        layers = (self.q_proj, self.k_proj, self.v_proj)
        return [layer(states).view(shape).transpose(1, 2) for layer in layers]

    def forward(self, states: Tensor) -> Tensor:
        context = nn.functional.scaled_dot_product_attention(*self.heads_of(states))
        self.seen = context.mean((1, 3))
        return self.o_proj(context.transpose(1, 2).flatten(2))


class ValuesOfTheFirst(Plain):
    """Adds the values of the first layer to its own, and hands them on."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(()))

    def forward(self, states: Tensor, first: Any = None) -> Any:  # type: ignore[override]
        q, k, v = self.heads_of(states)
        if first is not None:
            v = v + self.share * first
        context = nn.functional.scaled_dot_product_attention(q, k, v)
        out = self.o_proj(context.transpose(1, 2).flatten(2))
        return out, v if first is None else first


class Feed(nn.Module):
    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(24, width), nn.GELU(), nn.Linear(width, 24)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(states)))
        return out


class HomeLayer(nn.Module):
    """A layer that no class of transformers is around."""

    def __init__(self, attention: nn.Module, feed: nn.Module) -> None:
        super().__init__()
        self.attention, self.feed = attention, feed
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(2))

    def forward(self, states: Tensor, *others: Any) -> Any:
        found = self.attention(self.norms[0](states), *others)
        more = found[1:] if isinstance(found, tuple) else ()
        states = states + (found[0] if more else found)
        out = states + self.feed(self.norms[1](states))
        return (out, *more) if more else out


class Mixed(nn.Module):
    """A list of experts, all of which are used."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Feed(14) for _ in range(2))  # narrower than outside

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.experts[0](states) + self.experts[1](states)
        return out


class Home(nn.Module):
    """A model of such layers; ``shows`` adds what its attentions saw to its output."""

    def __init__(self, layers: list[nn.Module], shows: bool = False) -> None:
        super().__init__()
        self.layers, self.shows = nn.ModuleList(layers), shows

    def forward(self, states: Tensor) -> Tensor:
        others: tuple[Tensor, ...] = ()
        for layer in self.layers:
            states = layer(states, *others)
            if isinstance(states, tuple):
                states, *rest = states
                others = tuple(rest)
        if self.shows:
            states = states + sum(layer.attention.seen for layer in self.layers)[..., None]  # type: ignore
        return states


def home_states() -> dict[str, Tensor]:
    return {"states": torch.randn(2, 9, 24, dtype=torch.float64)}


@pytest.mark.parametrize(
    ("attention", "shows", "left"),
    [(ValuesOfTheFirst, False, "ValuesOfTheFirst"), (Plain, True, "Plain"), (Plain, False, None)],
)
def test_what_others_use_of_the_inside_of_a_module_is_left_whole(
    attention: type[nn.Module], shows: bool, left: str | None
) -> None:
    """Exact layer by layer: the values go to the next layer, or the model looks into its layers."""
    torch.manual_seed(0)
    model = Home([HomeLayer(attention(), Feed()) for _ in range(3)], shows).double()
    description = describe(model, home_states())
    names = {spec.classes[0].rpartition(".")[2] for spec in description.specs}
    assert names == ({"Feed"} if left else {"Feed", "Plain"})
    if left:
        assert f"{left}: the description is exact in its layers, but not in" in str(description)
    else:
        assert not description.notes


@pytest.mark.parametrize(
    ("feed", "described"),
    [
        (lambda: nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24)), "HomeLayer"),
        (Mixed, "Feed"),
    ],
)
def test_containers_inside_a_layer_hide_neither_its_attention_nor_its_feed_forward_part(
    feed: Callable[[], nn.Module], described: str
) -> None:
    torch.manual_seed(0)
    model = Home([HomeLayer(Plain(), feed()) for _ in range(2)]).double()
    description = describe(model, home_states())
    names = {spec.classes[0].rpartition(".")[2] for spec in description.specs}
    assert names == {"Plain", described}
    assert not description.notes
    states = home_states()
    for seed in range(3):
        gated, small = pruned(model, description, seed)
        difference = relative_difference([gated(**states)], [small(**states)])
        assert difference < 1e-11


class Nameless(nn.Module):
    """An attention whose heads have no width by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 4
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, states: Tensor) -> Tensor:
        layers = (self.q_proj, self.k_proj, self.v_proj)
        heads = [layer(states).unflatten(-1, (self.count, -1)).transpose(1, 2) for layer in layers]
        context = nn.functional.scaled_dot_product_attention(*heads)
        out: Tensor = self.o_proj(context.transpose(1, 2).flatten(2))
        return out


class Short(nn.Module):
    """An attention with the short names of home-made models."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.hd = 4, 6
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, states: Tensor) -> Tensor:
        shape = (*states.shape[:2], self.h, self.hd)
        heads = [w(states).view(shape).transpose(1, 2) for w in (self.wq, self.wk, self.wv)]
        context = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2)
        out: Tensor = self.wo(context.reshape(*states.shape[:2], self.h * self.hd))
        return out


class Fused(nn.Module):
    """An attention with one layer for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head, self.d_head = 4, 6
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, states: Tensor) -> Tensor:
        shape = (*states.shape[:2], self.n_head, self.d_head)
        heads = [x.view(shape).transpose(1, 2) for x in self.qkv(states).chunk(3, -1)]
        context = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2)
        out: Tensor = self.proj(context.flatten(2))
        return out


@pytest.mark.parametrize("attention", [Short, Fused])
def test_short_names_of_home_made_attentions_are_recognised(attention: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = Home([HomeLayer(attention(), Feed()) for _ in range(2)]).double()
    description = describe(model, home_states())
    (spec,) = (each for each in description.specs if isinstance(each, AttentionSpec))
    assert not spec.fixed_heads
    assert not description.notes
    states = home_states()
    gated, small = pruned(model, description, 0)
    assert relative_difference([gated(**states)], [small(**states)]) < 1e-11


def test_what_no_names_suggest_is_noted() -> None:
    torch.manual_seed(0)
    model = Home([HomeLayer(Nameless(), Feed()) for _ in range(2)]).double()
    notes = describe(model, home_states()).notes
    assert [note for note in notes if "Nameless: its names suggest no description" in note]
    flat = describe(Plain().double(), {"states": home_states()["states"]})
    assert flat.specs == ()
    assert "Plain has no linear layers in items of nn.ModuleList" in str(flat)


def test_a_layer_in_two_places_is_noted_as_such() -> None:
    torch.manual_seed(0)
    layer = HomeLayer(Plain(), Feed())
    notes = describe(Home([layer, layer]).double(), home_states()).notes
    assert all("are the same layer, which cannot be gated twice" in note for note in notes)
    assert len(notes) == 2


@pytest.mark.parametrize("inputs", [None, "text", torch.ones(1, 2)])
def test_other_inputs_are_refused(inputs: Any) -> None:
    with pytest.raises(ValueError, match="keyword arguments of the model's forward"):
        describe(Home([HomeLayer(Plain(), Feed())]), inputs)


def test_a_model_without_finite_numbers_is_refused_instead_of_its_classes() -> None:
    model = Home([HomeLayer(Plain(), Feed())]).double()
    with pytest.raises(ValueError, match="Home itself gives numbers that are not finite on these"):
        describe(model, {"states": home_states()["states"] * float("nan")})


def test_a_gated_or_compact_model_is_refused() -> None:
    gated = fg.attach(described_model("bert"), fg.GateConfig())
    small = compact(copy.deepcopy(gated))
    for model in (gated, small):
        with pytest.raises(ValueError, match="BertModel has gates or is compact; describe the den"):
            describe(model, described_inputs("bert"))


class Turned(nn.Module):
    """Grouped attention whose angles are complex numbers, one for each pair of neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.n_local_heads, self.n_local_kv_heads, self.n_rep, self.head_dim = 4, 2, 2, 6
        self.wq, self.wo = (nn.Linear(24, 24, bias=False) for _ in range(2))
        self.wk, self.wv = (nn.Linear(24, 12, bias=False) for _ in range(2))

    def forward(self, states: Tensor, freqs_cis: Tensor) -> Tensor:
        batch, length, _ = states.shape
        q = self.wq(states).view(batch, length, self.n_local_heads, self.head_dim)
        k = self.wk(states).view(batch, length, self.n_local_kv_heads, self.head_dim)
        v = self.wv(states).view(batch, length, self.n_local_kv_heads, self.head_dim)
        q, k = (
            torch.view_as_real(
                torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * freqs_cis[:, None]
            ).flatten(-2)
            for x in (q, k)
        )
        k, v = (x.repeat_interleave(self.n_rep, dim=2) for x in (k, v))
        scores = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * 6**-0.5).softmax(-1)
        out: Tensor = self.wo((scores @ v.transpose(1, 2)).transpose(1, 2).flatten(2))
        return out


class Swish(nn.Module):
    """A gated feed-forward part that calls a function for its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(24, 40, bias=False) for _ in range(2))
        self.w2 = nn.Linear(40, 24, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.w2(nn.functional.silu(self.w1(states)) * self.w3(states))
        return out


class TurnedStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(HomeLayer(Turned(), Swish()) for _ in range(2))
        angles = torch.outer(torch.arange(32), 100.0 ** -torch.arange(0, 1, 1 / 3)).double()
        self.register_buffer("freqs_cis", torch.polar(torch.ones_like(angles), angles))

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers:
            states = layer(states, self.freqs_cis[: states.shape[1]])
        return states


def test_complex_angles_and_activations_that_are_functions_are_described() -> None:
    torch.manual_seed(0)
    model = TurnedStack().double()  # its complex buffer stays complex
    description = describe(model, home_states())
    attention, feed = sorted(description.specs, key=lambda spec: type(spec).__name__)
    assert isinstance(attention, AttentionSpec)
    assert isinstance(feed, FeedForwardSpec)
    assert attention.rotary is not None
    assert (attention.rotary.pairs, attention.rotary.order) == ("next", "once")
    assert not attention.fixed_heads
    assert not attention.fixed_scores
    assert (feed.phi, feed.activation) == (None, "silu")
    assert not description.notes
    states = home_states()
    for seed in range(3):
        gated, small = pruned(model, description, seed)
        assert relative_difference([gated(**states)], [small(**states)]) < 1e-11


class WithCache(nn.Module):
    """A model whose layers always get a cache, which they fill."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CachedLayer(number) for number in range(2))

    def forward(self, states: Tensor) -> Tensor:
        cache = DynamicCache()
        for layer in self.layers:
            states = layer(states, past_key_values=cache)
        return states


class CachedLayer(HomeLayer):
    def __init__(self, number: int) -> None:
        super().__init__(Cached(number), Feed())

    def forward(self, states: Tensor, past_key_values: Any = None) -> Any:  # type: ignore[override]
        states = states + self.attention(self.norms[0](states), past_key_values)
        return states + self.feed(self.norms[1](states))


class Cached(Plain):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer_idx = number

    def forward(self, states: Tensor, past_key_values: Any = None) -> Tensor:  # type: ignore[override]
        q, k, v = self.heads_of(states)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        assert k.shape[2] == q.shape[2], "the cache was empty"
        context = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.o_proj(context.transpose(1, 2).flatten(2))
        return out


def test_a_cache_is_what_it_was_when_the_layer_was_called() -> None:
    torch.manual_seed(0)
    description = describe(WithCache().double(), home_states())
    names = {spec.classes[0].rpartition(".")[2] for spec in description.specs}
    assert names == {"Cached", "Feed"}
    assert not description.notes


class Towers(nn.Module):
    """Two stacks of layers of one class, of which the second is for further inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.ModuleList(HomeLayer(Plain(), Feed()) for _ in range(2))
        self.images = nn.ModuleList(HomeLayer(Plain(), Feed()) for _ in range(2))

    def forward(self, states: Tensor, images: Tensor | None = None) -> Tensor:
        for layer in self.text:
            states = layer(states)
        for layer in self.images if images is not None else ():
            images = layer(images)
        return states if images is None else torch.cat([states, images], 1)


def test_a_layer_that_no_input_reaches_is_noted_as_not_certified() -> None:
    torch.manual_seed(0)
    model = Towers().double().eval()
    inputs = home_states()
    found = describe(model, inputs)
    assert len(found.specs) == 2
    for path in ("images.0", "images.1"):
        assert any(note.startswith(f"{path} is not called") for note in found.notes)
    assert describe(model, {**inputs, "images": inputs["states"]}).notes == ()
