"""Item 10: a small trained network, from the measurements of ``theory.finetuned``."""

from __future__ import annotations

import pandas as pd

from theory.evidence import Case, Check

TRAINED, FREE, LORA = "gates, as trained", "gates, before clipping", "LoRA"
CONDITION = 1e4


def check_network_pl(frame: pd.DataFrame) -> Check:
    """Λ/(‖∇L‖²/2L) ≤ 10⁴ along training: an effective condition number by PL.

    Λ is the largest Hessian eigenvalue in ω found along training. ‖∇L‖²/2L ≤ ‖∇L‖²/2(L − L*) needs
    no L*. Where it is large enough, PL is not refuted. At the start the released code's gates are
    saturated (clip has slope 0). So in the trained parameters the ratio is 0 while L is not
    minimal, and PL fails as in ``clip-plateau``. Before clipping it does not. Cases: the ratio at
    every measured point, at least Λ/10⁴.
    """
    largest = float(frame.loc[frame["parameters"] == FREE, "largest"].max())
    cases = [
        Case(
            f"{row['parameters']}, step {row['step']}",
            "at least",
            max(largest, 1e-12) / CONDITION,
            float(row["ratio"]),
        )
        for row in frame[frame["parameters"] != LORA].to_dict("records")
    ]
    return Check(
        "network-pl-claim",
        10,
        "claim",
        "along gate training of a network ‖∇L‖²/2L is at least 10⁻⁴ of the largest curvature in ω",
        "a small encoder, task loss of a fixed batch; gates as trained and before clipping",
        tuple(cases),
        claim="pl",
        frames={"network": frame},
    )


def check_network_conditioning(frame: pd.DataFrame) -> Check:
    """Λ/(‖∇L‖²/2L) and −λ_min/λ_max: gates (before clipping) against LoRA, at every measured point.

    The first is the number of gradient steps that PL would predict for one e-fold. The second is
    the share of negative curvature. Gates should have the smaller values.
    """
    cases = []
    table = frame.set_index(["parameters", "step"])
    for step in sorted(frame["step"].unique()):
        gates, lora = table.loc[(FREE, step)], table.loc[(LORA, step)]
        for name, value in (
            ("Λ/ratio", lambda row: row["largest"] / max(row["ratio"], 1e-300)),
            ("negative curvature", lambda row: max(-row["smallest"] / row["largest"], 1e-12)),
        ):
            limit = float(value(lora))
            if 0 < limit < float("inf"):
                cases.append(Case(f"{name}, step {step}", "at most", limit, float(value(gates))))
    return Check(
        "network-conditioning-claim",
        10,
        "claim",
        "along training gates have a smaller Λ/(‖∇L‖²/2L) and a smaller share of negative "
        "curvature than LoRA",
        "a small encoder, task loss of a fixed batch; each at its own training's points",
        tuple(cases),
        claim="conditioning",
    )


def network_checks(frame: pd.DataFrame) -> list[Check]:
    """Both checks, from the table of :func:`theory.finetuned.landscape_frame`.

    Raises:
        ValueError: the table lacks rows of one of the three kinds of parameters.
    """
    missing = {TRAINED, FREE, LORA} - set(frame["parameters"])
    if missing:
        raise ValueError(
            f"the network's table has no rows of {sorted(missing)}; run probe_network again"
        )
    return [check_network_pl(frame), check_network_conditioning(frame)]
