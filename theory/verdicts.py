"""Verdicts on the paper's claims, from the checks about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

CLAIMS = {
    "pl": "the gated objective satisfies the Polyak–Łojasiewicz condition",
    "conditioning": "its landscape is simpler and better conditioned than LoRA's",
    "convergence": "training with stochastic gates converges",
    "bilinear": "it avoids the bilinear degeneracy of LoRA",
    "binary": "gates converge to 0/1",
}
"""Claims of the paper that checks concern, in its words."""

PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "pl": {
        "globally": ("pl-global-claim",),
        "along training": ("pl-claim", "network-pl-claim"),
    },
    "conditioning": {
        "simpler": ("spurious-claim", "start-claim"),
        "better conditioned": (
            "conditioning-claim",
            "speed-claim",
            "network-conditioning-claim",
            "network-rate-claim",
        ),
    },
    "convergence": {"": ("convergence-claim",)},
    "bilinear": {"": ("degeneracy-claim",)},
    "binary": {"": ("binary-claim",)},
}
"""The checks of each part of a claim. Each part is judged by itself."""

SUPPORTED, CONTRADICTED = "supported", "contradicted"
DEPENDS, INCONCLUSIVE = "depends", "inconclusive"
DENIED = {"disproved", "proved in part"}
"""Verdicts of a theorem or a counterexample that deny a claim without conditions."""


def judge_claims(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The verdict on each part of each claim of the paper, from the checks of kind ``"claim"``.

    A part is contradicted if a theorem or a counterexample denies it, or if all its checks are. The
    denial may be of one setting of a check whose other settings are measured. It is supported if
    all of its checks are supported or proved, and depends on the setting otherwise. Inconclusive
    checks have no vote.

    Args:
        records: from :meth:`theory.evidence.Check.record`, or read back from JSON.

    Returns:
        One row for each part that has checks: ``claim``, ``part`` ("" if the claim has one part
        only), ``statement``, ``verdict``, and ``checks``: the verdict of each check, with the
        factors on which it depends.

    Raises:
        ValueError: a check is about a claim, but in none of its parts.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        if record["claim"] and record["kind"] == "claim":
            part = _part(record["claim"], record["id"])
            found.setdefault((record["claim"], part), []).append(record)
    return pd.DataFrame(
        [
            {
                "claim": claim,
                "part": part,
                "statement": CLAIMS[claim],
                "verdict": _judged(found[claim, part]),
                "checks": "; ".join(_said(record) for record in found[claim, part]),
            }
            for claim, parts in PARTS.items()
            for part in parts
            if (claim, part) in found
        ],
        columns=["claim", "part", "statement", "verdict", "checks"],
    )


def whole(verdicts: Sequence[str]) -> str:
    """The verdict on a claim that says all of its parts: one contradicted part contradicts it."""
    found = set(verdicts)
    for verdict in (CONTRADICTED, INCONCLUSIVE, DEPENDS):
        if verdict in found:
            return verdict
    return SUPPORTED


def verdict_markdown(judged: pd.DataFrame) -> str:
    """Formats :func:`judge_claims` as a Markdown table, with the verdict on each whole claim."""
    lines = [
        "#### Verdicts on the paper's claims",
        "",
        "A claim without conditions is contradicted by one theorem or counterexample that denies "
        "it, and by measurements if no decided setting bears it out. It depends if some settings "
        "bear it out and others do not. A claim of two parts is contradicted if one of them is.",
        "",
        "| claim | verdict | part | its verdict | from the checks |",
        "|---|---|---|---|---|",
    ]
    for claim, parts in judged.groupby("claim", sort=False):
        title, verdict = f"{claim}: {CLAIMS[str(claim)]}", f"**{whole(list(parts['verdict']))}**"
        for row in parts.to_dict("records"):
            part = (row["part"], row["verdict"]) if row["part"] else ("", "")
            lines.append(f"| {title} | {verdict} | {' | '.join(part)} | {row['checks']} |")
            title = verdict = ""
    return "\n".join([*lines, ""])


def _part(claim: str, check: str) -> str:
    for part, checks in PARTS[claim].items():
        if check in checks:
            return part
    raise ValueError(
        f"check {check!r} is about the claim {claim!r}, but in none of its parts "
        f"{list(PARTS[claim])}; add it to theory.verdicts.PARTS"
    )


def _judged(records: Sequence[Mapping[str, Any]]) -> str:
    voted = {record["verdict"] for record in records} - {INCONCLUSIVE}
    if not voted:
        return INCONCLUSIVE
    if voted & DENIED or voted == {CONTRADICTED} or any(map(_is_denied_in, records)):
        return CONTRADICTED
    return SUPPORTED if voted <= {SUPPORTED, "proved"} else DEPENDS


def _is_denied_in(record: Mapping[str, Any]) -> bool:
    """Whether a theorem denies a setting of a check whose other settings are measured."""
    return bool(record.get("disproved")) and record["verdict"] not in DENIED


def _said(record: Mapping[str, Any]) -> str:
    verdict = record["verdict"]
    on = f" on {record['depends_on']}" if record["depends_on"] else ""
    denied = ", disproved in one setting" if _is_denied_in(record) else ""
    return f"`{record['id']}` {verdict}{on}{denied}"
