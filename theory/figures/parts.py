"""Shared parts of the theory's figures: panels with an explanation, legends, ticks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from finegates.suite.figures.style import lay_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Frames = Mapping[str, pd.DataFrame]

PANEL = (2.75, 2.2)
"""Width and height of a panel in inches."""

FAMILIES = (
    "well-conditioned",
    "ill-conditioned",
    "rank-deficient",
    "over-parameterised",
    "under-parameterised",
)
SHORT = dict(zip(FAMILIES, ("well", "ill", "deficient", "over", "under"), strict=True))


def panels(
    count: int, columns: int, footer: str, *, wide: float = 1.0
) -> tuple[Figure, list[Axes]]:
    """A figure with panels and an explanation below."""
    width = columns * PANEL[0] * wide + 0.3
    height = math.ceil(count / columns) * PANEL[1] + 0.35
    return lay_out(count, columns, (width, height), textwrap.wrap(footer, int(width * 19)))


def legend(
    figure: Figure, entries: Sequence[tuple[str, str, str, str]], place: str = "upper"
) -> None:
    """Legend of families or methods: above the panels, or in the free cell at the lower right."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker or "none", ls=dash, ms=4, lw=1.4, label=label)
        for label, colour, marker, dash in entries
    ]
    if place == "right":
        cell = figure.add_subplot(2, 4, 8)
        cell.set_axis_off()
        cell.legend(
            handles=handles, loc="center left", fontsize=8, title="Trained", title_fontsize=8
        )
        return
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=7.5)


def ticks(ax: Axes, places: Iterable[float]) -> None:
    """Ticks at the points; on a logarithmic axis, those within one decade overlap."""
    places = list(places)
    ax.set_xticks(places, [f"{x:,.10g}" for x in places])
    ax.set_xticks([], minor=True)
