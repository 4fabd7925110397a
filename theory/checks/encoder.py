"""Item 10: a small trained network, from the measurements of ``theory.finetuned``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from theory.evidence import Case, Check

TRAINED, FREE, LORA = "gates, as trained", "gates, before clipping", "LoRA"
CONDITION = 1e4


def check_network_pl(frame: pd.DataFrame) -> Check:
    """Λ/(‖∇L‖²/2L) ≤ 10⁴ along training: an effective condition number by PL.

    Λ is the largest Gauss–Newton eigenvalue in ω found along the training of a seed.
    ‖∇L‖²/2L ≤ ‖∇L‖²/2(L − L*) needs no L*. Where it is large enough, PL is not refuted. At the
    start the released code's gates are saturated (clip has slope 0). So in the trained parameters
    the ratio is 0 while L is not minimal, and PL fails as in ``clip-plateau``. Before clipping it
    does not. A setting is a kind of parameters and a step. Its draws are the ratios over Λ, one for
    each seed.
    """
    largest = frame[frame["parameters"] == FREE].groupby("seed")["largest"].max()
    cases = []
    gates = frame[frame["parameters"] != LORA]
    for (kind, step), rows in gates.groupby(["parameters", "step"], sort=False):
        levels = {"parameters": str(kind), "step": str(step)}
        found = rows["ratio"] / rows["seed"].map(largest).clip(lower=1e-12)
        cases.append(Case.of_draws(levels, "at least", 1 / CONDITION, found.to_numpy()))
    return Check(
        "network-pl-claim",
        10,
        "claim",
        "along gate training of a network ‖∇L‖²/2L is at least 10⁻⁴ of the largest curvature in ω",
        "a small encoder, task loss of fixed rows, Gauss–Newton; gates as trained and before "
        "clipping",
        tuple(cases),
        claim="pl",
        frames={"network": frame},
    )


def check_network_conditioning(frame: pd.DataFrame) -> Check:
    """Λ/(‖∇L‖²/2L) and the condition number: gates (before clipping) against LoRA, at every point.

    The first is the number of gradient steps that PL would predict for one e-fold. The second is
    that of the Gauss–Newton matrix on its non-zero spectrum, which has as many values as rows for
    two classes. Gates should have the smaller values. Both matrices are positive semidefinite:
    away from solutions the Hessian is not. A setting is one of the two quantities and a step. Its
    draws are the gates' value over LoRA's, one for each seed.
    """
    cases = []
    pairs = frame[frame["parameters"] == FREE].merge(
        frame[frame["parameters"] == LORA], on=["seed", "step"], suffixes=("", "_lora")
    )
    for step, rows in pairs.groupby("step", sort=False):
        for name, divisor in (("Λ/ratio", "ratio"), ("condition", "smallest")):
            gates, lora = (
                rows[f"largest{of}"] / rows[f"{divisor}{of}"].clip(lower=1e-300)
                for of in ("", "_lora")
            )
            if ((lora > 0) & np.isfinite(lora)).all():
                found = np.clip((gates / lora).to_numpy(), 1e-6, 1e6)
                levels = {"quantity": name, "step": str(step)}
                cases.append(Case.of_draws(levels, "at most", 1.0, found))
    return Check(
        "network-conditioning-claim",
        10,
        "claim",
        "along training gates have a smaller Λ/(‖∇L‖²/2L) and a smaller condition number than LoRA",
        "a small encoder, task loss of fixed rows, Gauss–Newton; each at its own training's points",
        tuple(cases),
        claim="conditioning",
    )


def check_network_closing(closing: pd.DataFrame) -> Check:
    """What closing by importance adds above the first order, against :mod:`theory.closing`.

    Where outputs are linear in the gates, this second-order part is between 0 and the bound
    ½κ_S Σ ω_j² H_jj. In a network they are not, and the curvature of the outputs themselves can
    make it negative. Then the theorem explains nothing, and the bound is not at risk. A setting is
    a side and a share of closed gates. Its draws, one for each seed: the second-order part over the
    Gauss–Newton part ½δᵀHδ, which is positive, at least ½; and over the bound, at most 1, undecided
    where a seed's second-order part is not positive.
    """
    cases = []
    for share, rows in closing.groupby("share"):
        second, curved, bound = (
            rows[name].to_numpy() for name in ("second", "gauss_newton", "second_bound")
        )
        closed = f"{100 * float(str(share)):g} %"
        # Closed gates without effect test nothing.
        if (curved > 0).any():
            levels = {"side": "Gauss–Newton part", "closed": closed}
            found = second[curved > 0] / curved[curved > 0]
            cases.append(Case.of_draws(levels, "at least", 0.5, found, "sign"))
        if (bound > 0).any():
            levels = {"side": "bound", "closed": closed}
            case = Case.of_draws(levels, "at most", 1.0, second[bound > 0] / bound[bound > 0])
            idle = bool((second[bound > 0] <= 0).any())
            cases.append(replace(case, undecided=case.undecided or idle))
    return Check(
        "network-closing-claim",
        10,
        "claim",
        "what closing the least important gates adds above −Σ ω_j ∂_jL is at least half its "
        "Gauss–Newton part ½δᵀHδ, and at most ½κ_S Σ ω_j² H_jj (as ratios; undecided where it is "
        "negative, so that the bound is not at risk)",
        "a small encoder after gate training; 1 to 30 % of the open gates; H of the bound with ¼ "
        "for the curvature of two classes",
        tuple(cases),
    )


def network_checks(frame: pd.DataFrame, closing: pd.DataFrame) -> list[Check]:
    """All checks of a network, from the tables of :func:`theory.finetuned.look_at`.

    Raises:
        ValueError: the table lacks rows of one of the three kinds of parameters.
    """
    missing = {TRAINED, FREE, LORA} - set(frame["parameters"])
    if missing:
        raise ValueError(
            f"the network's table has no rows of {sorted(missing)}; run probe_network again"
        )
    return [
        check_network_pl(frame),
        check_network_conditioning(frame),
        check_network_closing(closing),
    ]
