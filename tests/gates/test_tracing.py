"""Tools that record or rewrite operations handle a compact model like any other."""

import io

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from finegates.compaction import CompactLinear, compact
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from support.tiny import scatter_gates, tiny_model, tokens

ARCHITECTURES = ("bert", "deberta-v2", "t5-gated", "llama", "gpt2")


def small_model(architecture, preset="structured"):
    model = tiny_model(architecture, "base", dtype=torch.float32)
    attach(model, GateConfig(preset=preset, sequence_length=7))
    scatter_gates(model)
    return compact(model)


def placing_layer():
    """A layer that gathers, scatters, and multiplies into rows longer than its outputs."""
    return CompactLinear(
        torch.randn(5, 4),
        torch.randn(5),
        in_features=7,
        out_features=9,
        cols=torch.tensor([0, 2, 3, 6]),
        rows=torch.tensor([1, 2, 5, 7, 8]),
    )


class States(nn.Module):
    """A base model as a function of its tokens."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask):
        more = {"decoder_input_ids": ids} if self.model.config.model_type == "t5" else {}
        if self.model.config.model_type in ("t5", "llama", "gpt2"):
            more["use_cache"] = False
        return self.model(input_ids=ids, attention_mask=mask, **more).last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize("preset", ["structured", "reference"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trace_without_gradients_serves_any_batch_and_length(architecture, preset):
    states = States(small_model(architecture, preset)).eval()
    example, other = tokens(), tokens(3, 11, seed=1)
    traced = torch.jit.trace(states, tuple(example.values()), check_trace=False)
    torch.testing.assert_close(traced(*other.values()), states(*other.values()))


@torch.no_grad()
def test_the_exporter_by_traces_takes_a_compact_model():
    pytest.importorskip("onnx")
    states = States(small_model("bert")).eval()
    with io.BytesIO() as file:
        torch.onnx.export(states, tuple(tokens().values()), file, dynamo=False, opset_version=17)
        assert file.tell() > 0


@torch.no_grad()
@pytest.mark.parametrize("onednn_from", [None, 1])
def test_a_trace_of_a_layer_is_right_for_any_number_of_rows(onednn_from):
    layer = placing_layer()
    layer.onednn_from = onednn_from
    traced = torch.jit.trace(layer, torch.randn(3, 7), check_trace=False)
    x = torch.randn(6, 7)
    torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize("gradients", [True, False])
def test_an_ensemble_of_compact_models_is_one_call_by_vmap(gradients):
    layer = placing_layer()
    x = torch.randn(4, 7)
    stacked = {name: torch.stack([p, 2 * p]) for name, p in layer.named_parameters()}
    buffers = dict(layer.named_buffers())
    with torch.set_grad_enabled(gradients):
        both = vmap(lambda one: functional_call(layer, (one, buffers), (x,)))(stacked)
        torch.testing.assert_close(both[0], layer(x))
        torch.testing.assert_close(both[1], 2 * layer(x))


def test_forward_mode_derivatives_pass_without_gradients():
    layer = placing_layer()
    x, direction = torch.randn(2, 4, 7)
    with torch.no_grad(), forward_ad.dual_level():
        result = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, direction)))
        expected = layer(direction) - layer(torch.zeros_like(direction))
    torch.testing.assert_close(result.tangent, expected, atol=1e-5, rtol=1e-5)


def test_fake_tensors_and_graphs_of_operations_pass_without_gradients():
    layer = placing_layer()
    x = torch.randn(4, 7)
    with torch.no_grad():
        graph = make_fx(layer)(x)
        torch.testing.assert_close(graph(2 * x), layer(2 * x))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert layer(mode.from_tensor(x)).shape == (4, 9)
