"""Tables as CSV, Markdown and LaTeX.

Printed cells are formatted from the rounded numbers in the CSV file, so every printed number can be
found there.
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
        header: heading of the column.
        source: key of a row's value, or a function of the row.
        format: converts the value to the printed text.
        text: whether cells are text, aligned left; numbers are aligned right.
    """

    header: str
    source: str | Callable[[Any], Any]
    format: Callable[[Any], str] = str
    text: bool = False

    def cell(self, row: Any) -> str:
        """The printed cell of a row."""
        return self.format(row[self.source] if isinstance(self.source, str) else self.source(row))


@dataclass(frozen=True)
class Table:
    """Numbers and their printed form.

    Attributes:
        name: short name, for the LaTeX label.
        title: title of one line.
        caption: describes the numbers and their origin.
        numbers: content of the CSV file, already rounded; missing numbers are blank.
        columns: printed columns, from left to right.
        rows: rows from which the columns take their values, usually mappings.
        rule_before: indices of rows with a horizontal rule above them.
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
        """Printed column headings."""
        return tuple(column.header for column in self.columns)

    @cached_property
    def cells(self) -> tuple[tuple[str, ...], ...]:
        """Printed rows, each as long as ``header``."""
        return tuple(tuple(column.cell(row) for column in self.columns) for row in self.rows)

    def csv(self) -> str:
        """The numbers as CSV, with empty cells for missing ones."""
        return to_csv(self.numbers)

    def markdown(self) -> str:
        """A heading, a pipe table and the caption."""
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
        r"""A floating table that needs ``\usepackage{booktabs}`` and UTF-8."""
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
    """Writes the three files, each atomically."""
    write_text(csv, table.csv())
    write_text(md, table.markdown())
    write_text(tex, table.latex())


def number(value: float | None, decimals: int = 1) -> str:
    """Formats a number with thousands separators, or a blank for None."""
    return BLANK if value is None else f"{value:,.{decimals}f}"


def decimals(places: int) -> Callable[[float | None], str]:
    """A formatter with a fixed number of decimals, see :func:`number`."""
    return partial(number, decimals=places)


def percent(fraction: float | None, decimals: int = 1) -> str:
    """Formats a fraction in percent, or a blank for None."""
    return number(None if fraction is None else 100 * fraction, decimals)


def to_csv(frame: pd.DataFrame) -> str:
    """A frame as CSV that survives a round trip.

    Numbers are their shortest exact decimals, missing values are empty, and lines end as on Unix:
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
    """Escapes LaTeX's special characters and some that fonts lack."""
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_row(row: Sequence[str]) -> str:
    return " & ".join(escape_latex(cell) for cell in row) + r" \\"


def _pipes(cell: str) -> str:
    return re.sub(r"\s+", " ", cell).replace("|", r"\|")
