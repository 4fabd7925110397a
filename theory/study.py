"""Every check on synthetic problems, in report order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pandas as pd
from tqdm import tqdm

from theory.checks import (
    adaptive,
    beyond,
    bias,
    claims,
    clipping,
    closing,
    comparison,
    convergence,
    critical,
    escape,
    flatness,
    joint,
    losses,
    lowrank,
    objective,
    plateau,
    rank_one,
    relaxed,
    single,
    smoothing,
    sparsity,
    stationarity,
    together,
    trained_biases,
)
from theory.checks.settings import Settings
from theory.evidence import Check, rounded

ITEM_CHECKS: dict[int, dict[str, Callable[[Settings], Check]]] = {
    1: {
        "columns-hessian": lambda settings: single.check_hessian(settings, "columns"),
        "columns-pl": lambda settings: single.check_pl(settings, "columns"),
        "columns-schur": single.check_schur,
        "columns-schur-singular": single.check_schur_singular,
        "columns-schur-naive": single.check_schur_naive,
        "columns-rank": single.check_regularised,
        "columns-descent": lambda settings: single.check_descent(settings, "columns"),
    },
    2: {
        "rows-hessian": lambda settings: single.check_hessian(settings, "rows"),
        "rows-pl": lambda settings: single.check_pl(settings, "rows"),
        "rows-bounds": single.check_row_bounds,
        "rows-descent": lambda settings: single.check_descent(settings, "rows"),
    },
    3: {
        "joint-saddle": joint.check_saddle,
        "joint-path": joint.check_path,
        "joint-symmetry": joint.check_symmetry,
        "joint-bias": bias.check_bias,
        "joint-local": joint.check_local,
        "joint-curvature": joint.check_curvature,
        "joint-region": critical.check_plane,
        "joint-critical": critical.check_orbits,
        "spurious-minima": rank_one.check_minima,
        "spurious-claim": rank_one.check_spurious,
        "start-claim": rank_one.check_start,
        "pl-global-claim": claims.check_pl_globally,
        "pl-claim": claims.check_pl,
    },
    4: {
        "clip-plateau": clipping.check_plateau,
        "box-prox-pl": clipping.check_box_pl,
        "box-attained": clipping.check_box_two,
        "box-descent": clipping.check_box_descent,
        "box-descent-gap": clipping.check_box_descent_gap,
    },
    5: {
        "relaxation-moments": smoothing.check_moments,
        "relaxation-modules": smoothing.check_monte_carlo,
        "relaxation-curvature": smoothing.check_curvature_peak,
        "relaxation-lipschitz": smoothing.check_lipschitz,
        "relaxation-growth": smoothing.check_growth,
        "relaxation-bias": smoothing.check_bias,
        "relaxation-minima": relaxed.check_pair,
        "relaxation-vertices": relaxed.check_vertices,
        "relaxation-charge": relaxed.check_charge,
        "one-minimum-claim": relaxed.check_one_minimum,
    },
    6: {
        "sgd-unbiased": convergence.check_unbiased,
        "sgd-linear": convergence.check_linear,
        "sgd-ball": convergence.check_ball,
        "sgd-decaying": convergence.check_decaying,
        "sgd-gradient": stationarity.check_gradient,
        "sgd-stationary": stationarity.check_bound,
        "plateau-drift": plateau.check_drift,
        "plateau-time": plateau.check_time,
        "convergence-claim": claims.check_convergence,
    },
    7: {
        "lora-saddle": lowrank.check_saddle,
        "lora-zeros": lowrank.check_zeros,
        "lora-path": lowrank.check_path,
        "lora-lipschitz": lowrank.check_lipschitz,
        "joint-lipschitz": lowrank.check_joint_lipschitz,
    },
    8: {
        "columns-condition": comparison.check_columns,
        "conditioning-claim": comparison.check_conditioning,
        "speed-claim": comparison.check_speed,
        "reach-claim": comparison.check_reach,
    },
    9: {
        "penalty-minimiser": sparsity.check_minimiser,
        "penalty-half-open": sparsity.check_half_open,
        "penalty-range": sparsity.check_range,
        "penalty-probability": sparsity.check_probability,
        "penalty-threshold": sparsity.check_threshold,
        "penalty-endpoint": sparsity.check_endpoint,
        "binary-claim": sparsity.check_binary,
    },
    11: {
        "flat-directions": flatness.check_directions,
        "flat-width": flatness.check_width,
        "flat-shared": flatness.check_shared,
        "flat-factors": flatness.check_factors,
        "flat-biases": trained_biases.check_biases,
        "flat-closed": flatness.check_closed,
        "degeneracy-claim": flatness.check_degeneracy,
    },
    12: {
        "escape-time": beyond.check_escape,
        "escape-saddle": escape.check_saddle_time,
        "escape-plateau": escape.check_plateau_time,
        "reach-dense": beyond.check_reach,
        "closing-bound": closing.check_bound,
        "closing-importance": closing.check_importance,
    },
    13: {
        "penalty-kink": objective.check_kink,
        "penalty-unlike": objective.check_unlike,
        "price-prox-pl": objective.check_price,
        "sgd-minibatch": losses.check_minibatch,
        "cross-entropy-pl": losses.check_cross_entropy,
        "cross-entropy-box": losses.check_entropy_box,
        "joint-price-minima": together.check_minima,
        "joint-price-rate": together.check_rate,
        "joint-clarke": together.check_clarke,
        "adamw-rest": adaptive.check_rest,
        "adamw-rare-claim": adaptive.check_rare,
        "adamw-ball": adaptive.check_adam_ball,
    },
}
"""Checks on random problems by item, a key of ``theory.tables.ITEMS``, and by name."""

TOY_CHECKS = {name: check for checks in ITEM_CHECKS.values() for name, check in checks.items()}


def run_checks(settings: Settings, only: Iterable[str] | None = None) -> list[Check]:
    """Runs all checks or the named ones, with a progress bar in a terminal.

    Raises:
        ValueError: a name is not a check.
    """
    names = list(TOY_CHECKS if only is None else only)
    unknown = sorted(set(names) - set(TOY_CHECKS))
    if unknown:
        raise ValueError(f"unknown checks {unknown}; known: {', '.join(TOY_CHECKS)}")
    found = []
    with tqdm(names, disable=None) as bar:
        for name in bar:
            bar.set_description(name)
            check = TOY_CHECKS[name](settings)
            assert check.id == name, f"check {check.id!r} is listed as {name!r}"
            assert name in ITEM_CHECKS[check.item], f"check {name!r} is not of item {check.item}"
            found.append(check)
    return found


def figure_frames(checks: Sequence[Check]) -> dict[str, pd.DataFrame]:
    """The tables for the figures, rounded, by name."""
    return {name: rounded(frame) for check in checks for name, frame in check.frames.items()}
