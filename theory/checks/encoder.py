"""Item 10: a small trained network, from the measurements of ``theory.finetuned``."""

from __future__ import annotations

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
    does not. Cases: the ratio at every measured point, at least Λ/10⁴.
    """
    largest = frame[frame["parameters"] == FREE].groupby("seed")["largest"].max()
    cases = [
        Case(
            f"{row['parameters']}, seed {row['seed']}, step {row['step']}",
            "at least",
            max(float(largest[row["seed"]]), 1e-12) / CONDITION,
            float(row["ratio"]),
        )
        for row in frame[frame["parameters"] != LORA].to_dict("records")
    ]
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
    away from solutions the Hessian is not.
    """
    cases = []
    pairs = frame[frame["parameters"] == FREE].merge(
        frame[frame["parameters"] == LORA], on=["seed", "step"], suffixes=("", "_lora")
    )
    for row in pairs.to_dict("records"):
        for name, divisor in (("Λ/ratio", "ratio"), ("condition", "smallest")):
            found, limit = (
                float(row[f"largest{of}"]) / max(float(row[f"{divisor}{of}"]), 1e-300)
                for of in ("", "_lora")
            )
            if 0 < limit < float("inf"):
                place = f"{name}, seed {row['seed']}, step {row['step']}"
                cases.append(Case(place, "at most", limit, found))
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
    make it negative. Then the theorem explains nothing, and the bound is not at risk. Cases: the
    sign, as at least half the Gauss–Newton part ½δᵀHδ, which is positive; and the bound, without a
    vote where the second-order part is negative.
    """
    cases = []
    for row in closing.to_dict("records"):
        place = f"seed {row['seed']:g}, {100 * row['share']:g} % closed"
        second, curved = float(row["second"]), float(row["gauss_newton"])
        if curved > 0:  # else the closed gates had no effect
            cases.append(Case(f"sign, {place}", "at least", curved, second, 0.5, "sign"))
        if (bound := float(row["second_bound"])) > 0:
            cases.append(Case(f"bound, {place}", "at most", bound, second, undecided=second <= 0))
    return Check(
        "network-closing-claim",
        10,
        "claim",
        "what closing the least important gates adds above −Σ ω_j ∂_jL is at least half its "
        "Gauss–Newton part ½δᵀHδ, and at most ½κ_S Σ ω_j² H_jj (undecided where it is negative, so "
        "that the bound is not at risk)",
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
