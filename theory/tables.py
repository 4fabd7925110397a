"""Tables of the theory: checks as Markdown and CSV, and cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from theory.evidence import Check, significant
from theory.intervals import FEW

ITEMS = {
    1: "Column gates alone",
    2: "Row gates alone",
    3: "Row and column gates together",
    4: "Clipping to [0, 1]",
    5: "Gaussian relaxation",
    6: "Convergence with stochastic gates",
    7: "Low-rank adapters",
    8: "Conditioning: gates against low-rank adapters",
    9: "Penalties",
    10: "From toy to network",
    11: "Flat directions of a transformer block",
    12: "Beyond the paper",
    13: "The objective that is trained",
}


def check_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row for each check."""
    return pd.DataFrame(
        [
            {key: value for key, value in record.items() if key not in ("by_level", "level_counts")}
            for record in records
        ]
    )


def case_frame(checks: Sequence[Check]) -> pd.DataFrame:
    """One row for each case of each check."""
    return pd.DataFrame(
        [
            {
                "check": check.id,
                "case": case.name,
                "relation": case.relation,
                "predicted": significant(case.predicted),
                "measured": significant(case.measured),
                "tolerance": significant(case.tolerance),
                "constant": case.constant,
                "power": significant(case.power),
                "built": case.built,
                "proof": case.proof,
                "undecided": case.undecided,
                "low": significant(case.low),
                "high": significant(case.high),
                "holds": case.holds,
            }
            for check in checks
            for case in check.cases
        ]
    )


def check_markdown(records: Sequence[Mapping[str, Any]], setting: str) -> str:
    """Formats the checks as one Markdown table for each item.

    Args:
        records: from :meth:`Check.record`, or read back from JSON.
        setting: one sentence: how many problems, which network.
    """
    lines = [setting, ""]
    for item, title in ITEMS.items():
        found = [record for record in records if record["item"] == item]
        if not found:
            continue
        lines += [f"#### {item}. {title}", ""]
        lines += [
            "| statement | assumptions | predicted | measured | tightness | notices | holds "
            "| verdict |"
        ]
        lines += ["|---|---|---:|---:|---:|---:|---:|---|"]
        lines += [_row(record) for record in found]
        lines.append("")
    return "\n".join(lines)


def level_markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """Where the claims that depend on the setting hold, as a Markdown table."""
    lines = [
        "#### Where claims hold that depend on the setting",
        "",
        "Every setting is judged by the 95 % interval of its median over random draws (their range "
        f"up to {FEW} draws). A level of a factor is in the column holds (fails) if the claim "
        "holds (fails) in all its settings that are decided. Varies: it holds in some of them, "
        "with how many of how many; no verdict follows from this count. The outcome depends on "
        "the factors in bold: a change of their level alone changes it.",
        "",
        "| claim | factor | holds | fails | varies | undecided |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        if record["verdict"] != "depends":
            continue
        for factor, levels in record["by_level"].items():
            title = f"**{factor}**" if factor in record["depends_on"].split(", ") else factor
            shares = {
                level: f" ({held} of {decided})" if levels[level] == "depends" else ""
                for level, (held, decided) in record["level_counts"][factor].items()
            }
            cells = [
                "; ".join(f"{level}{shares[level]}" for level in levels if levels[level] == verdict)
                for verdict in ("supported", "contradicted", "depends", "undecided")
            ]
            lines.append(f"| `{record['id']}` | {title} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def comparison_markdown(
    conditioning: pd.DataFrame, speed: pd.DataFrame, reach: pd.DataFrame, scale: pd.DataFrame
) -> str:
    """Medians with intervals of the comparison of item 8, as Markdown tables.

    Args:
        conditioning, speed, reach, scale: tables of :mod:`theory.checks.comparison`.
    """
    matrices = conditioning[conditioning["matrix"] == "gauss_newton"]
    start = matrices[(matrices["moment"] == "step 0") & (matrices["teacher"] == "gates")]
    solved = matrices[matrices["moment"] == "solution"]
    methods = list(dict.fromkeys(reach["method"]))  # the first family has all ranks
    lines = [
        "#### 8, in numbers",
        "",
        "Medians with 95 % bootstrap intervals over problems. Condition numbers are those of the "
        "Gauss–Newton matrix on its non-zero spectrum. The unexplained share is how much of a free "
        "weight's gain is out of reach. — : full rank, where LoRA is a free weight.",
        "",
        f"| | {' | '.join(methods)} |",
        f"|---|{'---:|' * len(methods)}",
    ]
    blocks = [("condition number, start", ["family"], start)]
    blocks += [("condition number, solution, by teacher", ["family", "teacher"], solved)]
    blocks += [("unexplained share, by teacher", ["family", "teacher"], reach)]
    for title, keys, frame in blocks:
        lines.append(f"| **{title}** |{' |' * len(methods)}")
        for name, rows in frame.groupby(keys, sort=False):
            found = rows.set_index("method")
            cells = [
                _interval(found.loc[method]) if method in found.index else "—" for method in methods
            ]
            lines.append(f"| {', '.join(map(str, name))} | {' | '.join(cells)} |")
    ranks = sorted(set(speed["rank"]))
    lines += [
        "",
        "Iterations to the same loss, at which 99 % of the smaller gain is made, gates : LoRA "
        f"(at most {int(speed['limit'].iloc[0]):,}).",
        "",
        f"| family, teacher | {' | '.join(f'LoRA {rank}' for rank in ranks)} |",
        f"|---|{'---:|' * len(ranks)}",
    ]
    for name, rows in speed.groupby(["family", "teacher"], sort=False):
        steps = rows.set_index(["rank", "method"])["median"]
        cells = [
            f"{printed(steps[rank, 'gates'])} : {printed(steps[rank, 'LoRA'])}"
            if rank in set(rows["rank"])
            else "—"
            for rank in ranks
        ]
        lines.append(f"| {', '.join(map(str, name))} | {' | '.join(cells)} |")
    scales = sorted(set(scale["scale"]))
    lines += [
        "",
        "LoRA's start by the scale of A (1 is the usual one), low-rank teacher: condition numbers "
        "of Gauss–Newton matrix and Hessian, and iterations to the same loss.",
        "",
        f"| family, rank | {' | '.join(f'A × {s:g}' for s in scales)} |",
        f"|---|{'---:|' * len(scales)}",
    ]
    for name, sizes in scale.groupby(["family", "rank"], sort=False):
        medians = sizes.set_index(["scale", "quantity"])["median"]
        cells = [
            ", ".join(
                printed(medians[s, quantity])
                for quantity in ("gauss_newton", "hessian", "iterations")
            )
            for s in scales
        ]
        lines.append(f"| {', '.join(map(str, name))} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def share_markdown(minima: pd.DataFrame, relaxed: pd.DataFrame) -> str:
    """How often random problems have several minima, as Markdown tables.

    Args:
        minima: table of :func:`theory.checks.rank_one.shares_frame`.
        relaxed: table of :func:`theory.checks.relaxed.single_frame`.
    """
    lines = [
        "#### 3, how often minima are spurious",
        "",
        "Shares of random problems, with exact 95 % intervals and the number of problems. Ten "
        "descents (L-BFGS, then Newton) a problem, so both are lower estimates. LoRA's shares are "
        "0 by theorem.",
        "",
        "| family, teacher | a minimum above the best one | descent from ω = 1 ends above it |",
        "|---|---:|---:|",
    ]
    for row in minima.to_dict("records"):
        cells = [
            f"{printed(row[name])} [{printed(row[f'{name}_low'])}, {printed(row[f'{name}_high'])}]"
            f" of {row[f'{name}_problems']}"
            for name in ("spurious", "missed")
        ]
        lines.append(f"| {row['family']}, {row['teacher']} | {' | '.join(cells)} |")
    sigmas = sorted(set(relaxed["sigma"]))
    lines += [
        "",
        "#### 5, how often the relaxed objective has one minimum",
        "",
        "Shares of random problems on which descents from eight starts in the box end in one "
        f"minimum, {relaxed['problems'].max()} problems a family.",
        "",
        f"| family | {' | '.join(f'σ = {sigma:g}' for sigma in sigmas)} |",
        f"|---|{'---:|' * len(sigmas)}",
    ]
    for family, rows in relaxed.groupby("family", sort=False):
        found = {row["sigma"]: row for row in rows.to_dict("records")}
        cells = [
            f"{printed(found[sigma]['single'])} [{printed(found[sigma]['low'])}, "
            f"{printed(found[sigma]['high'])}]"
            for sigma in sigmas
        ]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def flat_markdown(models: pd.DataFrame) -> str:
    """Flat directions of gates and of LoRA at a real shape, as a sentence.

    Args:
        models: table of :func:`theory.checks.flatness.models_frame`.
    """
    found = {row["parameters"]: row for row in models.to_dict("records")}

    def counted(parameters: str) -> str:
        row = found[parameters]
        return f"{row['flat']:,} of {row['size']:,} ({100 * row['share']:.2f} %)"

    model, layers = models.loc[0, ["model", "layers"]]
    return (
        f"Flat directions at the shape of {model}, {layers} layers: {counted('independent gates')} "
        f"for independent gates, {counted('LoRA 8')} for LoRA r = 8 on the same layers at factors "
        f"of full rank, {counted('LoRA 8, start')} at its start, where B = 0.\n"
    )


def closing_markdown(closing: pd.DataFrame) -> str:
    """What closing gates by importance adds to a network's loss, as a Markdown table.

    Args:
        closing: the table of :func:`theory.closing.closing_rows`, with seeds.
    """
    columns = ("added", "linear", "curved", "gauss_newton", "coherence", "bound")
    lines = [
        "#### 10, closing by importance",
        "",
        "Least important open gates closed after gate training, ranges over seeds. Added: the "
        "change of the loss. First order: −Σ ω_j ∂_jL. Second order: half the second derivative "
        "on the way, at its start. κ: the coherence.",
        "",
        "| closed | added | first order | second order | its Gauss–Newton part | κ | bound |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for share, rows in closing.groupby("share"):
        cells = []
        for column in columns:
            low, high = (
                printed(float(value)) for value in (rows[column].min(), rows[column].max())
            )
            cells.append(low if low == high else f"{low} to {high}")
        lines.append(f"| {printed(100 * float(str(share)))} % | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _interval(row: pd.Series[Any]) -> str:
    return f"{printed(row['median'])} [{printed(row['low'])}, {printed(row['high'])}]"


def _row(record: Mapping[str, Any]) -> str:
    sign = {"equal": "= ", "at least": "≥ ", "at most": "≤ "}[record["relation"]]
    cells = [
        f"`{record['id']}` {record['statement']}",
        record["assumptions"],
        f"{sign}{printed(record['predicted'])}",
        printed(record["measured"]),
        printed(record["typical_tightness"]),
        _factor(record),
        _share(record),
        f"**{record['verdict']}**",
    ]
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"


def _factor(record: Mapping[str, Any]) -> str:
    """The power, rounded up to three digits, so that the printed factor is certainly noticed."""
    power = record["power"]
    if not math.isfinite(power):
        return "none" if record["cases"] else ""  # without votes there is no bar to move
    digits = 10.0 ** (2 - math.floor(math.log10(power)))
    return f"× {printed(math.ceil(round(power * digits, 6)) / digits)}"


def _share(record: Mapping[str, Any]) -> str:
    if record["depends_on"]:
        parts = [f"by {record['depends_on']}"]
    else:
        parts = [f"{record['held']} of {record['cases']}"] if record["cases"] else []
    parts += [f"{record[key]} {key}" for key in ("proved", "disproved", "undecided") if record[key]]
    return ", ".join(parts)


def printed(value: float) -> str:
    """Formats a number with three significant digits."""
    if not math.isfinite(value):
        return "∞" if value == math.inf else str(value)
    text = f"{value:.3g}"
    if "e" not in text:
        return text
    digits, power = text.split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if digits == "1" else f"{digits}·10{raised}"
