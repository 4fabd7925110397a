"""Time of compact models against their multiply-accumulates."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from finegates.suite.figures.style import COLOURS, LINE_HEIGHT, MARKERS, STYLE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def draw_inference(frame: pd.DataFrame, footer: str) -> Figure:
    """Time of compact models against MACs, both relative to the dense model.

    Args:
        frame: see ``finegates.suite.timing.inference.time_inference``.
        footer: text below the plot.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        lines = textwrap.wrap(footer, 110)
        foot = 0.2 + LINE_HEIGHT * len(lines)
        height = 3.5 + foot
        figure = Figure(figsize=(7.6, height))
        ax = figure.add_axes((0.08, (foot + 0.45) / height, 0.47, 2.9 / height))
        ax.grid(visible=True)
        ax.plot([0, 1], [0, 1], color="#8A8A8A", linestyle=":", label="limit of the arithmetic")
        ax.axhline(1, color="#111111", linewidth=1, label="dense")
        small = frame[(frame["contender"] == "compact") & (frame["backend"] == "eager")]
        groups = small.groupby(["model", "gates", "batch", "length", "decode"], sort=False)
        for place, (key, rows) in enumerate(groups):
            model, gates, batch, length, decode = key
            rows = rows.sort_values("macs_ratio")
            ax.plot(
                rows["macs_ratio"],
                rows["ratio_to_dense"],
                color=COLOURS[place % len(COLOURS)],
                marker=MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
                linewidth=1,
                label=f"{model}, {gates}, {batch} × {length}{' + 1' * bool(decode)}",
            )
        ax.set_xlim(0, 1.05)
        ax.set_ylim(0, max(1.1, 1.05 * small["ratio_to_dense"].max()))
        ax.set_xlabel("MACs of the compact model / dense")
        ax.set_ylabel("time / dense time")
        figure.legend(loc="upper left", bbox_to_anchor=(0.57, 0.98), fontsize=7)
        figure.text(0.02, 0.02, "\n".join(lines), fontsize=6.5, color="#555555", va="bottom")
    return figure
