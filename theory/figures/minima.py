"""Draws spurious minima of row and column gates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from finegates.suite.figures.style import COLOURS, MARKERS
from theory.figures.parts import FAMILIES, SHORT, Frames, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_minima(frames: Frames, lead: str) -> Figure:
    """Loss of the 2 x 2 example, and gaps of the minima that descents reach."""
    figure, axes = panels(
        2,
        2,
        f"{lead} (a): W = [[1, 2], [2, 1]], white data, target diag(1, 0.9): the loss on r = c; "
        "stars: the two strict minima of the proposition. (b): local minima that descents end in, "
        "above the best one found for the same problem; squares: from ω = 1.",
        wide=1.35,
    )
    ax, frame = axes[0], frames["two_minima"]
    table = frame.pivot(index="y", columns="x", values="loss")
    low, high = float(frame["loss"].min()), float(frame["loss"].max())
    levels = low + np.geomspace(0.01, high - low, 20)
    drawn = ax.contour(
        table.columns, table.index, table.to_numpy(), levels=levels, cmap="cividis", linewidths=0.9
    )
    drawn.set_rasterized(False)
    ax.plot([1, 0], [0, np.sqrt(0.9)], ls="", marker="*", ms=9, color=COLOURS[1])
    ax.set_title("(a) Two minima")
    ax.set_xlabel("r₁ = c₁")
    ax.set_ylabel("r₂ = c₂")
    ax, frame = axes[1], frames["minima"]
    for place, family in enumerate(FAMILIES):
        for start, colour, marker, shift in (
            ("random", COLOURS[0], MARKERS[0], -0.12),
            ("ω = 1", COLOURS[1], MARKERS[1], 0.16),
        ):
            rows = frame[(frame["family"] == family) & (frame["start"] == start)]
            spread = np.linspace(-0.1, 0.1, len(rows))
            ax.plot(
                place + shift + spread, rows["gap"], ls="", marker=marker, ms=2.5, color=colour,
                alpha=0.7, mew=0,
            )  # fmt: skip
    ax.set_yscale("symlog", linthresh=1e-4, linscale=0.4)
    ax.set_ylim(-3e-5, 1)
    ax.set_xticks(range(len(FAMILIES)), [SHORT[family] for family in FAMILIES])
    ax.set_title("(b) Where descents end")
    ax.set_xlabel("Family")
    ax.set_ylabel("Gap over ‖Y‖²/2n")
    ax.grid(visible=True, axis="y")
    return figure
