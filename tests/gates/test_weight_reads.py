"""Layers whose weight is used by the surrounding module: found in its source, refused by name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BloomConfig,
    BloomModel,
    FalconMambaConfig,
    FalconMambaModel,
    JambaConfig,
    JambaModel,
    MambaConfig,
    MambaModel,
    ReformerConfig,
    ReformerModel,
    WavLMConfig,
    WavLMModel,
)
from transformers.models.detr.modeling_detr import DetrMHAttentionMap

from finegates.adapters import adapter_for
from finegates.gates.attachment import attach, attach_fixed
from finegates.gates.config import GateConfig
from finegates.gates.gated_linear import gated_layers
from finegates.gates.stochastic import StochasticGate
from finegates.gates.weight_reads import weight_reader
from support import tiny


def wavlm() -> nn.Module:
    return WavLMModel(
        WavLMConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            conv_dim=(8, 8), conv_stride=(2, 2), conv_kernel=(3, 3), num_feat_extract_layers=2,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, feat_extract_norm="layer",
        )
    )  # fmt: skip


def mamba() -> nn.Module:
    return MambaModel(MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, state_size=4))


def falcon_mamba() -> nn.Module:
    """A module that calls the layer only if it is quantised."""
    return FalconMambaModel(
        FalconMambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, state_size=4)
    )


def jamba() -> nn.Module:
    return JambaModel(
        JambaConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, intermediate_size=12, attn_layer_period=2, attn_layer_offset=1,
            num_experts=2, use_mamba_kernels=False, mamba_d_state=4,
        )
    )  # fmt: skip


def detr() -> nn.Module:
    return nn.Sequential(DetrMHAttentionMap(8, 2))


def skip_unless(model: nn.Module, pattern: str, **premise: bool) -> None:
    """Skips if the source of the module around a layer differs, as it does between versions."""
    name = next(n for n, _ in model.named_modules() if fnmatch(n, pattern))
    path, _, layer = name.rpartition(".")
    source = inspect.getsource(type(model.get_submodule(path)))
    found = {"called": f"self.{layer}(" in source, "read": f"self.{layer}.weight" in source}
    for what, wanted in premise.items():
        if found[what] != wanted:
            pytest.skip(f"{name} is {what} in this version of transformers: {found[what]}")


@pytest.mark.parametrize(
    ("make", "pattern", "reader"),
    [
        (wavlm, "*q_proj", "WavLMAttention"),
        (wavlm, "*k_proj", "WavLMAttention"),
        (wavlm, "*v_proj", "WavLMAttention"),
        (wavlm, "*attention.out_proj", "WavLMAttention"),
        (mamba, "*dt_proj", "MambaMixer"),
        (falcon_mamba, "*dt_proj", "FalconMambaMixer"),
        (jamba, "*dt_proj", "JambaMambaMixer"),
        (detr, "*k_proj", "DetrMHAttentionMap"),
    ],
)
def test_a_layer_that_is_never_called_is_refused_by_name(make, pattern, reader):
    model = make()
    skip_unless(model, pattern, called=False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=rf"_proj: {reader} reads the weight .*exclude it"):
        attach(model, GateConfig(preset="reference", modules=(pattern,)))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert not gated_layers(model)


def reformer() -> nn.Module:
    return ReformerModel(
        ReformerConfig(
            attention_head_size=4, hidden_size=8, num_attention_heads=2, feed_forward_size=8,
            attn_layers=["lsh"], axial_pos_embds=False, vocab_size=9, num_buckets=2,
            lsh_attn_chunk_length=4, max_position_embeddings=16,
        )
    )  # fmt: skip


def bloom() -> nn.Module:
    return BloomModel(BloomConfig(vocab_size=9, hidden_size=8, n_layer=3, n_head=2))


@pytest.mark.parametrize(
    ("make", "pattern"),
    [(reformer, "*.value"), (bloom, "*self_attention.dense"), (mamba, "*out_proj")],
)
def test_layers_that_are_read_in_one_way_of_several_are_gated_with_one_warning(make, pattern):
    model = make()
    skip_unless(model, pattern, read=True)
    with pytest.warns(UserWarning, match="reads the weight of this layer directly in some") as said:
        attach(model, GateConfig(preset="reference", modules=(pattern,)))
    assert len(said) == 1
    more = len(gated_layers(model)) - 1
    assert (f"(and {more} more layers)" in str(said[0].message)) == (more > 0)


@pytest.mark.parametrize("variant", tiny.VARIANTS)
@pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES))
def test_reading_what_a_weight_is_like_does_not_count(architecture, variant):
    """T5's feed-forward part reads the dtype of a weight, and calls its layer."""
    model = tiny.tiny_model(architecture, variant)
    with warnings.catch_warnings(action="error"):
        for name in adapter_for(model).gated(model):
            assert weight_reader(model, name) is None


class Reads(nn.Module):
    """Reads weights in many ways."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.named, self.helped, self.called = (nn.Linear(4, 4) for _ in range(4))
        self.looked, self.inner = nn.Linear(4, 4), nn.ModuleDict({"deep": nn.Linear(4, 4)})
        self.listed = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.shifted, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def help(self, x: Tensor) -> Tensor:
        return x @ self.helped.weight.T

    def never(self) -> Tensor:
        return self.unused.weight

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(x, self.plain.weight, self.plain.bias)
        other = self.named
        x = self.help(x) @ other.weight
        for layer in self.listed:
            x = x @ layer.weight
        x = x @ self.inner["deep"].weight + self.shifted.bias
        x = x.to(self.looked.weight.dtype).to(self.looked.weight)
        if isinstance(self.looked.weight, Tensor) and self.looked.bias is not None:
            x = self.looked(x)
        return self.called(x)


class Inherits(Reads):
    """Inherits the reads: its own source has none."""


@pytest.mark.parametrize("kind", [Reads, Inherits])
def test_the_source_says_what_is_read(kind):
    model = nn.Sequential(kind())
    found = {
        name.removeprefix("0."): weight_reader(model, name) is not None
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    assert {name for name, reads in found.items() if reads} == {
        "plain", "named", "helped", "inner.deep", "listed.0", "listed.1", "shifted",
    }  # fmt: skip


def product(x: Tensor, layer: nn.Linear) -> Tensor:
    return functional.linear(x, layer.weight, layer.bias)


def of_module(module: nn.Module, x: Tensor) -> Tensor:
    return product(x, module.of_self)


def called(x: Tensor, layer: nn.Linear) -> Tensor:
    return layer(x.to(layer.weight.dtype))


class Hides(nn.Module):
    """Reads weights where its own lines do not name them."""

    NAMES = ("spelt", "named")

    def __init__(self) -> None:
        super().__init__()
        names = (
            "helper", "keyword", "of_self", "method", "static", "looked", "first", "second",
            "spelt", "named", "both_0", "both_1", "gotten", "numbered", "stored", "called",
            "either", "in_list", "zipped",
        )  # fmt: skip
        for name in names:
            setattr(self, name, nn.Linear(4, 4))
        self.inner = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def product(this, x: Tensor, layer: nn.Linear) -> Tensor:
        return x @ layer.weight

    @staticmethod
    def stored_product(x: Tensor, layer: nn.Linear) -> Tensor:
        return x @ layer.weight

    def forward(this, x: Tensor) -> Tensor:
        x = product(x, this.helper) + product(x, layer=this.keyword) + of_module(this, x)
        x = this.product(x, this.method) + this.stored_product(x, this.static)
        for layer in (this.first, this.second):
            x = x @ layer.weight
        for name in ("spelt", "named"):
            x = x @ getattr(this, name).weight
        for number in range(2):
            x = x @ getattr(this, f"both_{number}").weight
        x = x @ getattr(this.gotten, "weight")  # noqa: B009
        x = x @ (this.either if x.sum() > 0 else this.helper).weight
        weights = torch.cat([each.weight for each in [this.in_list]])
        for number, each in enumerate(this.inner):
            x = x @ each.weight + number
        for each, _ in zip([this.zipped], range(1), strict=True):
            x = x @ each.weight
        return called(x, this.called) @ weights + this.looked(x)


def test_reads_through_functions_loops_and_names_are_found():
    model = nn.Sequential(Hides())
    found = {
        name.removeprefix("0.")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and weight_reader(model, name)
    }
    assert found == {
        "helper", "keyword", "of_self", "method", "static", "first", "second", "spelt", "named",
        "both_0", "both_1", "gotten", "either", "in_list", "inner.0", "inner.1", "zipped",
    }  # fmt: skip


class ByName(nn.Module):
    """Chooses a layer by a name that the source does not say."""

    names = ("plain",)

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.called = nn.Linear(4, 4), nn.Linear(4, 4)
        self.inner = nn.ModuleDict({"deep": nn.Linear(4, 4)})

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = x @ getattr(self, name).weight
        return self.called(x)


def test_a_name_that_the_source_does_not_say_may_be_that_of_any_child():
    model = nn.Sequential(ByName())
    found = weight_reader(model, "0.plain"), weight_reader(model, "0.called")
    assert found == ((model[0], True), (model[0], False))
    assert weight_reader(model, "0.inner.deep") is None


class Holds(nn.Module):
    """Holds its layer outside of the tree of modules, in a way that a function chooses."""

    def __init__(self, hold: Callable[[nn.Linear], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.__dict__["held"] = hold(self.layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def closure(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda x: x @ layer.weight


class Unregistered(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.inside = layer


@pytest.mark.parametrize(
    "hold",
    [
        lambda layer: layer,
        lambda layer: [layer],
        lambda layer: {"a": ({layer},)},
        lambda layer: layer.weight,
        lambda layer: [layer.bias],
        lambda layer: layer.weight.detach().T,
        lambda layer: layer.forward,
        lambda layer: partial(product, layer=layer),
        Unregistered,
        closure,
    ],
    ids=[
        "layer",
        "list",
        "deep",
        "weight",
        "bias",
        "view",
        "method",
        "partial",
        "module",
        "closure",
    ],
)
def test_a_layer_that_a_module_holds_outside_of_the_tree_is_refused_by_name(hold):
    model = nn.Sequential(nn.ModuleDict({"block": Holds(hold)}), nn.Linear(4, 4))
    config = GateConfig(preset="reference", modules=("*.layer",))
    with pytest.raises(
        ValueError, match=r"0\.block\.layer: 0\.block\.held of Holds holds this lay"
    ):
        attach(model, config)
    assert not gated_layers(model)
    attach(model, GateConfig(preset="reference", modules=("1",)))


@pytest.mark.parametrize(
    "hold",
    [lambda layer: None, lambda layer: nn.Linear(4, 4), lambda layer: "layer"],
    ids=["nothing", "another", "name"],
)
def test_a_module_that_holds_something_else_is_gated(hold):
    model = nn.Sequential(Holds(hold))
    model[0].__dict__["whole"] = [model, model[0], model[0].forward]
    assert gated_layers(attach(model, GateConfig(preset="reference", modules=("0.layer",))))


def test_a_forward_pass_that_takes_such_a_branch_is_refused():
    model = bloom()
    skip_unless(model, "*self_attention.dense", read=True)
    with pytest.warns(UserWarning, match="a forward pass that takes one is refused"):
        attach(model, GateConfig(preset="reference", modules=("*self_attention.dense",)))
    ids = torch.tensor([[1, 2]])
    model.eval()(ids)
    for block in model.h:
        block.self_attention.pretraining_tp, block.self_attention.slow_but_exact = 2, True
    model.train()
    with pytest.raises(
        ValueError, match=r"h\.0\.self_attention\.dense: BloomAttention .* uses the"
    ):
        model(ids)


def test_the_refusal_is_right_gates_there_would_have_no_effect():
    model, x = wavlm().eval(), torch.randn(1, 200)
    with torch.no_grad():
        dense = model(x).last_hidden_state
        layer = model.encoder.layers[0].attention
        size = layer.q_proj.out_features
        gate = StochasticGate(size, "reference")
        gate.latent.fill_(-9.0)
        from finegates.gates.gated_linear import GatedLinear

        layer.q_proj = GatedLinear(layer.q_proj, gate).eval()
        assert torch.equal(model(x).last_hidden_state, dense)


def test_constant_gates_are_refused_as_well():
    skip_unless(mamba(), "*dt_proj", called=False)
    with pytest.raises(ValueError, match="MambaMixer reads the weight"):
        attach_fixed(mamba(), {"layers.0.mixer.dt_proj": (torch.ones(16), None)})
