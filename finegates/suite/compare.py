"""Compares two trees of results, such as the published one and a rerun.

    finegates compare results/published/local results/local

Scores are compared by method and task, as means over seeds. Two cells agree if they are equal, or
if their difference is within the intervals of both. These are t intervals over seeds if there are
several, and otherwise the sampling error of the rows. Deterministic counts (parameters) must be
equal. The exit status is 0 if all cells agree, 1 if some differ or are missing, and 2 if a tree
cannot be read.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finegates.suite.config.tasks import task_named
from finegates.suite.stats import mean, sampling_error, summarise

if TYPE_CHECKING:
    import pandas as pd

RUNS = "tables/runs.csv"

EQUAL, AGREES, DIFFERS = "equal", "agrees", "differs"

Z = 1.96
"""Standard errors on either side of a score with one seed."""


class CompareError(ValueError):
    """A tree of results cannot be read. The message names the missing file."""


@dataclass(frozen=True)
class Cell:
    """A quantity of a method on a task, in two trees.

    Attributes:
        method: label of the method.
        task: GLUE's name.
        quantity: a column of ``tables/runs.csv``.
        first: mean over seeds in the first tree, None if it is missing.
        second: mean over seeds in the second tree, None if it is missing.
        margin: largest allowed difference; zero for quantities that must be equal.
        outcome: ``equal``, ``agrees``, ``differs``, or the only tree that has it.
    """

    method: str
    task: str
    quantity: str
    first: float | None
    second: float | None
    margin: float
    outcome: str


EXACT = ("parameters", "encoder_parameters", "gated_parameters", "encoder_macs_dense")


def compare(first: str | Path, second: str | Path) -> list[Cell]:
    """Compares all cells of two trees, in the order of the first one's runs.

    Args:
        first: a results folder, ``results/<tier>`` or ``results/published/<tier>``.
        second: another results folder.

    Raises:
        CompareError: a folder does not have a readable table of runs.
    """
    trees = [_groups(Path(folder)) for folder in (first, second)]
    names = list(dict.fromkeys([*trees[0], *trees[1]]))
    return [
        _cell(name, quantity, *(tree.get(name) for tree in trees))
        for name in names
        for quantity in ("last_score", *EXACT)
    ]


def _groups(folder: Path) -> dict[tuple[str, str], pd.DataFrame]:
    import pandas as pd

    path = folder / RUNS
    if not path.is_file():
        raise CompareError(f"{folder} holds no {RUNS}: name a folder like results/local")
    try:
        runs = pd.read_csv(path)
        return {
            (str(m), str(t)): rows for (m, t), rows in runs.groupby(["method", "task"], sort=False)
        }
    except (KeyError, ValueError) as error:
        raise CompareError(f"{path} is not a table of runs: {error}") from error


def _cell(
    name: tuple[str, str], quantity: str, first: pd.DataFrame | None, second: pd.DataFrame | None
) -> Cell:
    method, task = name
    one, other = (None if rows is None else mean(rows[quantity]) for rows in (first, second))
    margin = math.nan
    if first is None or second is None or one is None or other is None:
        outcome = "only in the first" if second is None else "only in the second"
    else:
        margin = 0.0 if quantity in EXACT else _margin(task, quantity, first, second)
        difference = abs(one - other)
        outcome = EQUAL if difference == 0 else AGREES if difference <= margin else DIFFERS
    return Cell(method, task, quantity, one, other, margin, outcome)


def _margin(task: str, quantity: str, *trees: pd.DataFrame) -> float:
    """The combined uncertainty of both means."""
    squares = 0.0
    for rows in trees:
        found = summarise(rows[quantity])
        if found.interval is not None:
            half = found.interval.half_width
        else:
            count = int(rows["validation_rows"].iloc[0])
            half = Z * sampling_error(found.mean, count, correlation=task_named(task).correlates)
        squares += half**2
    return math.sqrt(squares)


def report(cells: Sequence[Cell]) -> str:
    """The outcome as text: unconfirmed cells, and a count of confirmed ones."""
    lines = []
    for cell in cells:
        if cell.outcome in (EQUAL, AGREES):
            continue
        first, second = ("–" if v is None else f"{v:g}" for v in (cell.first, cell.second))
        margin = f", margin {cell.margin:.2g}" if cell.margin > 0 else ""
        lines.append(
            f"{cell.outcome}: {cell.method} on {cell.task}, {cell.quantity}: "
            f"{first} against {second}{margin}"
        )
    counts = {outcome: 0 for outcome in (EQUAL, AGREES, DIFFERS)}
    for cell in cells:
        counts[cell.outcome] = counts.get(cell.outcome, 0) + 1
    lines.append(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="finegates compare", description="Compare two result trees."
    )
    parser.add_argument("first", type=Path, help="for example results/published/local")
    parser.add_argument("second", type=Path, help="for example results/local")
    chosen = parser.parse_args(arguments)
    try:
        cells = compare(chosen.first, chosen.second)
    except CompareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(cells))
    return 0 if all(cell.outcome in (EQUAL, AGREES) for cell in cells) else 1
