"""Figures of the theory, each from its tables alone: what was measured beside what is predicted.

The look is that of ``finegates.figures``. Colours tell families or methods apart, and so do
markers; solid lines are measured, dashed ones predicted or bounds.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finegates.figures.style import COLOURS, LINE_HEIGHT, MARKERS, style, write_footer

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Frames = Mapping[str, "pd.DataFrame"]

PANEL = (2.75, 2.2)
"""Inches: width and height of a panel."""

FAMILIES = (
    "well-conditioned",
    "ill-conditioned",
    "rank-deficient",
    "over-parameterised",
    "under-parameterised",
)
SHORT = dict(zip(FAMILIES, ("well", "ill", "deficient", "over", "under"), strict=True))
METHODS = ("columns", "rows + columns", "LoRA 1", "LoRA 4", "LoRA 8")
KINDS = ("gates, before clipping", "gates, as trained", "LoRA")
MOMENTS = ("step 0", "step 10", "step 100", "solution")


def draw(name: str, frames: Frames, lead: str, network: str) -> Figure:
    """Draws one figure.

    Args:
        name: a key of ``FIGURES``.
        frames: tables by name, as ``theory.study.figure_frames`` gives them, and ``network``.
        lead: the first sentence below: which tier.
        network: which encoder and task, for the figure about them.

    Raises:
        ValueError: an unknown name.
        KeyError: a table is missing.
    """
    if name not in FIGURES:
        raise ValueError(f"unknown figure {name!r}; known: {', '.join(FIGURES)}")
    with style():
        if name == "network":
            return draw_network(frames, f"{lead} {network}.")
        return FIGURES[name](frames, lead)


def draw_descent(frames: Frames, lead: str) -> Figure:
    """Gaps of gradient descent and their bounds; tightness of the eigenvalue bounds."""
    figure, axes = _figure(
        4,
        2,
        f"{lead} First problem of each family. (a)-(c): gradient descent with step 1/Λ, in (c) "
        "projected to [0, 1]; solid: gap over the first one, "
        "dashed: the bound (1 − μ/Λ)^k. (d): lower bound over the smallest (non-zero) Hessian "
        "eigenvalue, one point a problem; 1 is attained.",
    )
    for ax, table, title in zip(
        axes,
        ("descent_columns", "descent_rows", "descent_box"),
        ("(a) Column gates", "(b) Row gates", "(c) Column gates in the box"),
        strict=False,
    ):
        for place, family in enumerate(FAMILIES):
            rows = frames[table][frames[table]["family"] == family]
            colour = COLOURS[place]
            shown = rows[rows["gap"] > 2e-12]
            ax.semilogy(shown["step"], shown["gap"], color=colour, lw=1.4)
            shown = rows[rows["bound"] > 2e-12]
            ax.semilogy(shown["step"], shown["bound"], color=colour, lw=1, ls=(0, (4, 2)))
        ax.set_ylim(1e-12, 3)
        ax.set_title(title)
        ax.set_xlabel("Step k")
        ax.set_ylabel("Relative gap")
        ax.grid(visible=True)
    _tightness(axes[3], frames)
    _legend(figure, [(family, COLOURS[i], "", "-") for i, family in enumerate(FAMILIES)])
    return figure


def _tightness(ax: Axes, frames: Frames) -> None:
    """Points by family, for Schur's bound and for the one on ranges."""
    centres = []
    for group, table in enumerate(("schur", "schur_singular")):
        frame, start = frames[table], 4.0 * group
        families = [f for f in FAMILIES if frame["problem"].str.startswith(f).any()]
        for shift, family in enumerate(families):
            found = frame[frame["problem"].str.startswith(family)]["ratio"].to_numpy()
            x = start + shift + np.linspace(-0.2, 0.2, len(found))
            place = FAMILIES.index(family)
            ax.scatter(x, found, s=14, color=COLOURS[place], marker=MARKERS[place], lw=0)
        centres.append(start + (len(families) - 1) / 2)
    ax.axhline(1, color="#8A8A8A", ls=":", lw=1)
    ax.set_yscale("log")
    ax.set_xticks(centres, ["regular", "singular,\non ranges"])
    ax.tick_params(axis="x", length=0)
    ax.set_title("(d) Schur's bounds")
    ax.set_ylabel("Bound / eigenvalue")
    ax.grid(visible=True, axis="y")


def draw_saddle(frames: Frames, lead: str) -> Figure:
    """The PL ratio on the way into the saddle, and around ω = 1."""
    figure, axes = _figure(
        2,
        2,
        f"{lead} (a): a well-conditioned problem, θ = ε(u₁, v₁)/√2; the dashed line has slope 2. "
        "(b): smallest PL ratio in the ball of that radius around ω = 1, where W is nearly right; "
        "dotted: the saddle (0, 0) at distance √(m + d).",
        wide=1.35,
    )
    path, region = frames["saddle_path"], frames["local_region"]
    ax = axes[0]
    for place, method in enumerate(("rows + columns", "LoRA 1")):
        rows = path[path["method"] == method]
        ax.loglog(
            rows["distance"], rows["ratio"], color=COLOURS[place], marker=MARKERS[place],
            ms=3, markevery=4, lw=1.3, label=method,
        )  # fmt: skip
    first = path.iloc[0]
    reach = np.array([path["distance"].min(), 0.1])
    ax.loglog(
        reach,
        0.4 * first["ratio"] * (reach / first["distance"]) ** 2,
        color="#8A8A8A",
        ls="--",
        lw=1,
    )
    ax.set_title("(a) Into the saddle at 0")
    ax.set_xlabel("Distance ε from (0, 0)")
    ax.set_ylabel("‖∇L‖² / 2(L − L*)")
    ax.legend(loc="lower right")
    ax = axes[1]
    shown = region[region["measured"] > 0]
    ax.loglog(
        shown["radius"], shown["measured"], color=COLOURS[0], marker="o", ms=3, lw=1.3,
        label="smallest found",
    )  # fmt: skip
    shown = region[region["certified"] > 0]
    ax.loglog(
        shown["radius"], shown["certified"], color=COLOURS[1], ls="--", lw=1.4, label="certified"
    )
    ax.axvline(region["saddle_distance"].iloc[0], color="#8A8A8A", ls=":", lw=1)
    ax.set_title("(b) Around ω = 1")
    ax.set_xlabel("Radius of the ball around ω = 1")
    ax.set_ylabel("‖∇L‖² / 2(L − L*)")
    ax.legend(loc="lower center", bbox_to_anchor=(0.6, 0.1))
    for ax in axes:
        ax.grid(visible=True)
    return figure


def draw_relaxation(frames: Frames, lead: str) -> Figure:
    """Lipschitz constant and bias of the relaxed objective against the noise."""
    lipschitz, bias = frames["lipschitz"], frames["bias"]
    figure, axes = _figure(
        2,
        2,
        f"{lead} Column gates. (a): first problem of three families; points: largest Hessian norm "
        "found, solid: upper bound, dashed: the limit C/σ, C = max |∂L| over the box / √2π. (b): "
        "medians over problems; the relaxed optimum above the hard one, and the hard loss of the "
        "relaxed optimum's evaluation gates, as fractions of ‖Y‖²/2n.",
        wide=1.35,
    )
    ax = axes[0]
    for place, family in enumerate(("well-conditioned", "ill-conditioned", "rank-deficient")):
        rows = lipschitz[lipschitz["problem"] == f"{family} 0"]
        colour = COLOURS[place]
        ax.loglog(
            rows["sigma"], rows["measured"], color=colour, marker=MARKERS[place], ms=3.5, ls="",
            label=family,
        )  # fmt: skip
        ax.loglog(rows["sigma"], rows["bound"], color=colour, lw=1)
        ax.loglog(rows["sigma"], rows["limit"], color=colour, lw=1, ls="--")
    ax.set_title("(a) Smoothness")
    ax.set_xlabel("Noise σ")
    ax.set_ylabel("Lipschitz constant of ∇F")
    ax.legend(loc="lower left")
    ax = axes[1]
    middle = bias.groupby("sigma")[["relaxed", "evaluated", "predicted"]].median()
    for place, (column, label, dash) in enumerate(
        (
            ("relaxed", "relaxed optimum", "-"),
            ("evaluated", "its evaluation gates", "-"),
            ("predicted", "½σ² Σ H_jj inside", "--"),
        )
    ):
        shown = middle[middle[column] > 1e-12]
        ax.loglog(
            shown.index, shown[column], color=COLOURS[place], ls=dash, lw=1.3,
            marker=MARKERS[place] if dash == "-" else None, ms=3.5, label=label,
        )  # fmt: skip
    ax.set_title("(b) Bias")
    ax.set_xlabel("Noise σ")
    ax.set_ylabel("Gap to the hard optimum")
    ax.legend(loc="lower right")
    for ax in axes:
        ax.grid(visible=True)
    return figure


def draw_convergence(frames: Frames, lead: str) -> Figure:
    """Stochastic descent: to a ball, with step and noise, with decaying steps, to stationarity."""
    figure, axes = _figure(
        5,
        3,
        f"{lead} Column gates; points: means over runs (95 % intervals where visible), lines: "
        "closed forms. (a)-(d): gates stay inside (0, 1). (e): clipped gates, σ = 0.3, step c/√K; "
        "solid: measured, dashed: bound.",
    )
    _linear_panel(axes[0], frames["sgd_linear"])
    ball = frames["noise_ball"]
    for ax, axis, title, label in (
        (axes[1], "step", "(b) Noise ball, step", "Step η, as a share of 1/Λ"),
        (axes[2], "noise", "(c) Noise ball, noise", "Noise σ"),
    ):
        rows = ball[ball["axis"] == axis]
        ax.loglog(rows["x"], rows["predicted"], color="#333333", ls="--", lw=1)
        bars = np.abs(rows[["low", "high"]].to_numpy().T - rows["measured"].to_numpy())
        ax.errorbar(
            rows["x"], rows["measured"], yerr=bars, color=COLOURS[0], marker="o", ms=4, ls="",
            capsize=2, lw=1,
        )  # fmt: skip
        ax.set_title(title)
        ax.set_xlabel(label)
        ax.set_ylabel("Excess loss")
        _ticks(ax, rows["x"])
    decaying = frames["sgd_decaying"]
    ax = axes[3]
    ax.loglog(decaying["step"], decaying["measured"], color=COLOURS[0], marker="o", ms=4, ls="")
    ax.loglog(decaying["step"], decaying["predicted"], color="#333333", ls="--", lw=1)
    ax.set_title("(d) Steps 2/(μ(k + k₀))")
    ax.set_xlabel("Step k")
    ax.set_ylabel("Excess loss")
    _ticks(ax, decaying["step"].iloc[[0, len(decaying) // 2, -1]])
    ax = axes[4]
    stationarity = frames["stationarity"]
    for place, (_, rows) in enumerate(stationarity.groupby("problem", sort=False)):
        colour = COLOURS[place]
        ax.loglog(
            rows["steps"], rows["measured"], color=colour, marker=MARKERS[place], ms=4, lw=1.2
        )
        ax.loglog(rows["steps"], rows["bound"], color=colour, ls="--", lw=1)
    _ticks(ax, sorted(set(stationarity["steps"]))[::2])
    ax.set_title("(e) Stationarity")
    ax.set_xlabel("Steps K")
    ax.set_ylabel("mean ‖∇F‖²")
    for ax in axes:
        ax.grid(visible=True)
    return figure


def _ticks(ax: Axes, places: Iterable[float]) -> None:
    """Ticks where the points are; those of a logarithmic axis within one decade overlap."""
    places = list(places)
    ax.set_xticks(places, [f"{x:,.10g}" for x in places])
    ax.set_xticks([], minor=True)


def _linear_panel(ax: Axes, frame: pd.DataFrame) -> None:
    groups = frame.groupby(["sigma", "share"], sort=False)
    for place, ((sigma, share), rows) in enumerate(groups):
        colour = COLOURS[place]
        ax.loglog(rows["step"], rows["predicted"], color=colour, lw=1)
        ax.loglog(
            rows["step"], rows["measured"], color=colour, marker=MARKERS[place], ms=3, ls="",
            markevery=3, label=f"σ {sigma:g}, η {share:g}/Λ",
        )  # fmt: skip
    ax.set_title("(a) Linear to a ball")
    ax.set_xlabel("Step k")
    ax.set_ylabel("Excess loss")
    ax.set_ylim(top=30 * float(frame["measured"].max()))
    ax.legend(loc="upper right", fontsize=6.5, handletextpad=0.2, ncols=2, columnspacing=0.8)


def draw_conditioning(frames: Frames, lead: str) -> Figure:
    """Condition numbers by family and moment, iterations, and what each method can reach."""
    conditioning = frames["conditioning"]
    count = int(conditioning["problems"].iloc[0])
    figure, axes = _figure(
        7,
        4,
        f"{lead} Medians over {count} problems with 95 % bootstrap intervals. (a)-(e): non-zero "
        "spectrum of the Gauss–Newton matrix along steepest descent; large hollow markers: the "
        "Hessian's, at the start and at the solution. (f): to a relative gap of 10⁻⁴, each to its "
        "own optimum; hollow: a quarter or more do not get there. (g): "
        "well-conditioned problems by what made the targets; the share of a free weight's gain "
        "that stays out of reach.",
    )
    for place, (ax, family) in enumerate(zip(axes, FAMILIES, strict=False)):
        _condition_panel(ax, conditioning[conditioning["family"] == family])
        ax.set_title(f"({'abcde'[place]}) {family.capitalize()}")
    axes[0].set_ylabel("Condition number")
    axes[4].set_ylabel("Condition number")
    _dots(axes[5], frames["speed"], "family", FAMILIES, "Iterations")
    axes[5].set_yscale("log")
    axes[5].set_title("(f) Iterations")
    _dots(axes[6], frames["reach"], "teacher", ("gates", "low-rank", "dense"), "Unexplained share")
    axes[6].set_title("(g) Reach, by teacher")
    axes[6].set_ylim(-0.03, 1)
    _legend(figure, [(m, COLOURS[i], MARKERS[i], "-") for i, m in enumerate(METHODS)], "right")
    return figure


def _condition_panel(ax: Axes, frame: pd.DataFrame) -> None:
    for place, method in enumerate(METHODS):
        colour, shift = COLOURS[place], 0.08 * (place - 2)
        rows = frame[(frame["method"] == method) & (frame["matrix"] == "gauss_newton")]
        rows = rows.set_index("moment").loc[list(MOMENTS)]
        x = np.arange(len(MOMENTS)) + shift
        bars = np.abs(rows[["low", "high"]].to_numpy().T - rows["median"].to_numpy())
        ax.errorbar(
            x, rows["median"], yerr=bars, color=colour, marker=MARKERS[place], ms=3.5, lw=1,
            capsize=1.5,
        )  # fmt: skip
        rows = frame[(frame["method"] == method) & (frame["matrix"] == "hessian")]
        ax.scatter(
            [MOMENTS.index(moment) + shift for moment in rows["moment"]],
            rows["median"],
            s=34,
            marker=MARKERS[place],
            facecolor="none",
            edgecolor=colour,
            linewidth=0.8,
        )
    ax.set_yscale("log")
    ax.set_xticks(range(len(MOMENTS)), ["start", "10", "100", "solution"])
    ax.set_xlabel("Step")
    ax.grid(visible=True, axis="y")


def _dots(ax: Axes, frame: pd.DataFrame, key: str, order: Sequence[str], label: str) -> None:
    for place, method in enumerate(METHODS):
        rows = frame[frame["method"] == method].set_index(key).loc[list(order)]
        x = np.arange(len(order)) + 0.13 * (place - 2)
        bars = np.abs(rows[["low", "high"]].to_numpy().T - rows["median"].to_numpy())
        colour = COLOURS[place]
        ax.errorbar(x, rows["median"], yerr=bars, color=colour, ls="", lw=1, capsize=1.5)
        missed = rows.get("not_reached")
        for i, (_, row) in enumerate(rows.iterrows()):
            hollow = missed is not None and row["not_reached"] >= 0.25
            ax.scatter(
                [x[i]], [row["median"]], s=20, marker=MARKERS[place],
                facecolor="white" if hollow else colour, edgecolor=colour, linewidth=0.9, zorder=3,
            )  # fmt: skip
    ax.set_xticks(range(len(order)), [SHORT.get(name, name) for name in order])
    ax.set_ylabel(label)
    ax.grid(visible=True, axis="y")


def draw_penalties(frames: Frames, lead: str) -> Figure:
    """Where a gate ends, by penalty, σ and λ: evaluation gates of trained modules."""
    frame = frames["endpoints"]
    titles = {"target": "Target", "hinge": "Hinge", "stg": "P(open), no target"}
    figure, axes = _figure(
        6,
        3,
        f"{lead} A gate trained from 1 with fresh noise under the task loss ½(ω − w)² and λ times "
        "a penalty (s = 0.4, σ_p = σ): its evaluation value, median over copies. Underlined: more "
        "than 0.1 from the closed form; …: that would still be on its way.",
    )
    mesh = None
    for place, ax in enumerate(axes):
        wanted = sorted(frame["wanted"].unique(), reverse=True)[place // 3]
        penalty = list(titles)[place % 3]
        rows = frame[(frame["wanted"] == wanted) & (frame["penalty"] == penalty)]
        table = rows.pivot(index="sigma", columns="weight", values="measured")
        closed = rows.pivot(index="sigma", columns="weight", values="predicted")
        settled = rows.pivot(index="sigma", columns="weight", values="settled")
        mesh = ax.imshow(
            table.to_numpy(), origin="lower", aspect="auto", cmap="cividis", vmin=0, vmax=1
        )
        for i, sigma in enumerate(table.index):
            for j, weight in enumerate(table.columns):
                value = float(table.loc[sigma, weight])
                off = abs(value - float(closed.loc[sigma, weight])) > 0.1
                text = f"{value:.2f}".removeprefix("0") if value < 1 else "1"
                text = "0" if value == 0 else text
                text += "" if settled.loc[sigma, weight] else "…"
                ax.text(
                    j, i, f"{text}\n—" if off else text, ha="center", va="center", fontsize=6,
                    linespacing=0.6, color="white" if value < 0.55 else "#111111",
                )  # fmt: skip
        ax.set_xticks(range(len(table.columns)), [f"{w:g}" for w in table.columns])
        ax.set_yticks(range(len(table.index)), [f"{s:g}" for s in table.index])
        ax.tick_params(length=0)
        ax.set_title(f"{titles[penalty]}, w = {wanted:g}")
        if place >= 3:
            ax.set_xlabel("Penalty weight λ")
        if place % 3 == 0:
            ax.set_ylabel("Noise σ")
    assert mesh is not None
    bar = figure.colorbar(mesh, ax=axes, shrink=0.8, aspect=30, pad=0.02)
    bar.set_label("Evaluation gate at the end")
    bar.outline.set_visible(False)
    return figure


def draw_network(frames: Frames, lead: str) -> Figure:
    """Loss, PL ratio and extreme eigenvalues along the training of gates and of LoRA."""
    figure, axes = _figure(
        3,
        3,
        f"{lead} Task loss of a fixed batch of training rows, evaluation mode; (a): one curve for "
        "gates. (b): ‖∇L‖²/2L, a lower estimate of the PL ratio; zero (all gates saturated) is "
        "drawn at the lower edge. (c): solid: largest eigenvalue, dashed: minus the smallest.",
    )
    frame = frames["network"]
    positive = frame[["ratio", "largest"]].to_numpy()
    floor = 0.3 * float(positive[positive > 0].min(initial=1e-3))
    for place, kind in enumerate(KINDS):
        rows = frame[frame["parameters"] == kind]
        look: dict[str, Any] = {
            "color": COLOURS[place],
            "marker": MARKERS[place],
            "ms": 4,
            "lw": 1.2,
        }
        axes[0].plot(rows["step"], rows["loss"], **look)
        axes[1].semilogy(rows["step"], rows["ratio"].clip(lower=floor), **look)
        axes[2].semilogy(rows["step"], rows["largest"].clip(lower=floor), **look)
        axes[2].semilogy(
            rows["step"], (-rows["smallest"]).clip(lower=floor), **{**look, "ls": "--"}
        )
    for ax, title, label in zip(
        axes,
        ("(a) Loss", "(b) PL ratio", "(c) Hessian"),
        ("Task loss", "‖∇L‖² / 2L", "Extreme eigenvalues"),
        strict=True,
    ):
        ax.set_title(title)
        ax.set_xlabel("Training step")
        ax.set_ylabel(label)
        ax.grid(visible=True)
    _legend(figure, [(k, COLOURS[i], MARKERS[i], "-") for i, k in enumerate(KINDS)])
    return figure


FIGURES: dict[str, Callable[[Frames, str], Figure]] = {
    "descent": draw_descent,
    "saddle": draw_saddle,
    "relaxation": draw_relaxation,
    "convergence": draw_convergence,
    "conditioning": draw_conditioning,
    "penalties": draw_penalties,
    "network": draw_network,
}


def _figure(
    panels: int, columns: int, footer: str, *, wide: float = 1.0
) -> tuple[Figure, list[Axes]]:
    """A figure with panels and its explanation below."""
    from matplotlib.figure import Figure

    rows = math.ceil(panels / columns)
    width = columns * PANEL[0] * wide + 0.3
    lines = textwrap.wrap(footer, int(width * 19))
    foot = LINE_HEIGHT * len(lines) + 0.18
    height = rows * PANEL[1] + 0.35 + foot
    figure = Figure(figsize=(width, height), layout="constrained")
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(  # type: ignore[call-arg]
            rect=(0.005, foot / height, 0.99, 1 - foot / height - 0.01), wspace=0.05, hspace=0.06
        )
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(panels)]
    write_footer(figure, lines)
    return figure, axes


def _legend(
    figure: Figure, entries: Sequence[tuple[str, str, str, str]], place: str = "upper"
) -> None:
    """Colours of families or methods: above the panels, or in the free cell at the lower right."""
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
