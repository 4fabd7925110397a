"""Tangents of a classifier's rows and what follows from them, against automatic differentiation."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import finegates as fg
from finegates.gates.gated_linear import GatedLinear
from finegates.suite.config.theory import NetworkLook
from support.tier import tiny_tier
from support.tiny import tiny_model
from theory import finetuned
from theory.closing import closing_rows, coherence, second_order_bound
from theory.finetuned import FREE, LORA, TRAINED, look_at, probe_batches
from theory.free_gates import FreeGate, free_gates
from theory.network import Tangents, local_landscape, output_loss, seen_outputs, tangents_of


def batches(classes: int, count: int = 6) -> list[dict[str, torch.Tensor]]:
    """Batches of different lengths; labels are real numbers for one class."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for length in (5, 7):
        ids = torch.randint(3, 40, (count // 2, length), generator=draw)
        labels = (
            torch.rand(count // 2, generator=draw, dtype=torch.float64)
            if classes == 1
            else torch.randint(0, classes, (count // 2,), generator=draw)
        )
        found.append({"input_ids": ids, "labels": labels})
    return found


def loss_of(model: nn.Module, parts: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The mean loss over all rows, by the model itself; every batch has as many."""
    losses = [model(**part).loss for part in parts]
    return torch.stack(losses).mean()


def gated(classes: int, preset: str = "structured") -> tuple[nn.Module, list[FreeGate]]:
    """A BERT in float64 with free gates between 0.4 and 1, some of them closed."""
    torch.manual_seed(1)
    model = tiny_model("bert", num_labels=classes)
    fg.attach(model, fg.GateConfig(preset=preset))
    gates = free_gates(model)
    for gate in gates:
        nn.init.uniform_(gate.values, 0.4, 1.0)
        gate.values.data[0] = 0.0
    return model, gates


def lora(classes: int) -> tuple[nn.Module, list[nn.Module], list[nn.Parameter]]:
    """A BERT with low-rank factors, none of them zero."""
    torch.manual_seed(1)
    model = fg.add_lora(tiny_model("bert", num_labels=classes), rank=2).double().eval()
    factors = {n: p for n, p in model.named_parameters() if ".lora_" in n}
    for factor in factors.values():
        nn.init.normal_(factor, std=0.3)
    leaves = [model.get_submodule(name.removesuffix(".weight")) for name in factors]
    return model, leaves, list(factors.values())


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("kind", ["reference", "structured", "LoRA"])
def test_tangents_give_loss_and_gradient_of_automatic_differentiation(kind, classes):
    parts = batches(classes)
    if kind == "LoRA":
        model, leaves, parameters = lora(classes)
    else:
        model, leaves = gated(classes, kind)
        parameters = [gate.values for gate in leaves]
    found = tangents_of(model, leaves, parts)
    loss = loss_of(model, parts)
    slopes = torch.autograd.grad(loss, parameters)
    assert found.mean == pytest.approx(loss.item(), rel=1e-12)
    expected = torch.cat([slope.reshape(-1) for slope in slopes]).numpy()
    size = np.abs(expected).max()
    assert found.gradient == pytest.approx(expected, abs=1e-10 * size)
    assert found.row_gradients().mean(0) == pytest.approx(expected, abs=1e-10 * size)


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_the_spectrum_is_that_of_the_hessian_where_outputs_are_linear(classes):
    """Column gates of one layer: the Gauss–Newton matrix is the Hessian."""
    torch.manual_seed(2)
    linear = nn.Linear(5, classes, dtype=torch.float64)
    gate = FreeGate(torch.rand(5, dtype=torch.float64))
    layer = GatedLinear(linear, None, gate)
    inputs = torch.randn(9, 1, 5, dtype=torch.float64)
    labels = torch.rand(9).double() if classes == 1 else torch.randint(0, classes, (9,))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.layer(x)[:, 0])

    def loss(values: torch.Tensor) -> torch.Tensor:
        logits = (inputs[:, 0] * values) @ linear.weight.T + linear.bias
        if classes == 1:
            return nn.functional.mse_loss(logits[:, 0], labels)
        return nn.functional.cross_entropy(logits, labels)

    model = Model().eval()
    tangents = tangents_of(model, [gate], [{"x": inputs, "labels": labels}])
    hessian = torch.autograd.functional.hessian(loss, gate.values.detach()).numpy()
    root = tangents.root()
    assert root.T @ root == pytest.approx(hessian, abs=1e-10)
    values = np.linalg.eigvalsh(hessian)
    found = local_landscape(tangents)
    assert found.largest == pytest.approx(values[-1])
    assert found.smallest == pytest.approx(values[0], rel=1e-6)
    assert found.ratio == pytest.approx(found.squared_gradient / (2 * found.loss))
    # Nowhere is the curvature larger than ``most`` says.
    most = tangents.root(most=True)
    assert np.linalg.eigvalsh(most.T @ most - hessian)[0] > -1e-12


def test_more_parameters_than_rows_have_the_spectrum_of_the_rows():
    tangents = Tangents(
        output_loss(np.zeros((3, 1)), np.array([0, 1, 1])),
        np.random.default_rng(0).standard_normal((3, 1, 8)),
    )
    values = np.linalg.eigvalsh(tangents.root().T @ tangents.root())
    found = local_landscape(tangents)
    assert found.smallest == pytest.approx(values[-3])
    assert found.largest == pytest.approx(values[-1])
    halved = local_landscape(tangents.scaled(np.full(8, 0.5)))
    assert halved.largest == pytest.approx(found.largest / 4)


def test_a_loss_that_is_not_finite_and_wrong_leaves_are_refused():
    with pytest.raises(ValueError, match="the loss is nan"):
        output_loss(np.array([[np.nan]]), np.array([0]))
    model, _ = gated(2)
    before = [len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(ValueError, match="no parameters to look at"):
        tangents_of(model, [], batches(2))
    with pytest.raises(TypeError, match="LayerNorm is neither a free gate nor a linear layer"):
        tangents_of(model, [nn.LayerNorm(3)], batches(2))
    assert [len(module._forward_pre_hooks) for module in model.modules()] == before


def test_coherence_runs_from_one_to_the_number_of_gates():
    assert coherence(np.eye(4)) == pytest.approx(1)
    assert coherence(np.ones((2, 4))) == pytest.approx(4)
    assert coherence(np.zeros((2, 4))) == 1
    root = np.random.default_rng(0).standard_normal((6, 4))
    assert second_order_bound(root) >= np.sum(root.sum(axis=1) ** 2) / 2


@pytest.mark.parametrize(
    ("correlation", "gates", "added", "bound"),
    [
        # ½ Σ_jk ω_j ω_k ρ_jk against ½ (largest eigenvalue) Σ ω_j², by hand.
        (0.5, (1.0, 1.0, 1.0), 3.0, 3.0),
        (0.0, (1.0, 1.0, 1.0), 1.5, 1.5),
        (-0.5, (1.0, 1.0), 0.5, 1.5),
        (0.5, (1.0, 0.2, 0.2), 0.76, 1.08),
    ],
)
def test_the_bound_on_closing_is_attained_for_equal_contributions_of_one_correlation_from_0_on(
    correlation, gates, added, bound
):
    size = len(gates)
    matrix = (1 - correlation) * np.eye(size) + correlation * np.ones((size, size))
    root = np.linalg.cholesky(matrix).T * gates
    assert np.sum(root.sum(axis=1) ** 2) / 2 == pytest.approx(added)
    assert second_order_bound(root) == pytest.approx(bound)


def test_closing_rows_are_those_of_the_model_with_closed_gates():
    model, gates = gated(2)
    model.set_attn_implementation("eager")  # fused attention has no second derivatives
    parts = batches(2)
    values = torch.cat([gate.values.detach().clone() for gate in gates])
    before = loss_of(model, parts)
    slopes = torch.cat(torch.autograd.grad(before, [gate.values for gate in gates]))
    rows = list(closing_rows(model, gates, parts))
    assert torch.equal(torch.cat([gate.values.detach() for gate in gates]), values)
    tangents = tangents_of(model, gates, parts)
    change = (tangents.row_gradients() * values.numpy()) ** 2
    order = [j for j in np.argsort(change.mean(0), kind="stable") if values[j] != 0]
    row = rows[-1]
    chosen = order[: int(row["closed"])]
    assert len(chosen) == round(0.3 * len(order))
    closed = copy.deepcopy(model)
    left = values.clone()
    left[chosen] = 0
    for gate, part in zip(
        [m for m in closed.modules() if isinstance(m, FreeGate)],
        left.split([gate.size for gate in gates]),
        strict=True,
    ):
        gate.values.data.copy_(part)
    added = float(loss_of(closed, parts) - before)
    assert row["added"] == pytest.approx(added, abs=1e-12)
    assert row["linear"] == pytest.approx(-float((slopes * values)[chosen].sum()), abs=1e-12)
    direction = left - values

    def along(t: torch.Tensor) -> torch.Tensor:
        moved = (values + t * direction).split([gate.size for gate in gates])
        names = [f"{name}.values" for name, m in model.named_modules() if isinstance(m, FreeGate)]
        state = dict(zip(names, moved, strict=True))
        return torch.stack(
            [torch.func.functional_call(model, state, (), dict(part)).loss for part in parts]
        ).mean()

    start = torch.zeros((), dtype=torch.float64)
    curved = torch.autograd.functional.hessian(along, start) / 2
    assert row["curved"] == pytest.approx(float(curved), rel=1e-2)
    assert row["steepest"] >= row["curved"]
    assert row["coherence"] >= 1


def test_a_tiny_encoder_is_looked_at_along_both_trainings_with_every_seed(tmp_path):
    tier = tiny_tier(tmp_path)
    look = NetworkLook(steps=4, looks=2, rank=2, rows=24, gate_learning_rate=0.2, seeds=[0, 3])
    found = look_at(tier, "cola", look, progress=False)
    points = found.points
    assert set(points["parameters"]) == {TRAINED, FREE, LORA}
    assert list(points[(points["parameters"] == LORA) & (points["seed"] == 3)]["step"]) == [0, 4]
    start = points[(points["step"] == 0) & (points["parameters"] == TRAINED)].iloc[0]
    # The released code's gates start saturated: no trained parameter affects the task loss.
    assert start["saturated"] > 0.9
    assert start["ratio"] < 1e-3 * points[points["parameters"] == FREE]["ratio"].iloc[0]
    assert (points["largest"] >= points["smallest"]).all()
    assert points.groupby(["parameters", "step"])["loss"].nunique().min() == 2
    assert list(found.closing["seed"]) == [0] * 4 + [3] * 4


def test_a_small_task_is_looked_at_with_all_its_rows(tmp_path, monkeypatch):
    counts = []

    def counted(data, rows):
        counts.append((rows, len(data.train)))
        return probe_batches(data, rows)

    monkeypatch.setattr(finetuned, "probe_batches", counted)
    look_at(tiny_tier(tmp_path), "cola", NetworkLook(steps=1, looks=2, rank=2, seeds=[0]))
    ((rows, whole),) = counts
    assert rows == whole < finetuned.ROWS


def test_more_rows_than_the_task_has_are_refused(tmp_path):
    look = NetworkLook(rows=10_000)
    with pytest.raises(ValueError, match=r"theory.network.rows is 10000, but task 'cola' has"):
        look_at(tiny_tier(tmp_path), "cola", look, progress=False)


def test_outputs_that_the_loss_sees_are_differences_of_logits():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert seen_outputs(logits).tolist() == [[2.0, 1.0]]
    assert seen_outputs(logits[:, :1]).tolist() == [[1.0]]
