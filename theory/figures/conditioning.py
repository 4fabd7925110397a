"""Condition numbers, iterations and reach of gates and low-rank adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from finegates.suite.figures.style import COLOURS, MARKERS
from theory.figures.parts import FAMILIES, SHORT, Frames, legend, panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHODS = ("columns", "rows + columns", "LoRA 1", "LoRA 4", "LoRA 8")
MOMENTS = ("step 0", "step 10", "step 100", "solution")


def draw_conditioning(frames: Frames, lead: str) -> Figure:
    """Condition numbers by family and moment, iterations, and what each method can reach."""
    conditioning = frames["conditioning"]
    count = int(conditioning["problems"].iloc[0])
    figure, axes = panels(
        7,
        4,
        f"{lead} Medians over {count} problems with 95 % bootstrap intervals. (a)-(e): non-zero "
        "spectrum of the Gauss–Newton matrix along steepest descent; large hollow markers: the "
        "Hessian's, at the start and at the solution. (f): to a relative gap of 10⁻⁴, each to its "
        "own optimum; hollow: a quarter or more do not get there. (g): "
        "well-conditioned problems by what made the targets; the share of a free weight's gain "
        "that stays out of reach.",
    )
    for place, (ax, family) in enumerate(zip(axes, FAMILIES, strict=False)):
        _condition_panel(ax, conditioning[conditioning["family"] == family])
        ax.set_title(f"({'abcde'[place]}) {family.capitalize()}")
    axes[0].set_ylabel("Condition number")
    axes[4].set_ylabel("Condition number")
    _dots(axes[5], frames["speed"], "family", FAMILIES, "Iterations")
    axes[5].set_yscale("log")
    axes[5].set_title("(f) Iterations")
    _dots(axes[6], frames["reach"], "teacher", ("gates", "low-rank", "dense"), "Unexplained share")
    axes[6].set_title("(g) Reach, by teacher")
    axes[6].set_ylim(-0.03, 1)
    legend(figure, [(m, COLOURS[i], MARKERS[i], "-") for i, m in enumerate(METHODS)], "right")
    return figure


def _condition_panel(ax: Axes, frame: pd.DataFrame) -> None:
    for place, method in enumerate(METHODS):
        colour, shift = COLOURS[place], 0.08 * (place - 2)
        rows = frame[(frame["method"] == method) & (frame["matrix"] == "gauss_newton")]
        rows = rows.set_index("moment").loc[list(MOMENTS)]
        x = np.arange(len(MOMENTS)) + shift
        bars = np.abs(rows[["low", "high"]].to_numpy().T - rows["median"].to_numpy())
        ax.errorbar(
            x, rows["median"], yerr=bars, color=colour, marker=MARKERS[place], ms=3.5, lw=1,
            capsize=1.5,
        )  # fmt: skip
        rows = frame[(frame["method"] == method) & (frame["matrix"] == "hessian")]
        ax.scatter(
            [MOMENTS.index(moment) + shift for moment in rows["moment"]],
            rows["median"],
            s=34,
            marker=MARKERS[place],
            facecolor="none",
            edgecolor=colour,
            linewidth=0.8,
        )
    ax.set_yscale("log")
    ax.set_xticks(range(len(MOMENTS)), ["start", "10", "100", "solution"])
    ax.set_xlabel("Step")
    ax.grid(visible=True, axis="y")


def _dots(ax: Axes, frame: pd.DataFrame, key: str, order: Sequence[str], label: str) -> None:
    for place, method in enumerate(METHODS):
        rows = frame[frame["method"] == method].set_index(key).loc[list(order)]
        x = np.arange(len(order)) + 0.13 * (place - 2)
        bars = np.abs(rows[["low", "high"]].to_numpy().T - rows["median"].to_numpy())
        colour = COLOURS[place]
        ax.errorbar(x, rows["median"], yerr=bars, color=colour, ls="", lw=1, capsize=1.5)
        missed = rows.get("not_reached")
        for i, (_, row) in enumerate(rows.iterrows()):
            hollow = missed is not None and row["not_reached"] >= 0.25
            ax.scatter(
                [x[i]], [row["median"]], s=20, marker=MARKERS[place],
                facecolor="white" if hollow else colour, edgecolor=colour, linewidth=0.9, zorder=3,
            )  # fmt: skip
    ax.set_xticks(range(len(order)), [SHORT.get(name, name) for name in order])
    ax.set_ylabel(label)
    ax.grid(visible=True, axis="y")
