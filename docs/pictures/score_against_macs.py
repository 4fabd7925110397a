"""Draws score against MACs kept from the published tables of shared and independent gates.

    python docs/pictures/score_against_macs.py

Writes ``score_against_macs.csv`` with every number of the picture, and ``score_against_macs.svg``,
which has the SHA-256 of that file in a comment.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pandas as pd

from finegates.files import write_text
from finegates.suite.figures.style import COLOURS, save_figure, style

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "results" / "published" / "structured" / "tables"
PICTURE = Path(__file__).with_suffix(".svg")
METHODS = {
    "full": ("Full fine-tuning (constant rate)", "#111111", "D"),
    "reference": ("Independent gates", COLOURS[1], "s"),
    "gates-lora": ("Independent gates + LoRA", COLOURS[1], "P"),
    "structured": ("Shared gates", COLOURS[0], "o"),
    "structured-lora": ("Shared gates + LoRA", COLOURS[0], "^"),
}
"""By label: legend text, colour and marker; markers of LoRA are hollow."""

TASKS = {"sst2": "SST-2 (accuracy)", "mrpc": "MRPC (accuracy, F1)", "qnli": "QNLI (accuracy)"}


def points(published: Path = PUBLISHED) -> pd.DataFrame:
    """The picture's numbers, one row for each task and method.

    Columns: ``task``, ``method``, ``macs_kept`` (percentage of the encoder's MACs, mean over
    seeds), ``score`` (mean over seeds, times 100), ``low`` and ``high`` (its 95 % t interval over
    seeds, times 100), ``seeds``.

    Args:
        published: folder with ``glue.csv`` (scores) and ``runs.csv`` (MACs of each run).
    """
    glue = pd.read_csv(published / "glue.csv").set_index("method")
    runs = pd.read_csv(published / "runs.csv")
    kept = 100 * runs.groupby(["task", "method"])["macs_kept_fraction"].mean()
    rows = [
        {
            "task": task,
            "method": method,
            "macs_kept": round(float(kept[task, method]), 4),
            "score": glue.at[method, task],
            "low": glue.at[method, f"{task}_low"],
            "high": glue.at[method, f"{task}_high"],
            "seeds": int(glue.at[method, f"{task}_seeds"]),
        }
        for task in TASKS
        for method in METHODS
    ]
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame) -> Any:
    """Draws a panel for each task, with intervals as bars and the legend below."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(8.6, 3.1), layout="constrained")
        for place, (task, title) in enumerate(TASKS.items()):
            axes = figure.add_subplot(1, len(TASKS), place + 1)
            axes.grid(visible=True)
            axes.set_title(title)
            axes.set_xlim(25, 105)
            axes.set_xlabel("MACs kept (%)")
            if place == 0:
                axes.set_ylabel("Score (× 100)")
            rows = frame[frame["task"] == task].set_index("method")
            full = rows.loc["full"]
            axes.axhline(full["score"], color="#111111", linewidth=0.8, linestyle=(0, (4, 3)))
            for method, (words, colour, marker) in METHODS.items():
                row = rows.loc[method]
                axes.errorbar(
                    [row["macs_kept"]],
                    [row["score"]],
                    yerr=[[row["score"] - row["low"]], [row["high"] - row["score"]]],
                    fmt=marker,
                    color=colour,
                    markerfacecolor="white" if method.endswith("lora") else colour,
                    markersize=6,
                    elinewidth=1.2,
                    capsize=2.5,
                    label=words if place == 0 else None,
                )
        figure.legend(loc="outside lower center", ncols=len(METHODS), fontsize=7.5, handlelength=1)
    return figure


def csv(frame: pd.DataFrame) -> str:
    """Formats the numbers as they are stored."""
    stream = io.StringIO()
    frame.to_csv(stream, index=False, lineterminator="\n")
    return stream.getvalue()


def main() -> None:
    """Writes both files."""
    frame = points()
    text = csv(frame)
    write_text(PICTURE.with_suffix(".csv"), text)
    save_figure(draw(frame), PICTURE)
    digest = hashlib.sha256(text.encode()).hexdigest()
    drawn = PICTURE.read_text(encoding="utf-8")
    write_text(PICTURE, drawn.replace("<svg ", f"<!-- numbers: sha256 {digest} -->\n<svg ", 1))


if __name__ == "__main__":
    main()
