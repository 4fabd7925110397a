"""Figures of the Llama experiments: perplexity, loss curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finegates.suite.figures.style import COLOURS, DASHES, MARKERS, add_legend, grid, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DENSE_COLOUR = "#111111"


def draw_posttraining(frame: pd.DataFrame, footer: str = "") -> Figure:
    """Perplexity against sparsity, one panel per model, one line per method.

    Args:
        frame: the numbers of ``finegates.suite.tables.llama_posttraining.posttraining_table``.
        footer: text under the panels.
    """
    names = list(dict.fromkeys(frame["name"]))
    methods = frame[frame["method"] != "dense"].drop_duplicates("method")
    looks = _looks(list(methods["method"]))
    with style():
        entries = 1 + len(methods)
        figure, axes = grid(len(names), min(2, len(names)), footer, legend_entries=entries)
        for ax, name in zip(axes, names, strict=True):
            rows = frame[frame["name"] == name]
            ax.grid(visible=True)
            ax.set_title(str(rows["model"].iloc[0]))
            ax.set_xlabel("Realised sparsity (%)")
            ax.set_ylabel("Held-out perplexity")
            dense = rows[rows["method"] == "dense"]
            if not dense.empty:
                level = float(dense["perplexity"].iloc[0])
                ax.axhline(level, color=DENSE_COLOUR, linewidth=1.2, label="Dense")
            for method, title in zip(methods["method"], methods["title"], strict=True):
                points = rows[rows["method"] == method].sort_values("realised_sparsity")
                if not points.empty:
                    ax.plot(
                        100 * points["realised_sparsity"].astype(float),
                        points["perplexity"].astype(float),
                        label=title,
                        **looks[method],
                    )
            low, high = float(rows["perplexity"].min()), float(rows["perplexity"].max())
            if high > 3 * low:
                ax.set_yscale("log")
                ticks = _ticks(low, high)
                ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
                ax.minorticks_off()
        _legend(figure, axes[0])
    return figure


def draw_pretraining(frame: pd.DataFrame, footer: str = "") -> Figure:
    """Held-out loss and closed weights over tokens, two panels per size.

    Args:
        frame: see ``finegates.suite.tables.llama_pretraining.curve_table``.
        footer: text under the panels.
    """
    names = list(dict.fromkeys(frame["name"]))
    runs = frame.drop_duplicates(["method", "target"])
    with style():
        figure, axes = grid(2 * len(names), 2, footer, legend_entries=len(runs))
        for row, name in enumerate(names):
            loss, removed = axes[2 * row], axes[2 * row + 1]
            loss.set_title(f"{name}: held-out loss")
            loss.set_ylabel("Nats a token")
            removed.set_title(f"{name}: closed weights")
            removed.set_ylabel("Of the gated weights (%)")
            gated = 0
            for _, run in runs.iterrows():
                points = frame[(frame["name"] == name) & (frame["method"] == run["method"])]
                dense = run["method"] == "dense"
                if not dense:
                    points = points[points["target"] == run["target"]]
                colour = DENSE_COLOUR if dense else COLOURS[gated % len(COLOURS)]
                gated += not dense
                label = run["title"] if dense else f"{run['title']}, s = {run['target']:g}"
                for seed in sorted(set(points["seed"])):
                    one = points[points["seed"] == seed]
                    for ax, column, scale in (
                        (loss, "held_out_loss", 1),
                        (removed, "realised_sparsity", 100),
                    ):
                        shown = one[one[column].notna()]
                        if dense and column == "realised_sparsity":
                            continue
                        ax.plot(
                            shown["tokens"].astype(float) / 1e6,
                            scale * shown[column].astype(float),
                            color=colour,
                            linewidth=1.2,
                            label=label,
                        )
            for ax in (loss, removed):
                ax.grid(visible=True)
                ax.set_xlabel("Tokens seen (millions)")
            removed.set_ylim(bottom=0)
        _legend(figure, axes[0])
    return figure


def _looks(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Line style of each method.

    Gates have solid lines, one-shot pruning dashed ones. A method that matches a gated method has
    the same colour. Each criterion has a marker.
    """
    gated = [method for method in methods if "-as-" not in method]
    criteria = list(dict.fromkeys(m.partition("-as-")[0] for m in methods if "-as-" in m))
    looks = {}
    for method in methods:
        criterion, as_, label = method.partition("-as-")
        place = gated.index(label if as_ else method)
        looks[method] = {
            "color": COLOURS[place % len(COLOURS)],
            "linestyle": DASHES[1] if as_ else DASHES[0],
            "marker": MARKERS[1 + criteria.index(criterion)] if as_ else MARKERS[0],
            "markersize": 4.5,
            "linewidth": 0.9 if as_ else 1.5,
            "alpha": 0.75 if as_ else 1.0,
        }
    return looks


def _legend(figure: Figure, ax: Axes) -> None:
    """A legend of the first panel, without repeated labels."""
    handles, labels = ax.get_legend_handles_labels()
    found = dict(zip(labels, handles, strict=True))
    add_legend(figure, list(found.values()), list(found))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers 1, 2, 5 times powers of ten that cover a range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [base * 10.0**power for power in powers for base in (1, 2, 5)]
    inside = [tick for tick in ticks if low / 1.6 <= tick <= high * 1.6]
    return inside if len(inside) <= 9 else inside[::2]
