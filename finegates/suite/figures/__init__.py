"""Figures: trade-offs, gate values, inference times, studies.

A figure is drawn only from a frame, which is written as CSV next to it. With the same version of
Matplotlib, the same frame gives the same bytes of SVG, PDF and PNG.
"""

from finegates.suite.figures.gates import draw_gate_histograms, gate_histogram_frame
from finegates.suite.figures.study import draw_study
from finegates.suite.figures.style import save_figure
from finegates.suite.figures.timing import draw_inference
from finegates.suite.figures.tradeoff import draw_tradeoff, tradeoff_frame

__all__ = [
    "draw_gate_histograms",
    "draw_inference",
    "draw_study",
    "draw_tradeoff",
    "gate_histogram_frame",
    "save_figure",
    "tradeoff_frame",
]
