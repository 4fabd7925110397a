"""Draws the end of a gate's training, and the measurements on a real network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finegates.suite.figures.style import COLOURS, MARKERS
from theory.figures.parts import Frames, legend, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("gates, before clipping", "gates, as trained", "LoRA")
CLOSING = {
    "added": "added, measured",
    "linear": "first order",
    "gauss_newton": "Gauss–Newton term",
    "bound": "bound by importances",
}
"""Columns of the table of closed gates that are drawn."""


def draw_penalties(frames: Frames, lead: str) -> Figure:
    """Final evaluation gates of trained modules, by penalty, σ and λ."""
    frame = frames["endpoints"]
    titles = {"target": "Target", "hinge": "Hinge", "stg": "P(open), no target"}
    figure, axes = panels(
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
    """Loss, PL ratio and curvature along both trainings, and the loss that closing adds."""
    figure, axes = panels(
        4,
        2,
        f"{lead} Task loss of fixed training rows, evaluation mode; lines: means over seeds, "
        "points: seeds. (a): one curve for gates. (b): ‖∇L‖²/2L, a lower estimate of the PL ratio; "
        "zero (all gates saturated) is drawn at the lower edge. (c): extreme eigenvalues of the "
        "non-zero Gauss–Newton spectrum, dashed: the smallest. (d): the least important open gates "
        "closed after training; absolute values, hollow where negative; lines: their means.",
        wide=1.2,
    )
    frame = frames["network"]
    positive = frame[["ratio", "largest", "smallest"]].to_numpy()
    floor = 0.3 * float(positive[positive > 0].min(initial=1e-3))
    for place, kind in enumerate(KINDS):
        rows = frame[frame["parameters"] == kind]
        for ax, column, dash in (
            (axes[0], "loss", "-"),
            (axes[1], "ratio", "-"),
            (axes[2], "largest", "-"),
            (axes[2], "smallest", "--"),
        ):
            values = rows[column] if column == "loss" else rows[column].clip(lower=floor)
            means = values.groupby(rows["step"]).mean()
            look: dict[str, Any] = {"color": COLOURS[place], "marker": MARKERS[place]}
            ax.plot(rows["step"], values, ls="", ms=2.5, alpha=0.6, **look)
            ax.plot(means.index, means, ls=dash, lw=1.2, color=COLOURS[place])
    for ax in axes[1:3]:
        ax.set_yscale("log")
    closing = frames["closing"]
    for place, (column, name) in enumerate(CLOSING.items()):
        values = closing[column].abs()
        means = values.groupby(closing["share"]).mean()
        look = {"color": COLOURS[place], "marker": MARKERS[place]}
        axes[3].loglog(closing["share"], values, ls="", ms=2.5, alpha=0.6, **look)
        fell = closing[column] < 0
        hollow = {**look, "mfc": "white", "ms": 3, "zorder": 4}
        axes[3].loglog(closing["share"][fell], values[fell], ls="", gid="negative", **hollow)
        axes[3].loglog(means.index, means, lw=1.2, label=name, **{**look, "ms": 3.5})
    axes[3].legend(loc="upper left", fontsize=6.5)
    for ax, title, side, label in zip(
        axes,
        ("(a) Loss", "(b) PL ratio", "(c) Gauss–Newton", "(d) Closing by importance"),
        (*("Training step",) * 3, "Closed share of the open gates"),
        ("Task loss", "‖∇L‖² / 2L", "Extreme eigenvalues", "Change of the loss"),
        strict=True,
    ):
        ax.set_title(title)
        ax.set_xlabel(side)
        ax.set_ylabel(label)
        ax.grid(visible=True)
    legend(figure, [(k, COLOURS[i], MARKERS[i], "-") for i, k in enumerate(KINDS)])
    return figure
