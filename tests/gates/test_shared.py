"""Shared gates: one for every dimension that compaction can remove, within a budget."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from finegates.budget import macs, planned_macs
from finegates.compaction import compact
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.detachment import detach
from finegates.gates.gate import DerivedGate, FixedGate
from finegates.gates.gated_linear import gated_layers
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.monitor import summarise_gates
from finegates.gates.penalty import sparsity_penalty
from finegates.gates.stochastic import StochasticGate
from support import tiny
from support.tolerance import model_bound

ARCHITECTURES = sorted(tiny.ARCHITECTURES)


def structured_model(architecture: str, seed: int = 0, **settings: object) -> torch.nn.Module:
    config = GateConfig(preset="structured", sequence_length=7, **settings)  # type: ignore[arg-type]
    model = attach(tiny.tiny_model(architecture), config)
    tiny.scatter_gates(model, seed)
    return model.eval()


def budget_of(model: torch.nn.Module) -> MacsPenalty:
    penalty = sparsity_penalty(model)
    assert isinstance(penalty, MacsPenalty)
    return penalty


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compact_equals_gated(architecture: str) -> None:
    model = structured_model(architecture)

    def some_numbers(m: torch.nn.Module) -> torch.Tensor:
        numbers = tiny.output(m, tiny.tokens()).flatten()
        return numbers[:: max(1, numbers.numel() // 6)]

    bound = model_bound(model, some_numbers)
    assert ((some_numbers(compact(model)) - some_numbers(model)).abs() <= bound).all()
    assert float(bound.max()) < 1e-9


def test_heads_that_cannot_shrink_get_no_gates_inside() -> None:
    model = attach(
        tiny.tiny_model("deberta-v2", share_att_key=False),
        GateConfig(preset="structured", sequence_length=7),
    )
    tiny.scatter_gates(model)
    attention = model.finegates_structure[0]  # type: ignore[index]
    assert attention.scores is attention.values is attention.heads is None
    output, small = tiny.output(model.eval(), tiny.tokens()), compact(model)
    assert torch.allclose(tiny.output(small, tiny.tokens()), output, rtol=0, atol=1e-9)
    assert budget_of(model).realised() < 1


@pytest.mark.parametrize("mean", [0.0, -0.7, -2.0])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_budget_counts_what_compaction_leaves(architecture: str, mean: float) -> None:
    model = structured_model(architecture)
    tiny.scatter_gates(model, seed=1, mean=mean)
    penalty = budget_of(model)
    dense, planned = macs(model, 1, 7), planned_macs(model, 1, 7)
    assert penalty.dense * 7 == dense.total
    assert penalty.realised() == pytest.approx(planned.total / dense.total, abs=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2", "t5"])
def test_every_gate_moves_the_expected_cost(architecture: str) -> None:
    model = structured_model(architecture)
    penalty = budget_of(model)
    for gate in penalty.gates():
        gate.latent.data.uniform_(0.0, 0.5)
    penalty.expected().backward()
    for gate in penalty.gates():
        assert gate.latent.grad is not None
        assert (gate.latent.grad > 0).all(), "opening costs"


@pytest.mark.parametrize("architecture", ["roberta", "llama", "t5"])
@pytest.mark.parametrize("target", [0.0, 0.2, 0.4, 0.7])
def test_what_matters_least_for_its_cost_is_closed_until_the_target_is_met(
    architecture: str, target: float
) -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4}
    sizes |= {"head_dim": 24, "num_key_value_heads": 2} if architecture == "llama" else {}
    model = tiny.tiny_model(architecture, **({} if architecture == "t5" else sizes))
    attach(model, GateConfig(preset="structured", target=target, sequence_length=32))
    penalty = budget_of(model)
    gates = list(penalty.gates())
    generator = torch.Generator().manual_seed(0)
    for gate in gates:
        gate.importance.copy_(torch.rand(gate.size, generator=generator))
    costs = penalty._costs(gates)
    before = [gate.latent.clone() for gate in gates]
    kept = penalty.close_least()
    assert abs(kept - (1 - target)) < 0.02
    worth = torch.cat([gate.importance / cost for gate, cost in zip(gates, costs, strict=True)])
    closed = torch.cat([gate.closed() for gate in gates])
    # An open gate may be worth less than a closed one only if closing it, too, would remove too
    # much.
    skipped = ~closed & (worth < worth[closed].max()) if closed.any() else ~closed & closed
    for number in skipped.nonzero().flatten():
        mask = closed & (worth <= worth[number])
        mask[number] = True
        shut = dict(zip(map(id, gates), mask.split([g.size for g in gates]), strict=True))
        kept = penalty._macs(lambda gate, s=shut: (~s[id(gate)]).float(), packed=True)
        assert float(kept) / penalty.dense < 1 - target
    for gate, old in zip(gates, before, strict=True):
        assert torch.equal(gate.latent[~gate.closed()], old[~gate.closed()]), "open ones rest"


def test_what_matters_more_than_what_is_open_opens_again() -> None:
    penalty = budget_of(structured_model("roberta", target=0.4))
    gates = list(penalty.gates())
    for gate in gates:
        gate.importance.uniform_(0.5, 1.0)
    penalty.close_least()
    assert any(bool(gate.closed().any()) for gate in gates)
    shut = next(gate for gate in gates if bool(gate.closed().any()))
    which = int(shut.closed().nonzero()[0])
    shut.importance[which] = 1e6
    penalty.close_least()
    assert not shut.closed()[which]


def test_the_goal_falls_evenly_to_the_target() -> None:
    penalty = budget_of(structured_model("bert", target=0.4, schedule=(0.1, 0.5, 0.6, 0.8)))
    for progress, goal in ((0.0, 1.0), (0.1, 1.0), (0.3, 0.8), (0.5, 0.6), (1.0, 0.6)):
        penalty.progress = progress
        assert penalty.goal() == pytest.approx(goal)
    penalty.progress = 1.0
    assert float(penalty()) == pytest.approx(abs(penalty.realised() - 0.6), abs=1e-6)


class _Waits(TorchDispatchMode):
    """Counts the calls that read a number from a tensor, which would synchronise a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
def test_the_penalty_of_a_micro_batch_waits_for_no_device(architecture: str) -> None:
    penalty = budget_of(structured_model(architecture))
    with _Waits() as waits:
        penalty().backward()
        assert waits.count == 0
        penalty.realised()
        assert waits.count > 0


def test_a_budget_may_fall_at_once() -> None:
    penalty = budget_of(structured_model("bert", target=0.4, schedule=(0.5, 0.5, 0.6, 0.8)))
    for progress, goal in ((0.0, 1.0), (0.49, 1.0), (0.5, 0.6), (1.0, 0.6)):
        penalty.progress = progress
        assert penalty.goal() == pytest.approx(goal)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_what_is_opened_again_counts_as_open_at_any_noise(noise: float) -> None:
    penalty = budget_of(structured_model("roberta", target=0.4, noise_std=noise))
    for gate in penalty.gates():
        gate.latent.data.fill_(-1.0)
        gate.importance.uniform_(0.5, 1.0)
    kept = penalty.close_least()
    assert abs(kept - 0.6) < 0.05
    assert any(bool(gate.closed().any()) for gate in penalty.gates())


def test_a_head_without_values_costs_nothing() -> None:
    model = structured_model("llama")
    penalty = budget_of(model)
    for gate in penalty.gates():
        gate.latent.data.fill_(1.0)
    attention = model.finegates_structure[0]  # type: ignore[index]
    attention.values.latent.data[: attention.part.head_dim] = -1.0  # of the first group of heads
    dense, planned = macs(model, 1, 7), planned_macs(model, 1, 7)
    assert penalty.realised() == pytest.approx(planned.total / dense.total, abs=1e-6)


def test_hardening_moves_evenly_to_zero_or_one_and_then_rests() -> None:
    gate = StochasticGate(4, "structured")
    gate.latent.data = torch.tensor([-0.2, 0.0, 0.3, 1.4])
    gate.harden(0.5)
    assert torch.allclose(gate.value(), torch.tensor([0.0, 0.0, 0.65, 1.0]))
    assert not gate.latent.requires_grad
    gate.harden(1.0)
    for read in (gate.value, gate.sample):
        assert torch.equal(read(), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    fresh = StochasticGate(4, "structured")
    fresh.load_state_dict(gate.state_dict())
    assert torch.equal(fresh.value(), gate.value()), "the latents alone say it"
    with pytest.raises(ValueError, match="must be in"):
        gate.harden(1.5)
    with pytest.raises(ValueError, match="cannot be hardened"):
        StochasticGate(4, "reference").harden(0.5)


def test_a_derived_gate_is_the_product_of_its_sources() -> None:
    a, b = FixedGate(torch.tensor([0.5, 0.25])), FixedGate(torch.tensor([0.0, 1.0, 0.5]))
    gate = DerivedGate([(a, torch.tensor([0, 1, 1, -1])), (b, torch.tensor([2, 1, 0, -1]))])
    assert torch.equal(gate.value(), torch.tensor([0.25, 0.25, 0.0, 1.0]))
    assert gate.closed().tolist() == [False, False, True, False]
    assert list(gate.leaves()) == [a, b]
    with pytest.raises(ValueError, match="one length"):
        DerivedGate([(a, torch.tensor([0])), (b, torch.tensor([0, 1]))])


def test_summaries_count_a_shared_gate_once() -> None:
    model = structured_model("bert")
    summary = summarise_gates(model)
    assert summary["gates"] == sum(gate.size for gate in budget_of(model).gates())
    # Inputs of attention and feed-forward, outputs of both (12 each), scores and values (12 each),
    # heads (3), hidden (20): two such layers.
    assert summary["gates"] == 2 * (4 * 12 + 2 * 12 + 3 + 20)


def test_detaching_leaves_the_model_as_it_was() -> None:
    model = tiny.tiny_model("llama")
    before = tiny.output(model, tiny.tokens())
    keys = model.state_dict().keys()
    attach(model, GateConfig(preset="structured"))
    tiny.scatter_gates(model)
    detach(model)
    assert model.state_dict().keys() == keys
    assert torch.equal(tiny.output(model.eval(), tiny.tokens()), before)
    assert not gated_layers(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": "target"}, "penalty cannot be chosen"),
        ({"modules": ("*",)}, "modules cannot be chosen"),
        ({"kurtosis": True}, "kurtosis cannot be chosen"),
        ({"rows": False}, "rows cannot be chosen"),
        ({"schedule": (0.0, 0.7, 0.6, 0.8)}, "schedule must increase"),
        ({"schedule": (0.0, 0.0, 0.0, 0.2)}, "before any importance"),
        ({"sequence_length": 0}, "sequence_length"),
    ],
)
def test_what_does_not_go_with_shared_gates_is_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GateConfig(preset="structured", **settings)  # type: ignore[arg-type]
