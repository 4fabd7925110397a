"""Models that differ from their configuration: pruned, shortened, with missing or shared parts."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from finegates.adapters import adapter_for
from finegates.budget import macs, planned_macs
from finegates.compaction import compact
from finegates.formats.compact import save
from finegates.formats.stock import uniform
from finegates.gates.attachment import attach, attach_fixed
from finegates.gates.config import GateConfig
from finegates.gates.gated_linear import gated_layers
from finegates.modules.linear import is_linear
from support import tiny

ARCHITECTURES = sorted(tiny.ARCHITECTURES)
PRESETS = ("structured", "reference", "paper_v1")
EXACT = {"rtol": 0.0, "atol": 1e-9}


def attached(model: nn.Module, preset: str = "structured", seed: int = 0) -> nn.Module:
    attach(model, GateConfig(preset=preset, sequence_length=7, target=0.2))
    tiny.scatter_gates(model, seed)
    return model.eval()


def stack_of(model: nn.Module) -> tuple[nn.ModuleList, str]:
    """The last list of layers and its path."""
    path = adapter_for(model).blocks(model)[-1].path.rpartition(".")[0]
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    return layers, path


def keep(linear: nn.Module, rows: torch.Tensor | None, cols: torch.Tensor | None) -> None:
    """Prunes a linear layer in place; GPT-2's weights are transposed."""
    transposed = not isinstance(linear, nn.Linear)
    weight = linear.weight.data.T if transposed else linear.weight.data
    if rows is not None:
        weight = weight[rows]
        if linear.bias is not None:
            linear.bias.data = linear.bias.data[rows].clone()
    if cols is not None:
        weight = weight[:, cols]
    linear.weight.data = (weight.T if transposed else weight).clone()
    if transposed:
        linear.nf = weight.shape[0]
    else:
        linear.out_features, linear.in_features = weight.shape


def prune_heads(model: nn.Module, groups: int = 1) -> nn.Module:
    """Removes the first key-value heads of the first layer, with their queries."""
    part = adapter_for(model).blocks(model)[0].attentions[0]
    width, each = part.head_dim, part.heads // part.kv_heads
    queries = torch.arange(groups * each * width, part.heads * width)
    keys = torch.arange(groups * width, part.kv_heads * width)
    module = model.get_submodule(part.path)
    if part.is_fused:
        whole = part.heads * width
        rows = torch.cat([queries + start * whole for start in range(3)])
        keep(model.get_submodule(part.q), rows, None)
        module.split_size = queries.numel()
    else:
        keep(model.get_submodule(part.q), queries, None)
        keep(model.get_submodule(part.k), keys, None)
        keep(model.get_submodule(part.v), keys, None)
    keep(model.get_submodule(part.o), None, queries)
    for name in ("num_attention_heads", "num_heads"):
        if hasattr(module, name):
            setattr(module, name, part.heads - groups * each)
    if hasattr(module, "all_head_size"):
        module.all_head_size = queries.numel()
    return model


# T5 and MPNet compute position scores for all heads of all layers, so no single layer can lose one.
PRUNABLE = [name for name in ARCHITECTURES if not name.startswith(("t5", "mpnet"))]


@pytest.mark.sampled
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("architecture", PRUNABLE)
def test_a_model_whose_heads_were_pruned_is_gated_and_compacted_exactly(architecture, preset):
    model = prune_heads(tiny.tiny_model(architecture))
    dense = macs(model, 1, 7)
    weights = sum(
        model.get_submodule(path).weight.numel()
        for block in adapter_for(model).blocks(model)
        for path in block.linears()
    )
    assert dense.linear == 7 * weights
    attached(model, preset)
    expected, planned = tiny.output(model, tiny.tokens()), planned_macs(model, 1, 7)
    small = compact(model)
    torch.testing.assert_close(tiny.output(small, tiny.tokens()), expected, **EXACT)
    assert macs(small, 1, 7) == planned
    assert macs(compact(small), 1, 7) == planned


@pytest.mark.parametrize("architecture", PRUNABLE)
def test_what_makes_a_model_by_its_configuration_refuses_a_pruned_one_by_name(
    architecture, tmp_path
):
    small = compact(attached(prune_heads(tiny.tiny_model(architecture))))
    layer = r"configuration of .*(layer|h|layers)\.0\.(attn|self_attn|attention\.self)"
    for way in (lambda: save(small, tmp_path / "saved"), lambda: uniform(small)):
        with pytest.raises(ValueError, match=layer):
            way()
    assert not (tmp_path / "saved").exists()


def test_heads_of_several_widths_are_left_alone():
    """DeBERTa reads the head widths from its modules: values may be narrower than scores."""
    model = tiny.tiny_model("deberta-v2")
    part = adapter_for(model).blocks(model)[0].attentions[0]
    values = torch.arange(part.heads * part.head_dim).view(part.heads, -1)[:, 1:].flatten()
    keep(model.get_submodule(part.v), values, None)
    keep(model.get_submodule(part.o), None, values)
    attached(model)
    structure = model.finegates_structure
    assert structure[0].scores is structure[0].values is structure[0].heads is None
    assert structure[2].heads is not None, "the next layer is as configured"
    expected, planned = tiny.output(model, tiny.tokens()), planned_macs(model, 1, 7)
    small = compact(model)
    torch.testing.assert_close(tiny.output(small, tiny.tokens()), expected, **EXACT)
    assert macs(small, 1, 7) == planned
    with pytest.raises(ValueError, match=r"attention\.self"):
        uniform(small)


@pytest.mark.sampled
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_that_are_gone_are_not_asked_for(architecture, preset, tmp_path):
    model = tiny.tiny_model(architecture, "base", use_cache=False)
    layers, _ = stack_of(model)
    count = len(adapter_for(model).blocks(model))
    del layers[1]
    assert len(adapter_for(model).blocks(model)) == count - 1
    attached(model, preset)
    expected, planned = tiny.output(model, tiny.tokens()), planned_macs(model, 1, 7)
    small = compact(model)
    torch.testing.assert_close(tiny.output(small, tiny.tokens()), expected, **EXACT)
    assert macs(small, 1, 7) == planned
    for way in (lambda: save(small, tmp_path / "saved"), lambda: uniform(small)):
        with pytest.raises(ValueError, match=r"\.1\."):
            way()
    assert not (tmp_path / "saved").exists()


class Nothing(nn.Module):
    """Replaces a removed feed-forward part."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "gpt2"])
def test_parts_that_are_gone_are_not_asked_for(architecture):
    model = tiny.tiny_model(architecture)
    layers, _ = stack_of(model)
    layers[0].mlp = Nothing()
    assert adapter_for(model).blocks(model)[0].feed_forward is None
    attached(model)
    expected, planned = tiny.output(model, tiny.tokens()), planned_macs(model, 1, 7)
    small = compact(model)
    torch.testing.assert_close(tiny.output(small, tiny.tokens()), expected, **EXACT)
    assert macs(small, 1, 7) == planned


class Codes(nn.Linear):
    """Like the layers of quantisation libraries: an nn.Linear whose weight contains codes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        codes = torch.zeros(outputs, inputs, dtype=torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)


def _linears(model: nn.Module) -> list[str]:
    return [path for block in adapter_for(model).blocks(model) for path in block.linears()]


def _put(model: nn.Module, path: str, module: nn.Module | None) -> None:
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _shared(model: nn.Module, path: str) -> None:
    """Shares a layer between two places of the same shape."""
    layer = model.get_submodule(path)
    others = (other for other in _linears(model) if other != path)
    twin = next(
        other for other in others if model.get_submodule(other).weight.shape == layer.weight.shape
    )
    _put(model, twin, layer)


PLANTED: dict[str, Callable[[nn.Module, str], None]] = {
    "quantised": lambda model, path: _put(model, path, Codes(3, 4)),
    "not linear": lambda model, path: _put(model, path, nn.LayerNorm(3)),
    "missing": lambda model, path: _put(model, path, None),
    "twice": _shared,
    "a layer twice": lambda model, path: stack_of(model)[0].__setitem__(1, stack_of(model)[0][0]),
    "elsewhere": lambda model, path: _put(model, path, model.get_submodule(path).to("meta")),
    "another forward": lambda model, path: _put(
        model, path, type("Own", (nn.Linear,), {"forward": lambda self, x: x})(3, 4)
    ),
}


def everything(model: nn.Module) -> dict[str, object]:
    """Everything that attaching may change: modules, parameters, attributes, the mode."""
    found: dict[str, object] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found[path] = (id(module), type(module), module.training, sorted(vars(module)))
        for name, parameter in module._parameters.items():
            trained = parameter is not None and parameter.requires_grad
            found[f"{path}:{name}"] = (id(parameter), trained)
        for key in ("_tied_weights_keys", "all_tied_weights_keys"):
            found[f"{path}:{key}"] = copy.copy(getattr(module, key, None))
    found["random"] = torch.get_rng_state().tolist()
    return found


@pytest.mark.sampled
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("fault", sorted(PLANTED))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_that_attach_refuses_is_as_it_was(architecture, fault, place):
    model = tiny.tiny_model(architecture)
    path = _linears(model)[place]
    PLANTED[fault](model, path)
    before = everything(model)
    for config in (
        *(GateConfig(preset=preset) for preset in PRESETS),
        GateConfig(preset="reference", train_weights=True, random_biases=True),
    ):
        with pytest.raises((ValueError, TypeError)) as refusal:
            attach(model, config)
        assert everything(model) == before
        if fault != "elsewhere":
            assert ".0." in str(refusal.value) or path in str(refusal.value), "says where"


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_constant_gates_of_a_wrong_size_change_nothing(architecture):
    model = tiny.tiny_model(architecture)
    first, *_, last = _linears(model)
    before = everything(model)
    gates = {first: (None, None), last: (torch.ones(3), None)}
    with pytest.raises(ValueError, match=rf"^{last}: the rows gate has size 3"):
        attach_fixed(model, gates)
    with pytest.raises(ValueError, match="has no layer nowhere"):
        attach_fixed(model, {first: (None, None), "nowhere": (None, None)})
    assert everything(model) == before


def test_a_model_of_inference_mode_is_refused_as_it_was():
    with torch.inference_mode():
        model = tiny.tiny_model("bert")
    before = everything(model)
    with pytest.raises(ValueError, match=r"inference_mode"):
        attach(model, GateConfig(preset="structured"))
    assert everything(model) == before


def test_codes_beside_the_gated_layers_stay_frozen_where_all_weights_are_trained():
    model = tiny.tiny_model("bert")
    model.bert.codes = Codes(3, 4)
    attach(model, GateConfig(preset="reference", train_weights=True))
    assert not model.bert.codes.weight.requires_grad
    assert model.bert.codes.bias.requires_grad
    assert all(is_linear(layer.base) for layer in gated_layers(model).values())
