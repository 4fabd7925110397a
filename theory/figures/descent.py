"""Draws gradient descent on columns and rows, the saddle, and the relaxation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from finegates.suite.figures.style import COLOURS, MARKERS
from theory.figures.parts import FAMILIES, Frames, legend, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_descent(frames: Frames, lead: str) -> Figure:
    """Gaps of gradient descent and their bounds; tightness of the eigenvalue bounds."""
    figure, axes = panels(
        4,
        2,
        f"{lead} First problem of each family. (a)-(c): gradient descent with step 1/Λ, in (c) "
        "projected to [0, 1]; solid: gap over the first one, "
        "dashed: (1 − μ/Λ)^2k, in (c) the bound (1 − μ/Λ)^k. (d): lower bound over the smallest "
        "(non-zero) Hessian eigenvalue, one point a problem; 1 is attained.",
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
    legend(figure, [(family, COLOURS[i], "", "-") for i, family in enumerate(FAMILIES)])
    return figure


def _tightness(ax: Axes, frames: Frames) -> None:
    """Points by family, for Schur's bound and for the bound on ranges."""
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
    """PL ratio on the way into the saddle, and around ω = 1."""
    figure, axes = panels(
        2,
        2,
        f"{lead} (a): a well-conditioned problem, θ = ε(u₁, v₁)/√2; dashed: predicted for ε → 0. "
        "(b): smallest PL ratio that descent finds in the ball of that radius around ω = 1, where "
        "W is nearly right (left of the step it does not contain the minimiser); dashed: "
        "certified; dash-dotted: the least curvature at the minimiser; dotted: the plane of "
        "critical points (0, c) with Sc = 0, and (0, 0).",
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
        shown = rows[rows["distance"] < 0.3]
        ax.loglog(shown["distance"], shown["predicted"], color="#222222", ls="--", lw=0.8, zorder=3)
    ax.set_title("(a) Into the saddle at 0")
    ax.set_xlabel("Distance ε from (0, 0)")
    ax.set_ylabel("‖∇L‖² / 2(L − L*)")
    ax.legend(loc="lower right")
    ax = axes[1]
    ax.semilogx(
        region["radius"], region["measured"], color=COLOURS[0], marker="o", ms=3, lw=1.3,
        label="smallest found",
    )  # fmt: skip
    shown = region[region["radius"] <= 2.01 * region["certified_radius"]]
    ax.semilogx(
        shown["radius"], shown["certified"], color=COLOURS[1], ls="--", lw=1.4, label="certified"
    )
    for column in ("critical_distance", "saddle_distance"):
        ax.axvline(region[column].iloc[0], color="#8A8A8A", ls=":", lw=1)
    ax.axhline(region["transverse"].iloc[0], color="#8A8A8A", ls="-.", lw=1)
    ax.set_ylim(0, None)
    ax.set_title("(b) Around ω = 1")
    ax.set_xlabel("Radius of the ball around ω = 1")
    ax.set_ylabel("‖∇L‖² / 2(L − L*)")
    ax.legend(loc="upper right", bbox_to_anchor=(0.97, 1.0))
    for ax in axes:
        ax.grid(visible=True)
    return figure


def draw_relaxation(frames: Frames, lead: str) -> Figure:
    """Lipschitz constant and bias of the relaxed objective against the noise."""
    lipschitz, bias = frames["lipschitz"], frames["bias"]
    figure, axes = panels(
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
    ax.legend(loc="upper right", bbox_to_anchor=(0.97, 1.0))
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
