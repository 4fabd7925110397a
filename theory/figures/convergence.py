"""Draws stochastic training: linear phases, decaying steps, stationarity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from finegates.suite.figures.style import COLOURS, MARKERS
from theory.figures.parts import Frames, panels, ticks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_convergence(frames: Frames, lead: str) -> Figure:
    """Stochastic descent: to a ball, with step and noise, with decaying steps, to stationarity."""
    figure, axes = panels(
        5,
        3,
        f"{lead} Column gates; points: means over runs (95 % intervals where visible), lines: "
        "closed forms. (a)-(d): gates stay inside (0, 1). (e): clipped gates, σ = 0.3, step c/√K; "
        "solid: measured, dashed: bound.",
    )
    _linear_panel(axes[0], frames["sgd_linear"])
    ball = frames["noise_ball"]
    for ax, axis, title, label in (
        (axes[1], "step", "(b) Noise ball, step", "Step η, as a share of 1/Λ"),
        (axes[2], "noise", "(c) Noise ball, noise", "Noise σ"),
    ):
        rows = ball[ball["axis"] == axis]
        ax.loglog(rows["x"], rows["predicted"], color="#333333", ls="--", lw=1)
        bars = np.abs(rows[["low", "high"]].to_numpy().T - rows["measured"].to_numpy())
        ax.errorbar(
            rows["x"], rows["measured"], yerr=bars, color=COLOURS[0], marker="o", ms=4, ls="",
            capsize=2, lw=1,
        )  # fmt: skip
        ax.set_title(title)
        ax.set_xlabel(label)
        ax.set_ylabel("Excess loss")
        ticks(ax, rows["x"])
    decaying = frames["sgd_decaying"]
    ax = axes[3]
    ax.loglog(decaying["step"], decaying["measured"], color=COLOURS[0], marker="o", ms=4, ls="")
    ax.loglog(decaying["step"], decaying["predicted"], color="#333333", ls="--", lw=1)
    ax.set_title("(d) Steps 2/(μ(k + k₀))")
    ax.set_xlabel("Step k")
    ax.set_ylabel("Excess loss")
    ticks(ax, decaying["step"].iloc[[0, len(decaying) // 2, -1]])
    ax = axes[4]
    stationarity = frames["stationarity"]
    for place, (_, rows) in enumerate(stationarity.groupby("problem", sort=False)):
        colour = COLOURS[place]
        ax.loglog(
            rows["steps"], rows["measured"], color=colour, marker=MARKERS[place], ms=4, lw=1.2
        )
        ax.loglog(rows["steps"], rows["bound"], color=colour, ls="--", lw=1)
    ticks(ax, sorted(set(stationarity["steps"]))[::2])
    ax.set_title("(e) Stationarity")
    ax.set_xlabel("Steps K")
    ax.set_ylabel("mean ‖∇F‖²")
    for ax in axes:
        ax.grid(visible=True)
    return figure


def _linear_panel(ax: Axes, frame: pd.DataFrame) -> None:
    groups = frame.groupby(["sigma", "share"], sort=False)
    for place, ((sigma, share), rows) in enumerate(groups):
        colour = COLOURS[place]
        ax.loglog(rows["step"], rows["predicted"], color=colour, lw=1)
        ax.loglog(
            rows["step"], rows["measured"], color=colour, marker=MARKERS[place], ms=3, ls="",
            markevery=3, label=f"σ {sigma:g}, η {share:g}/Λ",
        )  # fmt: skip
    ax.set_title("(a) Linear to a ball")
    ax.set_xlabel("Step k")
    ax.set_ylabel("Excess loss")
    ax.set_ylim(top=30 * float(frame["measured"].max()))
    ax.legend(loc="upper right", fontsize=6.5, handletextpad=0.2, ncols=2, columnspacing=0.8)
