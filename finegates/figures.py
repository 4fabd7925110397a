"""Figures of a study: score against realised sparsity, and gate values over training.

A figure is drawn from a frame alone, and that frame is written as CSV beside it. The same frame
gives the same bytes of SVG, PDF and PNG (same version of Matplotlib).
"""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finegates.record import Record
from finegates.stats import mean
from finegates.tables.captions import check_study, metric_title, task_title
from finegates.tables.runs import FRACTION_DECIMALS, SCORE_DECIMALS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AVERAGE = "average"

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

PANEL_WIDTH = 2.35
PANEL_HEIGHT = 1.95
LINE_HEIGHT = 0.145
"""Inches: of a panel, and of a line of the footer."""


def tradeoff_frame(
    records: Sequence[Record],
    methods: Sequence[str],
    tasks: Sequence[str],
    references: Mapping[str, Mapping[str, float]] | None = None,
) -> pd.DataFrame:
    """What the trade-off figure shows, one row for each point or line.

    Columns: ``panel`` (a task, or ``average``), ``kind`` (``pruned``: a point; ``dense`` or
    ``reference``: a horizontal line), ``method``, ``title``, ``seed``, ``realised_sparsity`` in
    [0, 1], ``macs_removed``, the fraction of the encoder's, ``score`` after the last epoch. The
    average of a seed is there if all its tasks are.

    Raises:
        ValueError: see :func:`finegates.tables.captions.check_study`.
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
    return _typed(pd.DataFrame(rows), integers=("seed",), floats=floats)


def gate_histogram_frame(
    records: Sequence[Record], method: str, methods: Sequence[str], tasks: Sequence[str]
) -> pd.DataFrame:
    """Evaluation gates of a method, by task, epoch and bin, counted over all seeds.

    Columns: ``task``, ``method``, ``title``, ``seeds`` (number of them), ``epoch``, ``low`` and
    ``high`` (the bin's edges in [0, 1]), ``count``, ``fraction`` (of the gates, sums to 1 over the
    bins of an epoch), and, repeated for every bin of an epoch, the fractions of gates that are
    ``closed`` (exactly 0), ``half_open`` (between 0.05 and 0.95) and ``open`` (exactly 1).

    Raises:
        ValueError: no record of the method, none with gates, histograms of different lengths; or
            see :func:`finegates.tables.captions.check_study`.
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
    return _typed(pd.DataFrame(rows), integers=("seeds", "epoch", "count"))


AXES = {"realised_sparsity": "Realised sparsity (%)", "macs_removed": "Encoder MACs removed (%)"}


def draw_tradeoff(
    frame: pd.DataFrame, footer: str = "", against: str = "realised_sparsity"
) -> Figure:
    """Score against what was removed: a panel for each task and one for the average.

    Small points are runs, large ones means over seeds; pruned methods are points, dense ones
    horizontal lines at their mean, references dotted lines.

    Args:
        frame: of :func:`tradeoff_frame`.
        footer: text under the panels: where the numbers come from.
        against: the column on the horizontal axis, a key of ``AXES``.
    """
    panels = list(dict.fromkeys(frame["panel"]))
    panels = [p for p in panels if p != AVERAGE] + [AVERAGE] * (AVERAGE in panels)
    styles = _styles(frame)
    columns = min(len(panels), 3 if len(panels) <= 6 or len(panels) == 9 else 4)
    entries = len(styles)
    with _style():
        figure, axes, legend_place = _grid(len(panels), columns, footer, legend_entries=entries)
        limit = frame[against].max()
        limit = 0.0 if limit != limit else float(limit)  # NaN: only references
        for ax, panel in zip(axes, panels, strict=True):
            _draw_tradeoff_panel(ax, panel, frame[frame["panel"] == panel], styles, against)
            ax.set_xlim(-4, max(10.0, 100 * limit * 1.08))
        _label_edges(axes, columns, AXES[against], "Score (× 100)")
        _legend(figure, styles, legend_place)
    return figure


def draw_gate_histograms(frame: pd.DataFrame, footer: str = "") -> Figure:
    """Evaluation gates over training: a panel for each task; epochs downwards, colour the fraction.

    Above each panel stand the final fractions of closed, half-open and open gates.

    Args:
        frame: of :func:`gate_histogram_frame`.
        footer: text under the panels.
    """
    from matplotlib.colors import PowerNorm

    tasks = list(dict.fromkeys(frame["task"]))
    columns = min(len(tasks), 4 if len(tasks) > 6 else 3)
    with _style():
        figure, axes, _ = _grid(len(tasks), columns, footer, shared_colours=True)
        # A square root keeps thinly filled bins visible beside the peaks at 0 and 1.
        norm = PowerNorm(0.5, vmin=0.0, vmax=max(float(frame["fraction"].max()), 1e-6))
        mesh = None
        for ax, task in zip(axes, tasks, strict=True):
            mesh = _draw_histogram_panel(ax, task, frame[frame["task"] == task], norm)
        _label_edges(axes, columns, "Gate value at evaluation", "Epoch")
        if mesh is not None:
            bar = figure.colorbar(mesh, ax=axes, shrink=0.8, aspect=28, pad=0.02)
            bar.set_label("Fraction of gates (square-root scale)")
            bar.outline.set_visible(False)
    return figure


def save_figure(figure: Figure, *paths: str | Path) -> None:
    """Saves a figure in the format of each path's suffix (svg, pdf, png), each file whole or not.

    The files hold no date and no names of programs: the same figure gives the same bytes.

    Raises:
        ValueError: another suffix.
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
        with _style():
            figure.savefig(stream, format=path.suffix[1:], metadata=metadata[path.suffix])
        _write_bytes(path, stream.getvalue())


def _fix_layout(figure: Figure) -> None:
    """Computes the layout once and rounds it: the solver's last bits depend on memory addresses."""
    if figure.get_layout_engine() is None:
        return
    with _style():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for ax in figure.axes:
        left, bottom, width, height = ax.get_position(original=True).bounds
        ax.set_position((round(left, 5), round(bottom, 5), round(width, 5), round(height, 5)))


def _tradeoff_row(panel: str, runs: Sequence[Record]) -> dict[str, Any]:
    first = runs[0]
    config = first.config
    dense = config.get("gates") is None and config.get("magnitude") is None
    return {
        "panel": panel,
        "kind": "dense" if dense else "pruned",
        "method": first.method,
        "title": config["title"],
        "seed": first.seed,
        "realised_sparsity": round(mean(r.realised_sparsity for r in runs), FRACTION_DECIMALS)
        + 0.0,
        "macs_removed": round(mean(map(_macs_removed, runs)), FRACTION_DECIMALS) + 0.0,
        "score": round(mean(r.last.score for r in runs), SCORE_DECIMALS) + 0.0,
    }


def _macs_removed(record: Record) -> float:
    macs = record.budget["macs"]
    return 1.0 - macs["kept"] / macs["dense"]


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
                    "title": runs[0].config["title"],
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


def _typed(
    frame: pd.DataFrame, integers: Sequence[str] = (), floats: Sequence[str] = ()
) -> pd.DataFrame:
    """Columns with blanks as nullable integers, and as floats with NaN."""
    return frame.astype({name: "Int64" for name in integers} | {name: float for name in floats})


def _style() -> Any:
    """The figures' settings, on top of Matplotlib's defaults and not of the user's."""
    import matplotlib
    from matplotlib import style

    matplotlib.use("Agg")
    return style.context(["default", STYLE])


def _grid(
    panels: int,
    columns: int,
    footer: str,
    *,
    legend_entries: int = 0,
    shared_colours: bool = False,
) -> tuple[Figure, list[Axes], str]:
    """A figure with panels, room for a footer, and the place of its legend."""
    from matplotlib.figure import Figure

    rows = math.ceil(panels / columns)
    beside = columns * rows > 2
    side = 2.2 if legend_entries and beside else 0.9 if shared_colours else 0.2
    below = 0.0 if beside else 0.2 * legend_entries
    width = max(5.6, columns * PANEL_WIDTH + side + 0.4)
    lines = textwrap.wrap(footer, int(width * 15.4)) if footer else []
    foot = LINE_HEIGHT * len(lines) + 0.18 if lines else 0.0
    height = rows * PANEL_HEIGHT + 0.45 + below + foot
    figure = Figure(figsize=(width, height), layout="constrained")
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(  # type: ignore[call-arg]
            rect=(0.005, foot / height, 0.99, 1 - foot / height - 0.01), wspace=0.04, hspace=0.06
        )
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(panels)]
    if lines:
        figure.text(
            0.08 / width,
            0.08 / height,
            "\n".join(lines),
            fontsize=6.5,
            color="#555555",
            va="bottom",
            linespacing=1.35,
        )
    return figure, axes, "outside right upper" if beside else "outside lower left"


def _label_edges(axes: Sequence[Axes], columns: int, x: str, y: str) -> None:
    """Axis labels below the lowest panel of each column and beside the first of each row."""
    for place, ax in enumerate(axes):
        if place + columns >= len(axes):
            ax.set_xlabel(x)
        if place % columns == 0:
            ax.set_ylabel(y)


def draw_inference(frame: pd.DataFrame, footer: str) -> Figure:
    """Time of compact models against their MACs, both relative to the dense model.

    Args:
        frame: of ``finegates.inference.time_inference``.
        footer: printed below.
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


def _styles(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Look of each method, in the frame's order: pruned methods, dense ones, references."""
    styles: dict[str, dict[str, Any]] = {}
    for kind in ("pruned", "dense", "reference"):
        methods = frame[frame["kind"] == kind].drop_duplicates("method")
        for place, (method, title) in enumerate(
            zip(methods["method"], methods["title"], strict=True)
        ):
            look: dict[str, Any] = {"kind": kind, "label": textwrap.fill(str(title), 30)}
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
    if panel != AVERAGE:
        metric = metric_title(panel).removesuffix(" correlation")
        place: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "va": "bottom"}
        ax.text(1.0, 1.02, metric, fontsize=6.5, color="#555555", **place)


def _legend(figure: Figure, styles: Mapping[str, Mapping[str, Any]], place: str) -> None:
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
            label=look["label"],
        )
        for look in styles.values()
    ]
    figure.legend(  # type: ignore[call-overload]
        handles=handles, loc=place, fontsize=8, labelspacing=0.7, handlelength=2.4
    )


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


def _write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, making its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
