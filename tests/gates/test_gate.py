"""Gate formulas against hand-computed values and closed-form expectations."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from finegates.gates.draw import GateDraw
from finegates.gates.gate import FixedGate
from finegates.gates.presets import PRESETS, preset_named
from finegates.gates.stochastic import HARDNESS, OPEN_FROM, StochasticGate


def gate_at(preset: str, *latents: float) -> StochasticGate:
    gate = StochasticGate(len(latents), preset)
    gate.latent.data = torch.tensor(latents, dtype=torch.float64)
    return gate


def expected_clipped_normal(mean: float, std: float) -> float:
    """E clip(m + eps, 0, 1) for eps ~ N(0, std^2), by the normal's partial moments."""
    a, b = (0 - mean) / std, (1 - mean) / std
    phi, cdf = stats.norm.pdf, stats.norm.cdf
    return mean * (cdf(b) - cdf(a)) - std * (phi(b) - phi(a)) + 1 - cdf(b)


def test_reference_gate_follows_the_released_formulas():
    gate = gate_at("reference", 1.0, 0.0, -0.5, -2.0)
    means = [0.761594155955765, 0.0, -0.46211715726, -0.96402758007]  # tanh, by hand
    assert gate.value().tolist() == pytest.approx([1.0, 0.5, 0.03788284274, 0.0])
    expected = [stats.norm.cdf((m + 0.5) / 0.5) for m in means]
    assert gate.open_probability().tolist() == pytest.approx(expected)


def test_reference_gate_at_its_start_is_open_with_probability_0_994():
    # Phi((tanh(1) + 1/2) / (1/2)) = Phi(2.523188...)
    assert gate_at("reference", 1.0).open_probability().item() == pytest.approx(0.99418, abs=1e-5)


def test_paper_v1_gate_follows_the_formulas_of_version_1():
    gate = gate_at("paper_v1", 1.0, 0.25, -0.1)
    assert gate.value().tolist() == pytest.approx([1.0, 0.25, 0.0])
    expected = [stats.norm.cdf(m / 0.5) for m in (1.0, 0.25, -0.1)]
    assert gate.open_probability().tolist() == pytest.approx(expected)


def test_starts_are_those_of_the_presets():
    torch.manual_seed(0)
    reference = StochasticGate(20_000, "reference").latent
    assert reference.mean().item() == pytest.approx(1.0, abs=5 * 0.1 / math.sqrt(20_000))
    assert reference.std().item() == pytest.approx(0.1, rel=0.05)
    assert StochasticGate(7, "paper_v1").latent.tolist() == [1.0] * 7


@pytest.mark.parametrize(("preset", "latent"), [("reference", -0.3), ("paper_v1", 0.8)])
def test_samples_have_the_closed_form_expectation(preset, latent):
    torch.manual_seed(1)
    n = 200_000
    gate = gate_at(preset, *[latent] * n)
    centre, std = gate.centre()[0].item(), gate.preset.noise_std
    expected = expected_clipped_normal(centre, std)
    by_quadrature = integrate.quad(
        lambda e: min(max(centre + e, 0.0), 1.0) * stats.norm.pdf(e, scale=std),
        -8 * std,
        8 * std,
        points=[-centre, 1 - centre],
    )[0]
    assert expected == pytest.approx(by_quadrature, abs=1e-7)
    sampled = gate.sample().mean().item()
    assert abs(sampled - expected) < 5 * std / math.sqrt(n)  # at most five standard errors


@given(st.floats(-4, 4))
def test_a_closed_gate_is_open_with_probability_at_most_one_half_and_an_open_one_at_least(latent):
    for preset in PRESETS:
        gate = gate_at(preset, latent)
        assert gate.closed().item() == (gate.centre().item() <= 0)
        probability = gate.open_probability().item()
        assert probability <= 0.5 if gate.closed().item() else probability >= 0.5


def test_the_pathwise_gradient_vanishes_where_the_gate_saturates():
    gate = gate_at("reference", 2.0, 0.0, -2.0)
    gate.sample().sum().backward()
    gradient = gate.latent.grad.tolist()
    assert gradient[0] == 0.0
    assert gradient[1] != 0.0
    assert gradient[2] == 0.0


def test_a_gate_samples_in_training_and_is_constant_in_evaluation():
    torch.manual_seed(2)
    gate = gate_at("reference", *[0.0] * 8)
    assert not torch.equal(gate(), gate())
    gate.eval()
    assert torch.equal(gate(), gate())
    assert torch.equal(gate(), gate.value())


def test_without_noise_a_sample_is_the_value():
    gate = StochasticGate(5, preset_named("reference", noise_std=0.0))
    assert torch.equal(gate.sample(), gate.value())


def test_another_noise_replaces_both_sigmas_of_paper_v1_and_only_the_noise_of_reference():
    assert preset_named("paper_v1", 0.3).probability_std == 0.3
    assert preset_named("reference", 0.3).probability_std == 0.5
    assert preset_named("reference", 0.3).noise_std == 0.3


def test_open_probability_of_reference_stays_in_its_stated_range():
    low, high = PRESETS["reference"].open_probability_range()
    assert (low, high) == pytest.approx((0.158655, 0.998650), abs=1e-6)
    probability = gate_at("reference", *np.linspace(-30, 30, 101).tolist()).open_probability()
    assert probability.min().item() >= low - 1e-12
    assert probability.max().item() <= high + 1e-12


def scaled_gate(latents: list[float], factors: list[float]) -> StochasticGate:
    gate = StochasticGate(len(latents), dataclasses.replace(PRESETS["structured"], noise_std=0.0))
    gate.latent.data = torch.tensor(latents)
    gate.scale.data = torch.tensor(factors)
    return gate


@given(
    st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=20),
    st.floats(0, 1),
)
def test_a_factor_multiplies_the_gate_and_is_never_below_what_counts_as_open(numbers, hardness):
    latents, factors = map(list, zip(*numbers, strict=True))
    gate = scaled_gate(latents, factors)
    gate.harden(hardness)
    expected = gate.openness() * gate.scale.clamp(min=OPEN_FROM)
    torch.testing.assert_close(gate.value(), expected)
    torch.testing.assert_close(gate.sample(), expected)
    assert ((gate.openness() >= 0) & (gate.openness() <= 1)).all()
    assert torch.equal(gate.closed(), gate.centre() <= 0)
    gate.harden(1.0)
    assert ((gate.value() == 0) | (gate.value() >= OPEN_FROM - 1e-6)).all()


def test_a_factor_trains_on_after_the_decision_and_finds_back_from_below_its_bound():
    gate = scaled_gate([1.0, 1.0, -1.0], [1.2, 0.5, 1.2])
    gate.harden(1.0)
    gate.sample().sum().backward()
    assert gate.latent.grad is None
    assert gate.scale.grad.tolist() == [1.0, 1.0, 0.0]  # the last one is closed


def test_importance_is_the_mean_squared_gradient_of_the_factors_of_open_gates():
    gate = scaled_gate([1.0, 0.4, -1.0], [1.0, 1.0, 1.0])
    expected = torch.zeros(3)
    for slope in ([1.0, 2.0, 5.0], [-3.0, 0.5, 5.0]):
        gate.scale.grad = None
        (gate.value() * torch.tensor(slope)).sum().backward()
        gate.observe()
        expected = 0.99 * expected + 0.01 * (gate.openness() * torch.tensor(slope)).detach() ** 2
    assert torch.allclose(gate.importance, expected)
    assert gate.importance[2] == 0, "what is closed keeps what it had"
    plain = StochasticGate(3, "reference")
    plain.observe()
    assert plain.importance is None


def test_only_scaled_presets_have_factors():
    assert PRESETS["structured"].scaled
    assert StochasticGate(3, "structured").scale.tolist() == [1.0, 1.0, 1.0]
    assert StochasticGate(3, "reference").scale is None
    assert StochasticGate(3, "paper_v1").scale is None


def test_fixed_gates_are_never_trained_and_never_sampled():
    gate = FixedGate(torch.tensor([0.0, 0.5, 1.0]))
    assert list(gate.parameters()) == []
    assert torch.equal(gate.train()(), gate.eval()())
    assert gate.closed().tolist() == [True, False, False]
    assert gate.open_probability().tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "values", [torch.tensor([]), torch.ones(2, 2), torch.tensor([1]), torch.tensor([math.nan])]
)
def test_fixed_gates_refuse_what_is_no_vector_of_finite_numbers(values):
    with pytest.raises(ValueError, match="fixed gates"):
        FixedGate(values)


def test_bad_gates_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="unknown gate preset 'refrence'"):
        StochasticGate(3, "refrence")
    with pytest.raises(ValueError, match="at least one dimension"):
        StochasticGate(0)
    with pytest.raises(ValueError, match="noise_std"):
        preset_named("reference", -1.0)


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@given(SIZES, st.sampled_from(sorted(PRESETS)), st.integers(0, 2**31))
def test_gates_drawn_at_once_are_those_drawn_alone_to_the_bit_where_there_is_no_noise(
    sizes, name, seed
):
    preset = dataclasses.replace(preset_named(name), noise_std=0.0)
    gates = [
        StochasticGate(n, preset, generator=torch.Generator().manual_seed(seed)) for n in sizes
    ]
    trained = [parameter for gate in gates for parameter in gate.parameters()]
    assert len(trained) == len(gates) * (1 + preset.scaled)
    alone = torch.cat([gate.sample() for gate in gates])
    weights = torch.arange(1.0, alone.numel() + 1)
    expected = torch.autograd.grad((alone * weights).sum(), trained)
    with GateDraw(gates):
        together = torch.cat([gate.sample() for gate in gates])
    assert torch.equal(together, alone)
    found = torch.autograd.grad((together * weights).sum(), trained)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gates_drawn_at_once_have_noise_of_their_own_and_fresh_at_every_draw():
    gates = [StochasticGate(4000) for _ in range(2)]
    for gate in gates:
        gate.latent.data.zero_()  # centre 1/2: far from both ends
    draws = []
    for _ in range(2):
        with GateDraw(gates):
            draws += [gate.sample().detach() - 0.5 for gate in gates]
    noise = torch.stack(draws)
    assert torch.allclose(noise.std(1), torch.full((4,), 0.1), rtol=0.05)
    assert torch.allclose(torch.corrcoef(noise), torch.eye(4), atol=0.07)


def test_a_draw_is_the_same_at_each_use_and_ends_with_its_block():
    gates = [StochasticGate(50), StochasticGate(50)]
    for gate in gates:
        gate.latent.data.zero_()
    with GateDraw(gates):
        first, second = gates[0].sample(), gates[0].sample()
        assert torch.equal(first, second)
    torch.manual_seed(1)
    after = gates[0].sample()
    assert not torch.equal(after, first)
    torch.manual_seed(1)
    assert torch.equal(after, gates[0].sample()), "nothing is left of the draw"


def test_gates_that_harden_or_differ_draw_for_themselves():
    soft, hard = (StochasticGate(8, "structured") for _ in range(2))
    hard.harden(0.5)
    other, constant = StochasticGate(8), FixedGate(torch.ones(8))
    with GateDraw([soft, hard, other, constant, soft]) as draw:
        assert draw.gates == [soft, hard]
        torch.manual_seed(1)
        found = soft.sample()
    torch.manual_seed(1)
    assert torch.equal(found, soft.sample())


@pytest.mark.parametrize("hardness", [0.0, 1e-6, 1 / 3, 1.0])
def test_a_state_dict_brings_back_how_far_a_gate_was_hardened(hardness):
    gate = StochasticGate(5, "structured")
    with torch.no_grad():
        gate.latent.copy_(torch.tensor([-1.0, -0.1, 0.2, 0.6, 2.0]))
    gate.harden(hardness)
    again = StochasticGate(5, "structured")
    again.harden(0.5)  # it contained something else
    again.load_state_dict(copy.deepcopy(gate.state_dict()))
    assert again.hardness == hardness
    assert torch.equal(again.value(), gate.value())
    assert again.latent.requires_grad == (hardness == 0.0)
    assert again.scale.requires_grad


@pytest.mark.parametrize("preset", ["reference", "paper_v1", "structured"])
def test_a_state_dict_from_before_hardness_was_kept_still_loads(preset):
    gate = StochasticGate(3, preset)
    old = {k: v for k, v in gate.state_dict().items() if not k.endswith(HARDNESS)}
    again = StochasticGate(3, preset)
    again.load_state_dict(old)
    assert torch.equal(again.latent, gate.latent)


def test_a_latent_that_was_frozen_by_hand_stays_so_when_a_state_is_loaded():
    gate = StochasticGate(3, "structured")
    gate.latent.requires_grad_(False)
    gate.load_state_dict(StochasticGate(3, "structured").state_dict())
    assert not gate.latent.requires_grad


@pytest.mark.parametrize("hardness", [-0.1, 1.5, math.nan])
def test_a_state_with_an_impossible_hardness_is_refused(hardness):
    gate = StochasticGate(3, "structured")
    with pytest.raises(ValueError, match="hardness"):
        gate.set_extra_state(torch.tensor(hardness))
    assert gate.hardness == 0.0
