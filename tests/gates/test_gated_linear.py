"""A gated layer: the same function and the same gradients in every code path."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finegates.gates.gate import DerivedGate, FixedGate, Gate
from finegates.gates.gated_linear import GatedLinear, _ScaledRows
from finegates.gates.stochastic import StochasticGate
from finegates.modules.linear import find_linear, is_linear


def make(bias: bool = True, trained: bool = True) -> GatedLinear:
    torch.manual_seed(0)
    base = nn.Linear(6, 4, bias=bias).double()
    base.requires_grad_(trained)
    rows, cols = StochasticGate(4), StochasticGate(6)
    for gate in (rows, cols):
        gate.latent.data = torch.linspace(-1.2, 1.0, gate.size, dtype=torch.float64)
    return GatedLinear(base, rows, cols).train()


def results(layer: GatedLinear, x: torch.Tensor) -> list[torch.Tensor]:
    layer.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    y = layer(x)
    y.square().sum().backward()
    return [y, x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("bias", [True, False])
def test_gates_in_the_weight_are_gates_on_inputs_and_outputs(bias, monkeypatch):
    layer = make(bias)
    x = torch.randn(3, 50, 6, dtype=torch.float64)
    assert layer._trains_weight(x)
    folded = results(layer, x)
    monkeypatch.setattr(GatedLinear, "_trains_weight", lambda self, x: False)
    plain = results(layer, x)
    assert len(folded) == len(plain) == (6 if bias else 5)
    for ours, theirs in zip(folded, plain, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_gates_go_into_a_weight_only_where_that_pays_and_nobody_watches():
    x = torch.randn(3, 50, 6, dtype=torch.float64)
    assert not make(trained=False)._trains_weight(x)
    assert not make()._trains_weight(x[0, :1])  # one token: scaling it is cheaper
    layer = make()
    layer.base.register_forward_hook(lambda *_: None)
    assert not layer._trains_weight(x)


def test_the_gradient_of_row_gates_is_autograds():
    u = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([0.3, 1.0, 0.5, 0.01], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_ScaledRows.apply, (u, rows))
    assert torch.autograd.gradgradcheck(_ScaledRows.apply, (u, rows))


def test_the_gradient_of_clipped_row_gates_has_a_gradient():
    u = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    latent = torch.tensor([0.3, 1.5, -0.5, 0.01], dtype=torch.float64, requires_grad=True)

    def clipped(u, latent):
        return _ScaledRows.apply(u, latent.clamp(0, 1)).square()

    assert torch.autograd.gradgradcheck(clipped, (u, latent))


def test_a_gate_that_is_not_clipped_gets_its_gradient_at_zero():
    class Free(Gate):
        def __init__(self, values):
            super().__init__()
            self.size = len(values)
            self.values = nn.Parameter(values)

        def value(self):
            return self.values

    base = nn.Linear(6, 3).double().requires_grad_(False)
    x = torch.randn(8, 6, dtype=torch.float64)
    gate = Free(torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64))
    for rows in (gate, DerivedGate([(gate, torch.tensor([0, 1, -1]))])):
        layer = GatedLinear(base, rows, None).eval()
        gate.values.grad = None
        layer(x).sum().backward()
        expected = base(x).sum(0)
        expected = expected if rows is gate else expected * torch.tensor([1, 1, 0])
        assert torch.allclose(gate.values.grad, expected)


def test_a_clipped_gate_gets_no_gradient_either_way():
    layer = make(trained=False)
    x = torch.randn(8, 6, dtype=torch.float64)
    torch.manual_seed(1)
    layer(x).square().sum().backward()
    closed = layer.rows.centre() < -0.3  # three times the noise
    assert closed.any()
    assert (layer.rows.latent.grad[closed] == 0).all()
    assert (layer.rows.latent.grad[~closed] != 0).any()


def test_rows_keep_their_output_and_not_what_came_before():
    layer = make(trained=False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(torch.randn(100, 6, dtype=torch.float64, requires_grad=True))
    outputs = {t.data_ptr() for t in kept if t.shape == (100, 4)}
    assert outputs == {y.data_ptr()}


def test_fixed_rows_take_the_plain_product():
    layer = GatedLinear(nn.Linear(3, 2), FixedGate(torch.tensor([1.0, 0.0])))
    assert layer(torch.ones(1, 3))[0, 1] == 0


class Quantised(nn.Linear):
    """Like the layers of quantisation libraries: an nn.Linear whose weight contains codes."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype = torch.int8) -> None:
        super().__init__(inputs, outputs)
        self.weight = nn.Parameter(torch.zeros(outputs, inputs).to(dtype), requires_grad=False)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype):
    layer = Quantised(3, 2, dtype)
    assert not is_linear(layer)
    with pytest.raises(TypeError, match=rf"Quantised is {dtype}.*without quantisation"):
        find_linear(layer)
    with pytest.raises(TypeError, match=str(dtype)):
        GatedLinear(layer, FixedGate(torch.ones(2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_point_weights_are_taken(dtype):
    layer = nn.Linear(3, 2, dtype=dtype)
    assert find_linear(layer) is layer
