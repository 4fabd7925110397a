"""Draws the time near the saddle, and the share of a dense change that gates reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from finegates.suite.figures.style import COLOURS, MARKERS
from theory.figures.parts import Frames, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_beyond(frames: Frames, lead: str) -> Figure:
    """Escape times from (0, 0), and shares of a random change that are within reach."""
    figure, axes = panels(
        2,
        2,
        f"{lead} (a): first well-conditioned problem, gradient flow from distance ε of (0, 0) "
        "until the ball of radius 0.05 is left; dashed: slope 1/σ₁. (b): share of a small dense "
        "random change of W within reach, white data, as many parameters; dashed: predicted "
        "for gates, bound for LoRA.",
        wide=1.35,
    )
    ax, frame = axes[0], frames["escape"]
    for place, method in enumerate(("gates", "LoRA 1")):
        rows = frame[(frame["method"] == method) & (frame["problem"] == frame["problem"].iloc[0])]
        look: dict[str, Any] = {"color": COLOURS[place]}
        ax.semilogx(rows["size"], rows["time"], ls="", marker=MARKERS[place], label=method, **look)
        ax.semilogx(rows["size"], rows["predicted"], ls="--", lw=1.1, **look)
    ax.set_ylim(0, None)
    ax.set_title("(a) Leaving the saddle")
    ax.set_xlabel("Distance ε of the start from (0, 0)")
    ax.set_ylabel("Time of gradient flow")
    ax.legend(loc="upper right")
    ax, frame = axes[1], frames["reach_dense"]
    places = np.arange(len(frame))
    for place, (measured, predicted, label) in enumerate(
        (("gates", "predicted", "gates"), ("lora", "bound", "LoRA 1"))
    ):
        look = {"color": COLOURS[place]}
        ax.plot(places, frame[measured], ls="", marker=MARKERS[place], label=label, **look)
        ax.plot(places, frame[predicted], ls="--", lw=1.1, **look)
    ax.set_xticks(places, [f"{m} × {d}" for m, d in zip(frame["rows"], frame["cols"], strict=True)])
    ax.set_ylim(0, 1)
    ax.set_title("(b) Reach")
    ax.set_xlabel("Shape of W")
    ax.set_ylabel("Share of the change")
    ax.legend(loc="upper right")
    for ax in axes:
        ax.grid(visible=True)
    return figure
