"""Draws the figures of the theory, measured against predicted, from its tables alone.

The style is that of ``finegates.suite.figures``. Colours and markers distinguish families or
methods. Solid lines are measured, dashed lines are predictions or bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from finegates.suite.figures.style import style
from theory.figures.beyond import draw_beyond
from theory.figures.conditioning import draw_conditioning
from theory.figures.convergence import draw_convergence
from theory.figures.descent import draw_descent, draw_relaxation, draw_saddle
from theory.figures.flatness import draw_flatness
from theory.figures.gates import KINDS, draw_network, draw_penalties
from theory.figures.minima import draw_minima
from theory.figures.parts import Frames

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "KINDS", "draw"]


def draw(name: str, frames: Frames, lead: str, network: str) -> Figure:
    """Draws one figure.

    Args:
        name: a key of ``FIGURES``.
        frames: tables by name, from ``theory.study.figure_frames``, and ``network``.
        lead: first sentence of the explanation: which tier.
        network: encoder and task, for the figure about them.

    Raises:
        ValueError: unknown name.
        KeyError: a table is missing.
    """
    if name not in FIGURES:
        raise ValueError(f"unknown figure {name!r}; known: {', '.join(FIGURES)}")
    with style():
        if name == "network":
            return draw_network(frames, f"{lead} {network}.")
        return FIGURES[name](frames, lead)


FIGURES: dict[str, Callable[[Frames, str], Figure]] = {
    "descent": draw_descent,
    "saddle": draw_saddle,
    "relaxation": draw_relaxation,
    "convergence": draw_convergence,
    "conditioning": draw_conditioning,
    "penalties": draw_penalties,
    "flatness": draw_flatness,
    "minima": draw_minima,
    "beyond": draw_beyond,
    "network": draw_network,
}
