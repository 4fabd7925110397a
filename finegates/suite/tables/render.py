"""A table of numbers with its printed form, and its files: CSV, Markdown, LaTeX.

The printed cells are made from the rounded numbers that the CSV holds, so every printed number can
be found there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finegates.files import write_text

if TYPE_CHECKING:
    import pandas as pd

BLANK = "–"
"""The printed form of a number that is not there."""


@dataclass(frozen=True)
class Column:
    """One printed column.

    Attributes:
        header: its head.
        source: key of a row's value, or a function of the row.
        format: of the value, to what is printed.
        text: whether it is text, set to the left; numbers are set to the right.
    """

    header: str
    source: str | Callable[[Any], Any]
    format: Callable[[Any], str] = str
    text: bool = False

    def cell(self, row: Any) -> str:
        """What is printed of a row."""
        return self.format(row[self.source] if isinstance(self.source, str) else self.source(row))


@dataclass(frozen=True)
class Table:
    """Numbers and their printed form.

    Attributes:
        name: short, for the LaTeX label.
        title: one line.
        caption: what the numbers are and where they come from.
        numbers: what the CSV holds, already rounded; blank where there is no number.
        columns: what is printed of a row, from left to right.
        rows: what the columns take their values from: mappings, as a rule.
        rule_before: rows that a horizontal rule precedes.
    """

    name: str
    title: str
    caption: str
    numbers: pd.DataFrame
    columns: Sequence[Column]
    rows: Sequence[Any]
    rule_before: tuple[int, ...] = ()

    @cached_property
    def header(self) -> tuple[str, ...]:
        """Printed column heads."""
        return tuple(column.header for column in self.columns)

    @cached_property
    def cells(self) -> tuple[tuple[str, ...], ...]:
        """Printed rows, as long as ``header``."""
        return tuple(tuple(column.cell(row) for column in self.columns) for row in self.rows)

    def csv(self) -> str:
        """The numbers; empty cells where there is none."""
        return to_csv(self.numbers)

    def markdown(self) -> str:
        """A heading, the table in pipes, the caption."""
        rows = [tuple(_pipes(cell) for cell in row) for row in (self.header, *self.cells)]
        widths = [max(3, *map(len, cells)) for cells in zip(*rows, strict=True)]
        aligned = list(zip(self.columns, widths, strict=True))

        def line(row: Sequence[str]) -> str:
            cells = (
                cell.ljust(width) if column.text else cell.rjust(width)
                for cell, (column, width) in zip(row, aligned, strict=True)
            )
            return f"| {' | '.join(cells)} |"

        ruler = line(
            ["-" * width if column.text else "-" * (width - 1) + ":" for column, width in aligned]
        )
        lines = [line(rows[0]), ruler, *(line(row) for row in rows[1:])]
        return f"### {self.title}\n\n" + "\n".join(lines) + f"\n\n{self.caption}\n"

    def latex(self) -> str:
        r"""A floating ``booktabs`` table; needs ``\usepackage{booktabs}`` and UTF-8."""
        sides = "".join("l" if column.text else "r" for column in self.columns)
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


def decimals(places: int) -> Callable[[float | None], str]:
    """Prints numbers with so many digits behind the point, see :func:`number`."""
    return partial(number, decimals=places)


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
