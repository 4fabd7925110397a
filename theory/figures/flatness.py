"""Draws flat directions against the width of a block, and by kind of block."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from finegates.suite.figures.style import COLOURS, MARKERS, lay_out
from theory.figures.parts import Frames, legend, ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLACED = ("independent", "shared", "LoRA 1")


def draw_flatness(frames: Frames, lead: str) -> Figure:
    """Nullity of the Jacobian of a block's outputs in gates and in low-rank factors."""
    footer = (
        f"{lead} Random blocks of one layer, gates placed by the library (independent: reference, "
        "shared: structured), LoRA of rank 1 on the same layers, with as many parameters as "
        "independent gates. Markers: zero singular values of the Jacobian of the outputs; dashed: "
        "predicted from the block's description. In wider blocks the share of independent gates "
        "remains as it is, those of shared gates and of LoRA fall as 1/d."
    )
    figure, axes = lay_out(2, 2, (7.7, 3.6), textwrap.wrap(footer, 146))
    ax, frame = axes[0], frames["flat_width"]
    for place, placed in enumerate(PLACED):
        rows = frame[frame["parameters"] == placed]
        ax.plot(
            rows["width"],
            rows["measured"],
            ls="",
            color=COLOURS[place],
            marker=MARKERS[place],
            ms=5,
        )
        ax.plot(rows["width"], rows["predicted"], color=COLOURS[place], ls="--", lw=1.1)
    ticks(ax, sorted(frame["width"].unique()))
    ax.set_ylim(0, None)
    ax.set_title("(a) A block of BERT")
    ax.set_xlabel("Width d")
    ax.set_ylabel("Flat directions")
    ax, frame = axes[1], frames["flat_kinds"]
    kinds = list(dict.fromkeys(frame["kind"]))
    for place, placed in enumerate(PLACED):
        rows = frame[frame["parameters"] == placed].set_index("kind").loc[kinds]
        ax.plot(
            100 * rows["share"], range(len(kinds)), ls="", color=COLOURS[place],
            marker=MARKERS[place], ms=4.5,
        )  # fmt: skip
    ax.set_yticks(range(len(kinds)), kinds, fontsize=7)
    ax.invert_yaxis()
    ax.set_xlim(0, None)
    ax.set_title("(b) Kinds of blocks, width 8")
    ax.set_xlabel("Flat directions, % of the parameters")
    ax.set_ylabel("Kind of block")
    for ax in axes:
        ax.grid(visible=True)
    legend(figure, [(p, COLOURS[i], MARKERS[i], "") for i, p in enumerate(PLACED)])
    return figure
