"""Draws condition numbers, iterations and reach of gates and low-rank adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from finegates.suite.figures.style import COLOURS, MARKERS
from theory.figures.parts import FAMILIES, SHORT, Frames, legend, panels
from theory.problems import FAMILIES as PROBLEMS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHODS = ("columns", "rows + columns", "LoRA 1", "LoRA 2", "LoRA 4")
TEACHERS = ("gates", "low-rank", "dense")
MOMENTS = ("step 0", "step 10", "step 100", "solution")


def draw_conditioning(frames: Frames, lead: str) -> Figure:
    """Draws condition numbers by family and moment, iterations, and the reach of each method."""
    conditioning = frames["conditioning"]
    count = int(conditioning["problems"].iloc[0])
    figure, axes = panels(
        7,
        4,
        f"{lead} Medians over {count} problems with 95 % bootstrap intervals. (a)-(e): non-zero "
        "spectrum of the Gauss–Newton matrix along steepest descent, teacher: gates; large hollow "
        "markers: the Hessian's at the solution; dashed: cond(G). (f): iterations of LoRA over "
        "those of row and column gates to the same loss, by teacher; filled: rank 1, hollow: the "
        "largest rank below full rank; above 1 gates are faster. (g): well-conditioned problems by "
        "teacher; the share of a free weight's gain that stays out of reach.",
    )
    for place, (ax, family) in enumerate(zip(axes, FAMILIES, strict=False)):
        rows = conditioning[conditioning["family"] == family]
        _condition_panel(ax, rows[rows["teacher"] == "gates"])
        ax.axhline(PROBLEMS[family].condition, color="0.6", lw=0.9, ls=(0, (4, 2)), zorder=0)
        ax.set_title(f"({'abcde'[place]}) {family.capitalize()}")
    axes[0].set_ylabel("Condition number")
    axes[4].set_ylabel("Condition number")
    _speed_panel(axes[5], frames["speed"])
    axes[5].set_title("(f) Iterations, by teacher")
    reach = frames["reach"]
    reach = reach[reach["family"] == "well-conditioned"]
    _dots(axes[6], reach, "teacher", TEACHERS, "Unexplained share")
    axes[6].set_title("(g) Reach, by teacher")
    axes[6].set_ylim(-0.03, 1)
    legend(figure, [(m, COLOURS[i], MARKERS[i], "-") for i, m in enumerate(METHODS)], "right")
    return figure


def _condition_panel(ax: Axes, frame: pd.DataFrame) -> None:
    for place, method in enumerate(METHODS):
        colour, shift = COLOURS[place], 0.08 * (place - 2)
        rows = frame[(frame["method"] == method) & (frame["matrix"] == "gauss_newton")]
        if rows.empty:
            continue  # full rank
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


def _speed_panel(ax: Axes, frame: pd.DataFrame) -> None:
    frame = frame[frame["method"] == "LoRA over gates"]
    for place, (teacher, marker) in enumerate(zip(TEACHERS, "o^s", strict=True)):
        for largest in (False, True):
            rows = frame[frame["teacher"] == teacher].sort_values("rank", ascending=not largest)
            rows = rows.groupby("family").first().loc[list(FAMILIES)]
            x = np.arange(len(FAMILIES)) + 0.22 * (place - 1) + 0.07 * (1 if largest else -1)
            bars = np.abs(rows[["low", "high"]].to_numpy().T - rows["median"].to_numpy())
            colour = ("0.1", "0.45", "0.65")[place]
            ax.errorbar(
                x, rows["median"], yerr=bars, color=colour, ls="", marker=marker, ms=4, lw=1,
                mfc="white" if largest else colour, capsize=1.5,
                label=None if largest else teacher,
            )  # fmt: skip
    ax.axhline(1.0, color="0.6", lw=0.9, ls=(0, (4, 2)), zorder=0)
    ax.set_yscale("log")
    ax.set_xticks(range(len(FAMILIES)), [SHORT[name] for name in FAMILIES], fontsize=6)
    ax.set_ylabel("LoRA / gates")
    ax.legend(fontsize=6, handletextpad=0.2)
    ax.grid(visible=True, axis="y")


def _dots(ax: Axes, frame: pd.DataFrame, key: str, order: Sequence[str], label: str) -> None:
    for place, method in enumerate(METHODS):
        rows = frame[frame["method"] == method].set_index(key).loc[list(order)]
        x = np.arange(len(order)) + 0.13 * (place - 2)
        bars = np.abs(rows[["low", "high"]].to_numpy().T - rows["median"].to_numpy())
        colour = COLOURS[place]
        ax.errorbar(x, rows["median"], yerr=bars, color=colour, ls="", lw=1, capsize=1.5)
        ax.scatter(x, rows["median"], s=20, marker=MARKERS[place], color=colour, zorder=3)
    ax.set_xticks(range(len(order)), [SHORT.get(name, name) for name in order])
    ax.set_ylabel(label)
    ax.grid(visible=True, axis="y")
