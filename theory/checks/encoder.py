"""Item 10: a small trained network, from the measurements of ``theory.finetuned``."""

from __future__ import annotations

import numpy as np
import pandas as pd

from theory.cases import Case
from theory.evidence import Check

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
    """The condition number of gates against LoRA's, at every point.

    It is that of the Gauss–Newton matrix on the spectrum that it has in general position, with as
    many values as rows for two classes. Where one of them is zero it is infinite: there the outputs
    of some rows cannot be moved. The matrix is positive semidefinite: away from solutions the
    Hessian is not.
    """
    return _against_lora(
        frame,
        "network-conditioning-claim",
        "smallest",
        "along training gates have a smaller condition number than LoRA",
        "Gauss–Newton, infinite where it is singular",
    )


def check_network_rate(frame: pd.DataFrame) -> Check:
    """Λ/(‖∇L‖²/2L) of gates against LoRA's: the steps that PL would predict for one e-fold.

    Where the gradient is zero and the loss is not minimal, it is infinite.
    """
    return _against_lora(
        frame,
        "network-rate-claim",
        "ratio",
        "along training gates have a smaller Λ/(‖∇L‖²/2L) than LoRA",
        "Λ of Gauss–Newton; infinite where the gradient is zero",
    )


LARGEST = 1e6
"""Ratios of two methods are capped here, at either end."""


def _against_lora(
    frame: pd.DataFrame, name: str, divisor: str, statement: str, assumptions: str
) -> Check:
    """The claim that Λ over a column is smaller for gates than for LoRA, each at its own points.

    A setting is a kind of the gates' parameters and a step. Its draws are the gates' value over
    LoRA's, one for each seed; 1 where both are infinite.
    """
    cases = []
    gates = frame[frame["parameters"] != LORA]
    pairs = gates.merge(
        frame[frame["parameters"] == LORA], on=["seed", "step"], suffixes=("", "_lora")
    )
    for (kind, step), rows in pairs.groupby(["parameters", "step"], sort=False):
        own, lora = (
            np.array(
                [
                    largest / least if least > 0 else np.inf
                    for largest, least in zip(
                        rows[f"largest{of}"], rows[f"{divisor}{of}"], strict=True
                    )
                ]
            )
            for of in ("", "_lora")
        )
        alike = ~np.isfinite(own) & ~np.isfinite(lora)
        found = np.divide(own, lora, out=np.ones_like(own), where=~alike)
        levels = {"parameters": str(kind), "step": str(step)}
        found = np.clip(found, 1 / LARGEST, LARGEST)
        cases.append(Case.of_draws(levels, "at most", 1.0, found))
    return Check(
        name,
        10,
        "claim",
        statement,
        f"a small encoder, task loss of fixed rows; {assumptions}; gates as trained and before "
        "clipping, each at its own training's points",
        tuple(cases),
        claim="conditioning",
    )


def check_network_closing(closing: pd.DataFrame) -> Check:
    """What closing by importance adds above the first order, against :mod:`theory.closing`.

    Where outputs are linear in the gates, this second-order part is at least 0, and for least
    squares it is the Gauss–Newton part ½δᵀHδ. In a network outputs are not linear, and their own
    curvature can make it negative. Then the theorem explains nothing, and its upper bound is not at
    risk. A setting is a share of closed gates. Its draws, one for each seed: the second-order part
    over the Gauss–Newton part, which is positive, at least ½.
    """
    cases = []
    for share, rows in closing.groupby("share"):
        second, curved = (rows[name].to_numpy() for name in ("second", "gauss_newton"))
        # Closed gates without effect test nothing.
        if (curved > 0).any():
            levels = {"closed": f"{100 * float(str(share)):g} %"}
            found = second[curved > 0] / curved[curved > 0]
            cases.append(Case.of_draws(levels, "at least", 0.5, found))
    return Check(
        "network-closing-claim",
        10,
        "claim",
        "what closing the least important gates adds above −Σ ω_j ∂_jL is at least half its "
        "Gauss–Newton part ½δᵀHδ (as a ratio)",
        "a small encoder after gate training; 1 to 30 % of the open gates",
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
        check_network_rate(frame),
        check_network_closing(closing),
    ]
