"""Gate values over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finegates.suite.figures.style import grid, label_edges, style, typed
from finegates.suite.runs.record import Record
from finegates.suite.stats import mean
from finegates.suite.tables.captions import check_study, task_title
from finegates.suite.tables.runs import FRACTION_DECIMALS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def gate_histogram_frame(
    records: Sequence[Record], method: str, methods: Sequence[str], tasks: Sequence[str]
) -> pd.DataFrame:
    """Histograms of a method's gates by task and epoch, over all seeds.

    Columns: ``task``, ``method``, ``title``, ``seeds`` (their number), ``epoch``, ``low`` and
    ``high`` (the bin's edges in [0, 1]), ``count``, ``fraction`` (of the gates, sums to 1 over the
    bins of an epoch). The fractions of gates that are ``closed`` (exactly 0), ``half_open``
    (between 0.05 and 0.95) and ``open`` (exactly 1) are repeated for every bin of an epoch.

    Raises:
        ValueError: there is no record of the method, none has gates, or histograms have different
            lengths; or see :func:`finegates.suite.tables.captions.check_study`.
    """
    import pandas as pd

    runs = [r for r in check_study(records, methods, tasks) if r.method == method]
    gated = [r for r in runs if any(epoch.gates for epoch in r.epochs)]
    if not gated:
        found = sorted({record.method for record in records})
        raise ValueError(f"no record of method {method!r} has gates; records are of {found}")
    rows = [
        row
        for task in tasks
        if (of_task := [run for run in gated if run.task == task])
        for row in _histogram_rows(task, of_task)
    ]
    return typed(pd.DataFrame(rows), integers=("seeds", "epoch", "count"))


def draw_gate_histograms(frame: pd.DataFrame, footer: str = "") -> Figure:
    """Evaluation gates over training, one panel per task.

    Epochs go downwards, and the colour is the fraction of gates in a bin. The final fractions of
    closed, half-open and open gates are above each panel.

    Args:
        frame: see :func:`gate_histogram_frame`.
        footer: text under the panels.
    """
    from matplotlib.colors import PowerNorm

    tasks = list(dict.fromkeys(frame["task"]))
    columns = min(len(tasks), 4 if len(tasks) > 6 else 3)
    with style():
        figure, axes = grid(len(tasks), columns, footer, shared_colours=True)
        # A square-root scale keeps small bins visible next to the peaks at 0 and 1.
        norm = PowerNorm(0.5, vmin=0.0, vmax=max(float(frame["fraction"].max()), 1e-6))
        mesh = None
        for ax, task in zip(axes, tasks, strict=True):
            mesh = _draw_histogram_panel(ax, task, frame[frame["task"] == task], norm)
        label_edges(axes, columns, "Gate value at evaluation", "Epoch")
        if mesh is not None:
            bar = figure.colorbar(mesh, ax=axes, shrink=0.8, aspect=28, pad=0.02)
            bar.set_label("Fraction of gates (square-root scale)")
            bar.outline.set_visible(False)
    return figure


def _histogram_rows(task: str, runs: Sequence[Record]) -> list[dict[str, Any]]:
    by_epoch: dict[int, list[Any]] = {}
    for run in runs:
        for epoch in run.epochs:
            if epoch.gates is not None:
                by_epoch.setdefault(epoch.epoch, []).append(epoch.gates)
    rows = []
    for number, found in sorted(by_epoch.items()):
        lengths = {len(gates.histogram) for gates in found}
        if len(lengths) != 1:
            raise ValueError(f"{task}, epoch {number}: histograms of {sorted(lengths)} bins")
        bins = lengths.pop()
        counts = [sum(column) for column in zip(*(g.histogram for g in found), strict=True)]
        total = max(1, sum(counts))
        for place, count in enumerate(counts):
            rows.append(
                {
                    "task": task,
                    "method": runs[0].method,
                    "title": runs[0].config.title,
                    "seeds": len(found),
                    "epoch": number,
                    "low": round(place / bins, FRACTION_DECIMALS),
                    "high": round((place + 1) / bins, FRACTION_DECIMALS),
                    "count": count,
                    "fraction": round(count / total, FRACTION_DECIMALS),
                    "closed": round(mean(g.closed for g in found), FRACTION_DECIMALS),
                    "half_open": round(mean(g.half_open for g in found), FRACTION_DECIMALS),
                    "open": round(mean(g.open for g in found), FRACTION_DECIMALS),
                }
            )
    return rows


def _draw_histogram_panel(ax: Axes, task: str, rows: pd.DataFrame, norm: Any) -> Any:
    table = rows.pivot(index="epoch", columns="low", values="fraction").sort_index()
    edges = [*table.columns, float(rows["high"].max())]
    epochs = [int(epoch) for epoch in table.index]
    borders = [*(epoch - 0.5 for epoch in epochs), epochs[-1] + 0.5]
    mesh = ax.pcolormesh(
        edges, borders, table.to_numpy(), norm=norm, cmap="cividis", rasterized=True
    )
    ax.invert_yaxis()
    shown = epochs if len(epochs) <= 8 else epochs[:: math.ceil(len(epochs) / 6)]
    ax.set_yticks(shown)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
    ax.tick_params(length=2)
    final = rows[rows["epoch"] == epochs[-1]].iloc[0]
    ax.set_title(task_title(task))
    ax.text(
        1.0, 1.02,
        f"closed {final['closed']:.0%} · half {final['half_open']:.0%} · open {final['open']:.0%}",
        transform=ax.transAxes, ha="right", va="bottom", fontsize=6.5, color="#555555",
    )  # fmt: skip
    return mesh
