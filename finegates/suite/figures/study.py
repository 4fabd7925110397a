"""The figure of a study: score, MACs and measured time of each method."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finegates.suite.figures.style import (
    COLOURS,
    DASHES,
    MARKERS,
    add_legend,
    grid,
    span_scores,
    style,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETTINGS = {
    "gates.target": "Target sparsity s",
    "gates.penalty_weight": "Penalty weight λ",
    "lora.rank": "Rank r",
}
"""Printed names of settings; others are printed as in the configuration."""

MEASURES = {
    "average": ("Score (× 100)", 1.0),
    "macs_kept_fraction": ("Encoder MACs kept (%)", 100.0),
    "time_ratio": ("Time, to dense (%)", 100.0),
}


def draw_study(
    frame: pd.DataFrame,
    seeds: Sequence[int],
    *,
    vary: str | None = None,
    lines: str | None = None,
    footer: str = "",
) -> Figure:
    """Draws a study.

    Without ``vary``, each method has a row of dots: small ones are seeds, a large one is their
    mean. With it, there are curves over the setting, one for each value of ``lines``, and a panel
    of score against kept MACs. Methods without the setting are horizontal lines.

    Args:
        frame: ``numbers`` of ``finegates.suite.tables.study.study_table``.
        seeds: seeds whose averages are in the frame.
        vary: name of the setting on the horizontal axis.
        lines: name of the setting with one curve per value.
        footer: text under the panels.
    """
    measures = [name for name in MEASURES if frame[name].notna().any()]
    with style():
        if vary is None:
            figure, axes = grid(len(measures), len(measures), footer)
            for ax, measure in zip(axes, measures, strict=True):
                _dots(ax, frame, measure, seeds)
            for ax in axes[1:]:
                ax.tick_params(labelleft=False)
            width, height = figure.get_size_inches()
            figure.set_size_inches(width + 1.8, max(height, 0.28 * len(frame) + 1.9))
            return figure
        entries = len(frame["line"].dropna().unique()) + int(frame["x"].isna().sum())
        figure, axes = grid(
            len(measures) + 1, len(measures) + 1, footer, legend_entries=max(2, entries)
        )
        for ax, measure in zip(axes, measures, strict=False):
            _curves(ax, frame, measure, seeds, vary, lines)
        _front(axes[-1], frame, lines)
        handles, labels = axes[0].get_legend_handles_labels()
        if len(handles) > 1:
            add_legend(figure, handles, labels)
    return figure


def _dots(ax: Axes, frame: pd.DataFrame, measure: str, seeds: Sequence[int]) -> None:
    label, scale = MEASURES[measure]
    rows = frame.to_dict("records")
    for place, row in enumerate(rows):
        colour = "#111111" if place == 0 else COLOURS[0]
        if measure == "average":
            points = [row[f"seed_{seed}"] for seed in seeds]
            ax.scatter(points, [place] * len(points), s=9, color=colour, alpha=0.5, lw=0)
        ax.scatter([scale * _number(row[measure])], [place], s=34, color=colour, zorder=3)
    ax.set_yticks(range(len(rows)), [textwrap.fill(str(row["title"]), 34) for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(visible=True, axis="x")
    ax.margins(x=0.12)
    if measure == "average":
        span_scores(ax, "x", _widest(frame))
    ax.set_xlabel(label)


def _curves(
    ax: Axes, frame: pd.DataFrame, measure: str, seeds: Sequence[int], vary: str, lines: str | None
) -> None:
    label, scale = MEASURES[measure]
    for place, (value, group) in enumerate(_groups(frame)):
        look = _look(place)
        ordered = group.sort_values("x")
        ax.plot(
            ordered["x"], scale * ordered[measure], label=_line_label(lines, value), ms=4.5, **look
        )
        if measure == "average":
            for row in ordered.to_dict("records"):
                points = [row[f"seed_{seed}"] for seed in seeds]
                ax.scatter([row["x"]] * len(points), points, s=8, alpha=0.45, lw=0, c=look["color"])
    for place, row in enumerate(frame[frame["x"].isna()].to_dict("records")):
        dash = DASHES[(place + 1) % len(DASHES)]
        height = scale * _number(row[measure])
        ax.axhline(height, color="#555555", linestyle=dash, lw=1.1, label=str(row["title"]))
    if measure == "average":
        span_scores(ax, "y", _widest(frame))
    if vary == "gates.penalty_weight" and (frame["x"].dropna() > 0).all():
        ax.set_xscale("log")
    ax.grid(visible=True)
    ax.set_xlabel(SETTINGS.get(vary, vary))
    ax.set_ylabel(label)


def _front(ax: Axes, frame: pd.DataFrame, lines: str | None) -> None:
    """Score against MACs, with rings around the Pareto-optimal points."""
    for place, (_, group) in enumerate(_groups(frame)):
        ordered = group.sort_values("macs_kept_fraction")
        kept = 100 * ordered["macs_kept_fraction"]
        ax.plot(kept, ordered["average"], ms=4.5, **{**_look(place), "linestyle": "none"})
    others = frame[frame["x"].isna()]
    ax.scatter(100 * others["macs_kept_fraction"], others["average"], s=22, color="#555555")
    front = frame[[_undominated(row, frame) for row in frame.to_dict("records")]]
    ax.scatter(
        100 * front["macs_kept_fraction"], front["average"], s=70, facecolors="none",
        edgecolors="#111111", linewidths=0.9, zorder=4,
    )  # fmt: skip
    span_scores(ax, "y", _widest(frame))
    ax.grid(visible=True)
    ax.set_title("Ringed: beaten by none", fontsize=7.5, fontweight="normal")
    ax.set_xlabel(MEASURES["macs_kept_fraction"][0])
    ax.set_ylabel(MEASURES["average"][0])


def _widest(frame: pd.DataFrame) -> float:
    """Width of the widest interval of a mean score in points, 0 if there is none."""
    width = (frame["average_high"] - frame["average_low"]).max()
    return 0.0 if width != width else float(width)


def _undominated(row: dict[Any, Any], frame: pd.DataFrame) -> bool:
    score, kept = frame["average"], frame["macs_kept_fraction"]
    as_good = (score >= row["average"]) & (kept <= row["macs_kept_fraction"])
    better = (score > row["average"]) | (kept < row["macs_kept_fraction"])
    return bool(row["average"] == row["average"]) and not bool((as_good & better).any())


def _groups(frame: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    """The rows of each curve, one curve if there is no setting for lines."""
    on_axis = frame[frame["x"].notna()]
    if on_axis["line"].isna().all():
        return [(None, on_axis)]
    return [(value, group) for value, group in on_axis.groupby("line", sort=True)]


def _look(place: int) -> dict[str, Any]:
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": DASHES[place % len(DASHES)],
        "linewidth": 1.3,
    }


def _line_label(lines: str | None, value: Any) -> str:
    if lines is None or value is None:
        return "varied"
    return f"{SETTINGS.get(lines, lines)} = {value:g}"


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
