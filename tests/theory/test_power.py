"""A law's check notices a factor of 1.25 on its constant, planted where it is computed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from theory.bilinear import LocalRegion
from theory.checks.settings import Settings
from theory.escape import NoisySaddle
from theory.evidence import EXACT
from theory.penalties import OneGate
from theory.priced import Priced
from theory.problems import Problem
from theory.quadratic import Quadratic
from theory.relaxation import Relaxed, density, vertex_minima
from theory.study import TOY_CHECKS

SMALL = Settings(
    problems=2, trials=6, limit=60, runs=24, steps=1500, samples=20_000, gate_steps=600
)

CONSTANTS = {
    "columns-schur": "theory.checks.single.schur_lower_bound",
    "columns-schur-singular": "theory.checks.single.schur_range_bound",
    "box-prox-pl": "theory.checks.clipping.box_constant",
    "box-descent": "theory.checks.clipping.box_constant",
    "relaxation-curvature": "theory.checks.smoothing.mean_clip_curvature",
    "relaxation-bias": "theory.checks.smoothing.inside_charge",
    "relaxation-charge": "theory.checks.relaxed.inside_charge",
    "plateau-drift": "theory.checks.plateau.mean_step",
    "plateau-time": "theory.checks.plateau.leaving_time",
    "penalty-kink": "theory.checks.objective.predicted_jump",
    "price-prox-pl": "theory.checks.objective.box_constant",
    "sgd-minibatch": "theory.checks.losses.minibatch_ball",
    "closing-bound": "theory.checks.closing.second_order_bound",
    "adamw-rest": "theory.checks.adaptive.shift_of_decay",
    "adamw-ball": "theory.checks.adaptive.adam_ball",
    "joint-price-minima": "theory.checks.together.lower_height",
    "sgd-linear": "theory.checks.convergence.expected_excess",
    "sgd-ball": "theory.checks.convergence.noise_ball",
    "sgd-decaying": "theory.checks.convergence.decaying_constant",
    "sgd-gradient": "theory.checks.stationarity.expected_squared_gradient",
    "joint-saddle": "theory.checks.joint.saddle_coupling",
    "penalty-half-open": "theory.checks.sparsity.penalty_minimiser",
    "escape-plateau": "theory.checks.escape.plateau_time",
}
"""Checks, and the functions that compute their constants."""


SLOW = (
    "plateau-drift", "plateau-time", "penalty-half-open", "relaxation-bias", "adamw-rest",
    "adamw-ball", "joint-price-minima",
)  # fmt: skip
"""Checks that run once, with the slow tests. Their cases are equalities, which notice both
directions, and the power of every law is tested without a rerun.
"""


def scaled(function: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """The function with a wrong factor."""
    return lambda *arguments: factor * function(*arguments)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CONSTANTS],
)
def test_a_constant_wrong_by_a_quarter_is_found_out(monkeypatch, name):
    module, _, function = CONSTANTS[name].rpartition(".")
    original = getattr(importlib.import_module(module), function)
    for factor in (EXACT, 1 / EXACT)[: 1 if name in SLOW else 2]:
        monkeypatch.setattr(CONSTANTS[name], scaled(original, factor))
        assert TOY_CHECKS[name](SMALL).verdict == "contradicted"


@pytest.mark.parametrize(
    ("name", "owner", "attribute"),
    [
        ("columns-pl", Quadratic, "pl_constant"),
        ("columns-descent", Quadratic, "pl_constant"),
        ("rows-descent", Quadratic, "pl_constant"),
        ("relaxation-growth", Relaxed, "lipschitz_growth"),
        ("sgd-unbiased", Relaxed, "gradient"),
        ("escape-saddle", NoisySaddle, "balance"),
        pytest.param("penalty-threshold", OneGate, "keeping_weight", marks=pytest.mark.slow),
    ],
)
def test_a_method_wrong_by_a_quarter_is_found_out(monkeypatch, name, owner, attribute):
    original = getattr(owner, attribute)
    if isinstance(original, property):
        wrong: Any = property(lambda self: EXACT * original.fget(self))
    else:
        wrong = scaled(original, EXACT)
    monkeypatch.setattr(owner, attribute, wrong)
    assert TOY_CHECKS[name](SMALL).verdict == "contradicted"


def _one_bump(centre: np.ndarray, sigma: float) -> np.ndarray:
    return density(np.asarray(centre) / sigma) / sigma


def _bounded_by_the_free_constant(quadratic: Quadratic) -> float:
    return quadratic.pl_constant


def _larger_where_singular(original: Callable[..., Any]) -> Callable[..., Any]:
    def constant(quadratic: Quadratic) -> float:
        regular = bool(np.all(quadratic.spectrum()[0] > 0))
        return original(quadratic) * (1.0 if regular else EXACT)

    return constant


def _stiffer(original: Callable[..., Any]) -> Callable[..., Any]:
    """A closed form of the Hessian that is too large by a quarter."""

    def quadratic(problem: Problem) -> Quadratic:
        exact = original(problem)
        return replace(exact, hessian=EXACT * exact.hessian)

    return quadratic


def _half_as_low(original: Callable[..., Any]) -> Callable[..., Any]:
    def minimiser(problem: Problem, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
        b, a, low = original(problem, rank)
        return b, a, low / 2

    return minimiser


def _hard_vertices(quadratic: Quadratic) -> np.ndarray:
    hessian = quadratic.hessian
    return vertex_minima(replace(quadratic, hessian=hessian - np.diag(np.diag(hessian)) / 2))


def _padded(problem: Problem) -> np.ndarray:
    """Row gates alone, padded to the shape of all gates."""
    return np.eye(problem.rows, problem.rows + problem.cols)


def _larger_on_one_side(original: Callable[..., Any]) -> Callable[..., Any]:
    def gradient(problem: Problem, centres: np.ndarray, sigma: float) -> np.ndarray:
        slopes = original(problem, centres, sigma)
        return np.concatenate([EXACT * slopes[: problem.rows], slopes[problem.rows :]])

    return gradient


def _without_coherence(root: np.ndarray) -> float:
    return root.shape[1] * float(np.sum(root**2)) / 2


class _short(Priced):
    def descended(self, gates: np.ndarray, rate: float, steps: int) -> np.ndarray:
        return super().descended(gates, rate, steps if steps == 20 else 0)


class _noisier(NoisySaddle):
    @classmethod
    def of(cls, problem: Problem, sigma: float) -> NoisySaddle:
        return NoisySaddle.of(problem, np.sqrt(EXACT) * sigma)


class _without_face(Priced):
    def face(self, gates: np.ndarray) -> np.ndarray:
        return np.eye(len(gates))


def _longer(bias: np.ndarray | None) -> np.ndarray | None:
    return None if bias is None else EXACT * bias


def _leaking(original: Callable[..., Any]) -> Callable[..., Any]:
    def gradient(problem, centres):  # type: ignore[no-untyped-def]
        height, slope = original(problem, centres)
        return height, slope + 1e-7

    return gradient


@pytest.mark.parametrize(
    ("name", "place", "wrong"),
    [
        # Drops the second peak of m''.
        ("relaxation-curvature", "smoothing.mean_clip_curvature", lambda f: _one_bump),
        # The unconstrained PL constant, although the box worsens the conditioning.
        ("box-prox-pl", "clipping.box_constant", lambda f: _bounded_by_the_free_constant),
        # The constant of singular data alone.
        ("box-prox-pl", "clipping.box_constant", _larger_where_singular),
        # Both sides would share these.
        ("joint-path", "joint.with_known_least", lambda f: lambda p, r: (f(p, r)[0], 0.3)),
        ("joint-path", "joint.saddle_coupling", lambda f: scaled(f, EXACT)),
        ("lora-path", "lowrank.lora_minimiser", _half_as_low),
        ("box-prox-pl", "clipping.column_quadratic", _stiffer),
        ("price-prox-pl", "objective.column_quadratic", _stiffer),
        ("relaxation-growth", "smoothing.column_quadratic", _stiffer),
        ("sgd-unbiased", "convergence.column_quadratic", _stiffer),
        ("sgd-linear", "convergence.column_quadratic", _stiffer),
        ("sgd-ball", "convergence.column_quadratic", _stiffer),
        ("sgd-gradient", "stationarity.column_quadratic", _stiffer),
        # A small gradient instead of zero.
        ("clip-plateau", "clipping.module_gradient", _leaking),
        # Importances that ignore the size of the gates.
        ("closing-importance", "closing.squares_root", lambda f: lambda p, g: f(p, g**0)),
        # The number of closed gates, as if all did the same.
        ("closing-bound", "closing.second_order_bound", lambda f: _without_coherence),
        # A task loss that is 1.25 as large for one side.
        pytest.param(
            "joint-clarke",
            "together.relaxed_joint_gradient",
            _larger_on_one_side,
            marks=pytest.mark.slow,
        ),
        # The curvature of the whole space instead of the face.
        ("joint-price-rate", "together.Priced", lambda f: _without_face),
        # A descent that does not move before the rate is measured.
        ("joint-price-rate", "together.Priced", lambda f: _short),
        # A task that pulls a quarter harder.
        ("penalty-unlike", "objective.task_pulls", lambda f: scaled(f, EXACT)),
        # Flips judged by the hard loss, without the cost of noise.
        pytest.param(
            "relaxation-vertices",
            "relaxed.vertex_minima",
            lambda f: _hard_vertices,
            marks=pytest.mark.slow,
        ),
        ("relaxation-moments", "smoothing.mean_clip", lambda f: lambda m, s: f(m, 1.01 * s)),
        ("relaxation-modules", "smoothing.square_clip", lambda f: lambda m, s: f(m + 0.05, s)),
        ("lora-zeros", "lowrank.zero_eigenvalues", lambda f: lambda *a: f(*a) + 1),
        ("joint-saddle", "joint.saddle_coupling", lambda f: lambda p: f(p) + 0.1),
        ("joint-region", "critical.nearest_in_plane", lambda f: lambda p: 0.99 * f(p)),
        ("spurious-minima", "rank_one.two_by_two", lambda f: lambda k, t: f(k, 1.01 * t)),
        ("escape-time", "beyond.saddle_coupling", lambda f: lambda p: f(p) * EXACT),
        ("escape-time", "beyond.update_moment", lambda f: lambda p: f(p) / EXACT),
        (
            "reach-dense",
            "beyond.jacobian",
            lambda f: lambda p, o: f(p, o)[:, : p.rows] @ _padded(p),
        ),
        ("reach-dense", "beyond.factor_reach", lambda f: scaled(f, 1 / EXACT)),
        ("joint-bias", "bias.biased_residual", lambda f: lambda p, b: f(p, _longer(b))),
        # The saddle of a layer without a bias, although the bias is trained.
        ("joint-bias", "bias.biased_coupling", lambda f: lambda p: f(p)[:, : p.cols]),
        # A noise whose charge on the closed point is a quarter larger.
        ("escape-saddle", "escape.NoisySaddle", lambda f: _noisier),
        ("escape-saddle", "escape.stabilising_noise", lambda f: scaled(f, 1 / EXACT)),
        # A price whose slope is three times that of the library, or of another σ_p.
        ("escape-saddle", "escape.price_slope", lambda f: scaled(f, 3.0)),
        ("escape-saddle", "escape.price_slope", lambda f: lambda m, p, s: f(m, p, 2 * s)),
        ("escape-plateau", "escape.price_time", lambda f: scaled(f, 1 / EXACT)),
        # The probability that is penalised, as if it were that of the noise.
        ("penalty-probability", "sparsity.ndtri", lambda f: lambda p: EXACT * f(p)),
    ],
)
def test_a_wrong_formula_is_found_out(monkeypatch, name, place, wrong):
    module, function = place.split(".")
    target = f"theory.checks.{module}.{function}"
    original = getattr(importlib.import_module(f"theory.checks.{module}"), function)
    monkeypatch.setattr(target, wrong(original))
    assert TOY_CHECKS[name](SMALL).verdict == "contradicted"


@pytest.mark.parametrize("factor", [EXACT, 1 / EXACT])
@pytest.mark.parametrize("part", ["price_slope", "square_clip_slope"])
def test_each_part_of_the_pull_on_the_plateau_is_tested(monkeypatch, part, factor):
    original = getattr(importlib.import_module("theory.escape"), part)
    monkeypatch.setattr(f"theory.escape.{part}", scaled(original, factor))
    broken = {case.constant for case in TOY_CHECKS["escape-plateau"](SMALL).cases if not case.holds}
    assert ("price" if part == "price_slope" else "time") in broken


def test_a_certificate_that_pays_too_little_for_its_radius_is_found_out(monkeypatch):
    original = LocalRegion.curvature_loss
    monkeypatch.setattr(
        LocalRegion, "curvature_loss", lambda self, radius: original(self, radius) / 1.3
    )
    assert TOY_CHECKS["joint-curvature"](SMALL).verdict == "contradicted"


@pytest.mark.slow
def test_a_pull_that_is_wrong_by_a_quarter_is_found_out(monkeypatch):
    """The closed-form flow contains it, the library's trained gates do not."""
    original = OneGate.slope
    monkeypatch.setattr(
        OneGate,
        "slope",
        lambda self, centre: original(replace(self, weight=EXACT * self.weight), centre),
    )
    assert TOY_CHECKS["penalty-endpoint"](replace_seed(SMALL)).verdict == "contradicted"


def replace_seed(settings: Settings) -> Settings:
    """Other settings, so that no cached result is used."""
    return settings.model_copy(update={"seed": 1})
