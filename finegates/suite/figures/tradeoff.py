"""Score against realised sparsity or removed MACs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finegates.suite.figures.style import (
    COLOURS,
    DASHES,
    MARKERS,
    add_legend,
    grid,
    label_edges,
    span_scores,
    style,
    typed,
)
from finegates.suite.runs.record import Record
from finegates.suite.stats import mean, t_interval
from finegates.suite.tables.captions import check_study, metric_title, task_title
from finegates.suite.tables.runs import FRACTION_DECIMALS, SCORE_DECIMALS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AVERAGE = "average"

AXES = {"realised_sparsity": "Realised sparsity (%)", "macs_removed": "Encoder MACs removed (%)"}


def tradeoff_frame(
    records: Sequence[Record],
    methods: Sequence[str],
    tasks: Sequence[str],
    references: Mapping[str, Mapping[str, float]] | None = None,
) -> pd.DataFrame:
    """The data of the trade-off figure, one row per point or line.

    Columns: ``panel`` (a task, or ``average``), ``kind`` (``pruned`` is a point; ``dense`` and
    ``reference`` are horizontal lines), ``method``, ``title``, ``seed``, ``realised_sparsity`` in
    [0, 1], ``macs_removed`` (fraction of the encoder's MACs), ``score`` after the last epoch. A
    seed has an average only if it has all tasks.

    Raises:
        ValueError: see :func:`finegates.suite.tables.captions.check_study`.
    """
    import pandas as pd

    ordered = check_study(records, methods, tasks)
    rows = [_tradeoff_row(record.task, [record]) for record in ordered]
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in ordered:
        groups.setdefault((record.method, record.seed), []).append(record)
    rows += [_tradeoff_row(AVERAGE, runs) for runs in groups.values() if len(runs) == len(tasks)]
    for name, scores in (references or {}).items():
        known = {task: float(scores[task]) for task in tasks if task in scores}
        if len(known) == len(tasks):
            known[AVERAGE] = mean(known.values())
        rows += [
            {
                "panel": panel,
                "kind": "reference",
                "method": name,
                "title": name,
                "seed": None,
                "realised_sparsity": None,
                "macs_removed": None,
                "score": round(score, SCORE_DECIMALS) + 0.0,
            }
            for panel, score in known.items()
        ]
    floats = ("realised_sparsity", "macs_removed", "score")
    return typed(pd.DataFrame(rows), integers=("seed",), floats=floats)


def draw_tradeoff(
    frame: pd.DataFrame, footer: str = "", against: str = "realised_sparsity"
) -> Figure:
    """Score against sparsity or MACs, by task and for the average.

    Pruned methods are points: small ones are runs, large ones are means over seeds. Dense methods
    are horizontal lines at their mean, references are dotted lines.

    Args:
        frame: see :func:`tradeoff_frame`.
        footer: text under the panels, with the origin of the numbers.
        against: the column on the horizontal axis, a key of ``AXES``.
    """
    panels = list(dict.fromkeys(frame["panel"]))
    tasks = [p for p in panels if p != AVERAGE]
    panels = tasks + [AVERAGE] * (AVERAGE in panels and len(tasks) > 1)
    styles = _styles(frame)
    columns = min(len(panels), 3 if len(panels) <= 6 or len(panels) == 9 else 4)
    entries = len(styles)
    with style():
        figure, axes = grid(len(panels), columns, footer, legend_entries=entries)
        limit = frame[against].max()
        limit = 0.0 if limit != limit else float(limit)  # NaN: only references
        for ax, panel in zip(axes, panels, strict=True):
            _draw_tradeoff_panel(ax, panel, frame[frame["panel"] == panel], styles, against)
            ax.set_xlim(-4, max(10.0, 100 * limit * 1.08))
        label_edges(axes, columns, AXES[against], "Score (× 100)")
        _legend(figure, styles)
    return figure


def _tradeoff_row(panel: str, runs: Sequence[Record]) -> dict[str, Any]:
    first = runs[0]
    dense = not first.config.is_pruned
    return {
        "panel": panel,
        "kind": "dense" if dense else "pruned",
        "method": first.method,
        "title": first.config.title,
        "seed": first.seed,
        "realised_sparsity": round(mean(r.realised_sparsity for r in runs), FRACTION_DECIMALS)
        + 0.0,
        "macs_removed": round(mean(map(_macs_removed, runs)), FRACTION_DECIMALS) + 0.0,
        "score": round(mean(r.last.score for r in runs), SCORE_DECIMALS) + 0.0,
    }


def _macs_removed(record: Record) -> float:
    return 1.0 - record.budget.macs.kept_fraction


def _styles(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Style of each method, in the frame's order: pruned, dense, references."""
    styles: dict[str, dict[str, Any]] = {}
    for kind in ("pruned", "dense", "reference"):
        methods = frame[frame["kind"] == kind].drop_duplicates("method")
        for place, (method, title) in enumerate(
            zip(methods["method"], methods["title"], strict=True)
        ):
            look: dict[str, Any] = {"kind": kind, "label": str(title)}
            if kind == "pruned":
                turn = place // len(COLOURS)
                look["color"] = COLOURS[place % len(COLOURS)]
                look["marker"] = MARKERS[(place + turn) % len(MARKERS)]
            elif kind == "dense":
                look["color"] = ("#111111", "#6B6B6B", "#A0522D", "#2F6F73")[place % 4]
                look["linestyle"] = DASHES[place % len(DASHES)]
            else:
                look["color"] = ("#8A8A8A", "#BDBDBD")[place % 2]
                look["linestyle"] = ":"
            styles[f"{kind}:{method}"] = look
    return styles


def _draw_tradeoff_panel(
    ax: Axes,
    panel: str,
    rows: pd.DataFrame,
    styles: Mapping[str, Mapping[str, Any]],
    against: str,
) -> None:
    ax.grid(visible=True)
    if panel == AVERAGE:
        ax.set_title("Average")
        ax.set_facecolor("#F7F7F4")
    else:
        ax.set_title(task_title(panel))
    for name, look in styles.items():
        kind, method = name.split(":", 1)
        points = rows[(rows["kind"] == kind) & (rows["method"] == method)]
        if points.empty:
            continue
        middle = mean(points["score"])
        if kind != "pruned":
            ax.axhline(middle, color=look["color"], linestyle=look["linestyle"], linewidth=1.3)
            continue
        colour, marker = look["color"], look["marker"]
        sparsity = 100 * points[against]
        if len(points) > 1:
            ax.scatter(
                sparsity, points["score"], s=9, color=colour, marker=marker, alpha=0.45, lw=0
            )
        ax.scatter(
            [mean(sparsity)], [middle], s=34, color=colour, marker=marker, edgecolor="white",
            linewidth=0.6, zorder=3,
        )  # fmt: skip
    ax.margins(y=0.12)
    scores = [list(group["score"]) for _, group in rows.groupby("method")]
    intervals = [t_interval(found) for found in scores]
    span_scores(ax, "y", max((2 * i.half_width for i in intervals if i is not None), default=0.0))
    if panel != AVERAGE:
        metric = metric_title(panel).removesuffix(" correlation")
        place: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "va": "bottom"}
        ax.text(1.0, 1.02, metric, fontsize=6.5, color="#555555", **place)


def _legend(figure: Figure, styles: Mapping[str, Mapping[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=look["color"],
            marker=look.get("marker", "none"),
            linestyle=look.get("linestyle", "none"),
            markeredgecolor="white",
            markeredgewidth=0.6,
            markersize=6.5,
            linewidth=1.3,
        )
        for look in styles.values()
    ]
    add_legend(figure, handles, [look["label"] for look in styles.values()])
