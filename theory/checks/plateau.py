"""Item 6: how a gate leaves the plateau of the released start, under SGD and under Adam.

A gate whose centre is some σ above 1 is clipped in most steps: with probability 1 − p its gradient
is exactly 0. SGD moves it by η E g, and this mean is proportional to p. Adam divides by the root
mean square, which is proportional to √p. So it moves the gate by η E g/√E g², a factor 1/√p faster.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from scipy.integrate import quad
from torch import Tensor, nn

from finegates.gates.presets import PRESETS
from finegates.gates.stochastic import StochasticGate
from theory.cases import Case
from theory.checks.settings import Settings
from theory.checks.smoothing import noisy_gate
from theory.evidence import Check
from theory.relaxation import density

OPTIMISERS = ("SGD", "Adam")
NOISE = 0.1
WANTED = 0.0
"""Target w of a gate that the task wants closed: loss ½(ω − w)²."""
COPIES = 64
BETA = 0.999
"""β₂ of Adam."""


@cache
def gradient_moment(centre: float, power: int) -> float:
    """E g^power of the pathwise gradient g = (ω − w) 1[0 < ω < 1], by quadrature."""

    def integrand(x: float) -> float:
        return (x - WANTED) ** power * float(density(np.array((x - centre) / NOISE))) / NOISE

    low, high = (float(np.clip(centre + side * 9 * NOISE, 0.0, 1.0)) for side in (-1, 1))
    return float(quad(integrand, low, high, epsabs=1e-15)[0])


def mean_step(optimiser: str, centre: float) -> float:
    """Mean step of a gate at a centre, in units of the learning rate: E g, or E g/√E g² for Adam.

    Adam's value holds after its mean square has settled, and if many of the 1/(1 − β₂) = 1000 steps
    in its average have a gradient.
    """
    first = gradient_moment(centre, 1)
    return first if optimiser == "SGD" else first / np.sqrt(gradient_moment(centre, 2))


def _optimiser(name: str, parameters: list[Tensor], rate: float) -> torch.optim.Optimizer:
    if name == "SGD":
        return torch.optim.SGD(parameters, lr=rate)
    return torch.optim.Adam(parameters, lr=rate)


def _train(gate: StochasticGate, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad()
    ((gate.sample() - WANTED) ** 2 / 2).sum().backward()
    optimiser.step()


def check_drift(settings: Settings) -> Check:
    """−E Δm per step is η E g for SGD and η E g/√E g² for Adam, at centres above 1 by 1 to 2 σ.

    The learning rates are so small that the centre does not move. Measured with ``torch.optim`` on
    the library's gates. Adam's mean square fluctuates by a fraction (1 − β₂)/2p, 2 % at most here.
    """
    cases = []
    for name in OPTIMISERS:
        for centre in (1.1, 1.15, 1.2):
            gate = noisy_gate(4 * COPIES, NOISE, seed=settings.seed)
            nn.init.constant_(gate.latent, centre)
            optimiser = _optimiser(name, [gate.latent], 1e-7)
            for _ in range(1200 if name == "Adam" else 0):
                _train(gate, optimiser)
            before, count = gate.latent.detach().clone(), 500
            for _ in range(count):
                _train(gate, optimiser)
            moved = (before - gate.latent.detach()).numpy() / (1e-7 * count)
            predicted, error = mean_step(name, centre), float(moved.std() / np.sqrt(moved.size))
            slack = 5 * error / predicted + 0.02
            found = float(moved.mean())
            cases.append(Case(f"{name}, m = {centre}", "equal", predicted, found, slack, name))
    return Check(
        "plateau-drift",
        6,
        "law",
        "a gate that is clipped with probability 1 − p moves by η E g ~ p a step under SGD and by "
        "η E g/√E g² ~ √p under Adam",
        "one gate, task ½ω², p above the 1/1000 that Adam remembers; σ = 0.1",
        tuple(cases),
        claim="convergence",
    )


def leaving_time(optimiser: str, rate: float, start: float, end: float) -> float:
    """Steps that a gate of the released code takes from one latent down to another.

    This is the mean dynamics, step by step, with m = tanh a + ½. SGD: a ← a − η E g_a. Adam:
    a ← a − η E g_a/√(v/(1 − β₂^t)) and v ← β₂ v + (1 − β₂) E g_a². Here g_a = g sech² a.
    """
    grid = np.linspace(end, start, 401)
    chain = 1 / np.cosh(grid) ** 2
    centres = [float(np.tanh(place)) + 0.5 for place in grid]
    first = chain * [gradient_moment(centre, 1) for centre in centres]
    second = chain**2 * [gradient_moment(centre, 2) for centre in centres]
    latent, square, step = start, 0.0, 0
    while latent > end:
        step += 1
        move = float(np.interp(latent, grid, first))
        square = BETA * square + (1 - BETA) * float(np.interp(latent, grid, second))
        if optimiser == "Adam":
            move /= np.sqrt(square / (1 - BETA**step))
        latent -= rate * move
    return float(step)


def check_time(settings: Settings) -> Check:
    """Steps until m = 1, as a mean over copies, against the integral of the mean step.

    SGD runs from the released start (a = 1, m = 1.26, p = 0.005), with a learning rate at which one
    gradient moves the gate little. Its time is proportional to 1/η, so it scales to the released
    learning rate. Adam runs from a = 0.85 (p = 0.03). At p = 0.005 it would average so few
    gradients that its mean square is far from its expectation.
    """
    cases = []
    preset = PRESETS["reference"]
    assert preset.noise_std == NOISE
    assert preset.tanh
    assert preset.shift == 0.5
    end = float(np.arctanh(0.5))
    for name, rate, start in (("SGD", 0.015, 1.0), ("Adam", 2.5e-4, 0.85)):
        gate = StochasticGate(COPIES, "reference").double()
        nn.init.constant_(gate.latent, start)
        torch.manual_seed(int(settings.random("plateau", name).integers(2**31)))
        optimiser = _optimiser(name, [gate.latent], rate)
        predicted = leaving_time(name, rate, start, end)
        left = np.full(COPIES, np.nan)
        for step in range(1, int(4 * predicted)):
            _train(gate, optimiser)
            out = gate.latent.detach().numpy() <= end
            left[out & np.isnan(left)] = step
            if not np.isnan(left).any():
                break
        found = float(np.where(np.isnan(left), np.inf, left).mean())
        where = f"{name}, η = {rate}, from a = {start}"
        cases.append(Case(where, "equal", predicted, found, 0.1, name))
    return Check(
        "plateau-time",
        6,
        "law",
        "from the released start to the edge of the plateau SGD takes the steps of its mean "
        "dynamics, and so does Adam once p is several times 1 − β₂",
        "one gate, task ½ω², no penalty; σ = 0.1, m = tanh a + ½",
        tuple(cases),
        claim="convergence",
    )
