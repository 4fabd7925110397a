"""A table of numbers with its printed form, and its files: CSV, Markdown, LaTeX.

The printed cells are made from the rounded numbers that the CSV holds, so every printed number can
be found there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finegates.files import write_text

if TYPE_CHECKING:
    import pandas as pd

BLANK = "–"
"""The printed form of a number that is not there."""


@dataclass(frozen=True)
class Table:
    """Numbers and their printed form.

    Attributes:
        name: short, for the LaTeX label.
        title: one line.
        caption: what the numbers are and where they come from.
        numbers: what the CSV holds, already rounded; blank where there is no number.
        header: printed column heads.
        cells: printed rows, as long as ``header``.
        rule_before: rows that a horizontal rule precedes.
        text: columns of text, set to the left; the others are numbers.
    """

    name: str
    title: str
    caption: str
    numbers: pd.DataFrame
    header: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    rule_before: tuple[int, ...] = ()
    text: tuple[int, ...] = (0,)

    def csv(self) -> str:
        """The numbers; empty cells where there is none."""
        return to_csv(self.numbers)

    def markdown(self) -> str:
        """A heading, the table in pipes, the caption."""
        rows = [tuple(_pipes(cell) for cell in row) for row in (self.header, *self.cells)]
        widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(self.header))]

        def line(row: Sequence[str]) -> str:
            cells = (
                cell.ljust(width) if place in self.text else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            return f"| {' | '.join(cells)} |"

        ruler = line(
            [
                "-" * width if place in self.text else "-" * (width - 1) + ":"
                for place, width in enumerate(widths)
            ]
        )
        lines = [line(rows[0]), ruler, *(line(row) for row in rows[1:])]
        return f"### {self.title}\n\n" + "\n".join(lines) + f"\n\n{self.caption}\n"

    def latex(self) -> str:
        """A floating ``booktabs`` table; needs ``\\usepackage{booktabs}`` and UTF-8."""
        sides = "".join("l" if place in self.text else "r" for place in range(len(self.header)))
        lines = [
            r"\begin{table*}[t]",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{\textbf{{{escape_latex(self.title)}.}} {escape_latex(self.caption)}}}",
            rf"\label{{tab:{self.name}}}",
            rf"\begin{{tabular}}{{@{{}}{sides}@{{}}}}",
            r"\toprule",
            _latex_row(self.header),
            r"\midrule",
        ]
        for place, row in enumerate(self.cells):
            if place in self.rule_before:
                lines.append(r"\midrule")
            lines.append(_latex_row(row))
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table*}"]
        return "\n".join(lines) + "\n"


def write_table(table: Table, csv: str | Path, md: str | Path, tex: str | Path) -> None:
    """Writes the three forms, each whole or not at all."""
    write_text(csv, table.csv())
    write_text(md, table.markdown())
    write_text(tex, table.latex())


def number(value: float | None, decimals: int = 1) -> str:
    """A number as a cell prints it, thousands apart; the blank for None."""
    return BLANK if value is None else f"{value:,.{decimals}f}"


def percent(fraction: float | None, decimals: int = 1) -> str:
    """A fraction as a cell prints it, in per cent; the blank for None."""
    return number(None if fraction is None else 100 * fraction, decimals)


def to_csv(frame: pd.DataFrame) -> str:
    """A frame as CSV: shortest exact decimal of each number, Unix line ends, blanks empty.

    ``to_csv(read_csv(to_csv(frame))) == to_csv(frame)``.
    """
    return frame.to_csv(index=False, lineterminator="\n", na_rep="")


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "σ": r"$\sigma$",
    "λ": r"$\lambda$",
    "ω": r"$\omega$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
}


def escape_latex(text: str) -> str:
    """Text with LaTeX's special characters, and the few others that fonts lack, replaced."""
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_row(row: Sequence[str]) -> str:
    return " & ".join(escape_latex(cell) for cell in row) + r" \\"


def _pipes(cell: str) -> str:
    return re.sub(r"\s+", " ", cell).replace("|", r"\|")
