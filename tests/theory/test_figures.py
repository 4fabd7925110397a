"""Every figure of the theory can be drawn from its tables, with the same bytes each time."""

from __future__ import annotations

import pandas as pd
import pytest

from finegates.suite.figures import save_figure
from theory.checks.settings import Settings
from theory.figures import FIGURES, KINDS, draw
from theory.figures.gates import CLOSING
from theory.study import figure_frames, run_checks

TINY = Settings(problems=1, trials=3, limit=20, runs=8, steps=1000, samples=1000, gate_steps=10)
DRAWN = [
    "columns-descent", "rows-descent", "box-descent-gap", "columns-schur", "columns-schur-singular",
    "joint-path", "joint-local", "relaxation-lipschitz", "relaxation-bias", "sgd-linear",
    "sgd-ball", "sgd-decaying", "sgd-stationary", "conditioning-claim", "speed-claim",
    "reach-claim", "penalty-endpoint", "flat-directions", "flat-width",
    "spurious-minima", "spurious-claim",
    "escape-time", "reach-dense", "escape-saddle", "escape-plateau",
]  # fmt: skip


@pytest.fixture(scope="module")
def frames() -> dict[str, pd.DataFrame]:
    """The tables behind all figures."""
    network = pd.DataFrame(
        [
            {"parameters": kind, "seed": seed, "step": step, "loss": 0.5, "ratio": ratio,
             "largest": ratio, "smallest": ratio / 2}
            for kind in KINDS
            for seed in (0, 1)
            for step, ratio in ((0, 0.0), (10, 0.2))
        ]
    )  # fmt: skip
    closing = pd.DataFrame(
        [
            {"seed": seed, "share": share, **dict.fromkeys(CLOSING, share + 0.1 * seed)}
            for seed in (0, 1)
            for share in (0.1, 0.3)
        ]
    )
    drawn = figure_frames(run_checks(TINY, DRAWN))
    return {**drawn, "network": network, "closing": closing}


@pytest.mark.parametrize("name", FIGURES)
def test_every_axis_of_a_figure_is_labelled(frames, name):
    figure = draw(name, frames, "Tier x.", "a network")
    panels = [ax for ax in figure.axes if ax.axison and ax.get_title(loc="left")]
    assert len(panels) >= 2
    if name not in ("penalties", "conditioning"):  # there panels share the labels of their axes
        assert all(ax.get_ylabel() for ax in panels)


def test_closing_that_lowers_the_loss_is_drawn_hollow(frames):
    def hollow(closing: pd.DataFrame) -> int:
        figure = draw("network", {**frames, "closing": closing}, "Tier x.", "a network")
        lines = [line for ax in figure.axes for line in ax.lines if line.get_gid() == "negative"]
        return sum(len(line.get_xdata()) for line in lines)

    closing = frames["closing"]
    assert hollow(closing) == 0
    assert hollow(closing.assign(added=[-0.1, 0.2, 0.3, -0.4])) == 2


def test_the_same_tables_give_the_same_bytes(frames, tmp_path):
    paths = [tmp_path / name for name in ("first.svg", "second.svg")]
    for path in paths:
        save_figure(draw("saddle", frames, "Tier x.", ""), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_an_unknown_figure_is_refused(frames):
    with pytest.raises(ValueError, match="unknown figure 'x'; known: descent"):
        draw("x", frames, "", "")
