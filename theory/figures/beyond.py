"""Draws the time near the saddle, and the share of a dense change that gates reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from finegates.suite.figures.style import COLOURS, MARKERS
from theory.figures.parts import Frames, panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_beyond(frames: Frames, lead: str) -> Figure:
    """Escape times from (0, 0), and shares of a random change that are within reach."""
    figure, axes = panels(
        4,
        2,
        f"{lead} (a): first well-conditioned problem, gradient flow from distance ε of (0, 0) "
        "until the ball of radius 0.05 is left; dashed: slope 1/σ₁. (b): share of a small dense "
        "random change of W within reach, white data, as many parameters; dashed: predicted "
        "for gates, bound for LoRA. (c): the same problem with noise σ, in units of the noise σ_c "
        "(dotted) from which (0, 0) is a minimum, and a price whose balance with the saddle is at "
        "a* without noise, from ε = 10⁻³; filled: towards open gates, open marks: towards negative "
        "ones; above σ_c nothing leaves without a price. (d): one gate with the task ½ω² from the "
        "released start to 1, by the price λ of P(open); at the left edge λ = 0; dotted: the bound "
        "for any noise. Dashed: closed forms.",
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
    _saddle_panel(axes[2], frames["escape_saddle"])
    _plateau_panel(axes[3], frames["escape_plateau"])
    for ax in axes:
        ax.grid(visible=True)
    return figure


def _saddle_panel(ax: Axes, frame: pd.DataFrame) -> None:
    frame = frame[frame["problem"] == frame["problem"].iloc[0]]
    ax.axvline(1.0, color="0.5", ls=":", lw=1.0)
    for place, balance in enumerate(sorted(set(frame["balance"].tolist()))):
        rows = frame[frame["balance"] == balance]
        look: dict[str, Any] = {"color": COLOURS[place]}
        label = f"a* = {balance:g} ε" if balance else "no price"
        for side, fill in ((1, "full"), (-1, "none")):  # towards open gates, towards negative ones
            part = rows[rows["side"] == side]
            if len(part):
                marks = {"marker": MARKERS[place], "fillstyle": fill, **look}
                ax.plot(part["noise"], part["time"], ls="", label=label, **marks)
                ax.plot(part["noise"], part["predicted"], ls="--", lw=1.1, **look)
                label = ""
    ax.set_yscale("log")
    ax.set_title("(c) Saddle, noise and price")
    ax.set_xlabel("Noise σ over σ_c")
    ax.set_ylabel("Time of gradient flow")
    # A third more axis above the points, for the legend.
    low, high = np.log(ax.get_ylim())
    ax.set_ylim(np.exp(low), np.exp(high + (high - low) / 3))
    ax.legend(loc="upper left", fontsize=6.5, ncols=2)


def _plateau_panel(ax: Axes, frame: pd.DataFrame) -> None:
    least = float(frame.loc[frame["price"] > 0, "price"].min())
    for place, (sigma, rows) in enumerate(frame.groupby("sigma")):
        look: dict[str, Any] = {"color": COLOURS[place]}
        prices = rows["price"].clip(lower=least / 3)
        label = f"σ = {sigma:g}"
        ax.loglog(prices, rows["time"], ls="", marker=MARKERS[place], label=label, **look)
        ax.loglog(prices, rows["predicted"], ls="--", lw=1.1, **look)
    rows = frame[frame["bound"] <= frame["time"].max()].drop_duplicates("price")
    ax.loglog(rows["price"], rows["bound"], color="0.5", ls=":", lw=1.0, label="bound")
    ax.set_title("(d) Plateau, noise and price")
    ax.set_xlabel("Price λ")
    ax.set_ylabel("Time of gradient flow")
    ax.legend(loc="lower left", fontsize=6.5, ncols=2)
