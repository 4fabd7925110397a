"""Shared parts of figures: palette, settings, panel grids, files."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finegates.files import whole_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D3A9B", "#7A7A7A")
"""Okabe and Ito's palette without yellow and black, with a violet and a grey: told apart by readers
with any of the common colour deficiencies, and methods differ in marker or line as well."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (7, 3)))

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "finegates",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "figure.dpi": 100,
    "savefig.dpi": 200,
}

LEAST_SPAN = 5.0
"""Points that an axis of scores spans at least, so that the draw of test rows does not look like an
effect: the 95 % interval of a score of 85 on SST-2's 872 rows is 4.7 wide."""

PANEL_WIDTH = 2.35
PANEL_HEIGHT = 1.95
LINE_HEIGHT = 0.145
LEGEND_WIDTH = 2.4
LEGEND_HEIGHT = 0.37
"""Sizes in inches: of a panel, a line of the footer, a legend and one of its entries, two lines."""


def style() -> Any:
    """The figures' settings on top of Matplotlib's own defaults."""
    import matplotlib.style

    matplotlib.use("Agg")
    return matplotlib.style.context(["default", STYLE])


def grid(
    panels: int,
    columns: int,
    footer: str,
    *,
    legend_entries: int = 0,
    shared_colours: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure with panels, a footer and space for :func:`add_legend`.

    Args:
        panels: number of panels.
        columns: panels per row.
        footer: text below the panels.
        legend_entries: lines of the legend, 0 for none.
        shared_colours: leave space for a colour bar.
    """
    rows = math.ceil(panels / columns)
    side = LEGEND_WIDTH if legend_entries else 0.9 if shared_colours else 0.2
    wide = PANEL_WIDTH * (1.3 if columns == 1 else 1.15 if columns == 2 else 1.0)
    width = max(5.6, columns * wide + side + 0.4)
    lines = textwrap.wrap(footer, int(width * 15.4)) if footer else []
    height = max(rows * PANEL_HEIGHT + 0.45, LEGEND_HEIGHT * legend_entries)
    return lay_out(panels, columns, (width, height), lines)


def lay_out(
    panels: int, columns: int, size: tuple[float, float], lines: Sequence[str]
) -> tuple[Figure, list[Axes]]:
    """A figure with panels of ``size`` (width, height in inches) above lines."""
    from matplotlib.figure import Figure

    width, height = size
    foot = LINE_HEIGHT * len(lines) + 0.18 if lines else 0.0
    height += foot
    figure = Figure(figsize=(width, height), layout="constrained")
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(  # type: ignore[call-arg]
            rect=(0.005, foot / height, 0.99, 1 - foot / height - 0.01), wspace=0.04, hspace=0.06
        )
    rows = math.ceil(panels / columns)
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(panels)]
    write_footer(figure, lines)
    return figure, axes


def add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend next to the panels of a :func:`grid`, with long labels wrapped."""
    figure.legend(
        handles=handles,
        labels=[textwrap.fill(label, 30) for label in labels],
        loc="outside right upper",
        fontsize=8,
        labelspacing=0.7,
        handlelength=2.4,
    )


def write_footer(figure: Figure, lines: Sequence[str]) -> None:
    """Writes lines of small print along the lower edge, if there are any."""
    if not lines:
        return
    width, height = figure.get_size_inches()
    figure.text(
        0.08 / width,
        0.08 / height,
        "\n".join(lines),
        fontsize=6.5,
        color="#555555",
        va="bottom",
        linespacing=1.35,
    )


def label_edges(axes: Sequence[Axes], columns: int, x: str, y: str) -> None:
    """Labels the axes of the lowest panel of each column and left of rows."""
    for place, ax in enumerate(axes):
        if place + columns >= len(axes):
            ax.set_xlabel(x)
        if place % columns == 0:
            ax.set_ylabel(y)


def typed(
    frame: pd.DataFrame, integers: Sequence[str] = (), floats: Sequence[str] = ()
) -> pd.DataFrame:
    """Converts columns with blanks to nullable integers or floats."""
    return frame.astype({name: "Int64" for name in integers} | {name: float for name in floats})


def save_figure(figure: Figure, *paths: str | Path) -> None:
    """Saves a figure atomically as svg, pdf or png, by each path's suffix.

    The files do not contain dates or program names, so that the same figure gives the same bytes.

    Raises:
        ValueError: a path has another suffix.
    """
    metadata: dict[str, dict[str, Any]] = {
        ".svg": {"Date": None, "Creator": None},
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        ".png": {"Software": None},
    }
    for path in map(Path, paths):
        if path.suffix not in metadata:
            raise ValueError(f"cannot save a figure as {path.name!r}; use {', '.join(metadata)}")
    _fix_layout(figure)
    for path in map(Path, paths):
        stream = io.BytesIO()
        with style():
            figure.savefig(stream, format=path.suffix[1:], metadata=metadata[path.suffix])
        with whole_file(path) as aside:
            aside.write_bytes(stream.getvalue())


def _fix_layout(figure: Figure) -> None:
    """Computes the layout once and rounds it.

    The last bits of the layout solver depend on memory addresses.
    """
    if figure.get_layout_engine() is None:
        return
    with style():
        figure.draw_without_rendering()
        # "none" would leave a placeholder, with which every save draws the figure twice.
        figure.set_layout_engine(None)
    for ax in figure.axes:
        left, bottom, width, height = ax.get_position(original=True).bounds
        ax.set_position((round(left, 5), round(bottom, 5), round(width, 5), round(height, 5)))


def span_scores(ax: Axes, axis: Literal["x", "y"], widest: float = 0.0) -> None:
    """Widens an axis of scores, so that chance differences look small.

    Args:
        ax: finished plot.
        axis: the axis of the scores.
        widest: width of the widest interval of a score, in points.
    """
    low, high = getattr(ax, f"get_{axis}lim")()
    missing = max(LEAST_SPAN, widest) - (high - low)
    if missing > 0:
        getattr(ax, f"set_{axis}lim")(low - missing / 2, high + missing / 2)
