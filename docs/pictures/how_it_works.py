"""Draws how gates on rows and columns become smaller matrices: how_it_works.svg.

    python docs/pictures/how_it_works.py

The picture has its own white background, so it is readable on light and dark pages.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

PICTURE = Path(__file__).with_suffix(".svg")

CELL = 15
OPEN, CLOSED, EDGE, INK, MUTED = "#9CC9E8", "#F3F3F3", "#FFFFFF", "#222222", "#666666"
GATE, SHUT = "#0072B2", "#D55E00"

HIDDEN, WIDE = 6, 9
"""Sizes of the drawn feed-forward part: residual stream and intermediate dimensions."""

CLOSED_GROUPS = (2, 5, 6)
CLOSED_INPUT = 4
CLOSED_OUTPUT = 1


class Drawing:
    """Lines of an SVG file."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.lines: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, fill: str, edge: str = EDGE) -> None:
        """A rectangle."""
        self.lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" '
            f'fill="{fill}" stroke="{edge}"/>'
        )

    def path(self, steps: str, colour: str, width: float = 1.4, dashed: bool = False) -> None:
        """A curve without fill."""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.lines.append(
            f'<path d="{steps}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>'
        )

    def words(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12,
        colour: str = INK,
        where: str = "start",
        bold: bool = False,
    ) -> None:
        """A line of text; ``where`` is the SVG attribute ``text-anchor``."""
        weight = ' font-weight="bold"' if bold else ""
        self.lines.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" '
            f'text-anchor="{where}"{weight}>{text}</text>'
        )

    def gate(self, x: float, y: float, shut: bool) -> None:
        """A gate: filled if open, crossed out if closed."""
        size = CELL - 4
        self.box(x + 2, y + 2, size, size, "#FFFFFF" if shut else GATE, SHUT if shut else GATE)
        if shut:
            a, b, c, d = x + 4, y + 4, x + CELL - 4, y + CELL - 4
            self.path(f"M{a:g} {b:g}L{c:g} {d:g}M{a:g} {d:g}L{c:g} {b:g}", SHUT, 1.6)

    def matrix(
        self,
        x: float,
        y: float,
        rows: int,
        columns: int,
        closed_rows: Collection[int] = (),
        closed_columns: Collection[int] = (),
    ) -> None:
        """A matrix of cells, with the cells of closed rows and columns in grey."""
        for row in range(rows):
            for column in range(columns):
                gone = row in closed_rows or column in closed_columns
                fill = CLOSED if gone else OPEN
                edge = "#DADADA" if gone else EDGE
                self.box(x + column * CELL, y + row * CELL, CELL, CELL, fill, edge)

    def text(self) -> str:
        """The content of the file."""
        width, height = self.size
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" '
            'font-family="Helvetica, Arial, sans-serif">\n'
            "<title>Gates on rows and columns, groups that close together, "
            "and the smaller matrices after compaction</title>\n"
            f'<rect width="{width}" height="{height}" rx="8" fill="#FFFFFF" stroke="#D0D0D0"/>\n'
            + "\n".join(self.lines)
            + "\n</svg>\n"
        )


def gates(drawing: Drawing, x: float) -> None:
    """Panel 1: one layer with a gate for each row and each column."""
    closed_rows, closed_columns = (1, 4), (2,)
    drawing.words(x, 30, "1  Gates", 15, bold=True)
    drawing.words(x, 50, "one number for each row and column", 11.5, MUTED)
    left, top = x + 42, 124
    for column in range(HIDDEN):
        drawing.gate(left + column * CELL, top - 22, column in closed_columns)
    for row in range(7):
        drawing.gate(left - 22, top + row * CELL, row in closed_rows)
    drawing.matrix(left, top, 7, HIDDEN, closed_rows, closed_columns)
    drawing.words(left + HIDDEN * CELL + 8, top - 11, "column gates ω_c", 11)
    drawing.words(left - 22, top + 7 * CELL + 18, "row gates ω_r", 11)
    drawing.words(x, 300, "y = ω_r ⊙ (W (ω_c ⊙ x) + b)", 12.5)
    drawing.gate(x, 340, False)
    drawing.words(x + 20, 352, "open", 11.5)
    drawing.gate(x + 64, 340, True)
    drawing.words(x + 84, 352, "closed: multiplies by 0", 11.5)


def groups(drawing: Drawing, x: float) -> None:
    """Panel 2: a feed-forward part whose layers share gates."""
    drawing.words(x, 30, "2  Groups", 15, bold=True)
    drawing.words(x, 50, "what depends on each other shares one gate", 11.5, MUTED)
    up, top = x, 88
    drawing.words(up, top - 10, "up", 12)
    drawing.matrix(up, top, WIDE, HIDDEN, CLOSED_GROUPS, (CLOSED_INPUT,))
    strip = up + HIDDEN * CELL + 10
    for row in range(WIDE):
        drawing.gate(strip, top + row * CELL, row in CLOSED_GROUPS)
    down, low = strip + 60, top + WIDE * CELL + 14
    drawing.words(down - 8, low + 50, "down", 12, where="end")
    for dimension in range(WIDE):
        shut = dimension in CLOSED_GROUPS
        y, to = top + (dimension + 0.5) * CELL, down + (dimension + 0.5) * CELL
        colour = SHUT if shut else "#B9D6EA"
        turn = f"H{to - 8:g}Q{to:g} {y:g} {to:g} {y + 8:g}V{low:g}"
        drawing.path(f"M{strip + CELL + 1:g} {y:g}{turn}", colour)
    drawing.matrix(down, low, HIDDEN, WIDE, (CLOSED_OUTPUT,), CLOSED_GROUPS)
    drawing.words(x, 352, "row i of up and column i of down close together;", 11.5)
    drawing.words(x, 368, "heads, query-key and value dimensions likewise", 11.5)


def compaction(drawing: Drawing, x: float) -> None:
    """Panel 3: the smaller matrices, with the residual stream at its old width around them."""
    drawing.words(x, 30, "3  Compaction", 15, bold=True)
    drawing.words(x, 50, "closed rows and columns are cut out", 11.5, MUTED)
    wide, hidden = WIDE - len(CLOSED_GROUPS), HIDDEN - 1
    top = 130
    for row in range(HIDDEN):
        shut = row == CLOSED_INPUT
        drawing.box(x, top + row * CELL, CELL, CELL, CLOSED if shut else "#CFCFCF")
    drawing.words(x + CELL / 2, top - 10, "x", 12, where="middle")
    drawing.path(f"M{x + 22:g} {top + 45}h18m-5 -4l5 4l-5 4", MUTED)
    drawing.words(x + 31, top + 112, "gather", 11, MUTED, "middle")
    up = x + 48
    drawing.matrix(up, top, wide, hidden)
    drawing.words(up, top - 10, f"up, {wide} × {hidden}", 12)
    drawing.path(f"M{up + hidden * CELL + 6:g} {top + 45}h18m-5 -4l5 4l-5 4", MUTED)
    drawing.words(up + hidden * CELL + 15, top + 34, "φ", 12, MUTED, "middle")
    down = up + hidden * CELL + 32
    drawing.matrix(down, top, hidden, wide)
    drawing.words(down, top - 10, f"down, {hidden} × {wide}", 12)
    end = down + wide * CELL
    drawing.path(f"M{end + 6:g} {top + 45}h18m-5 -4l5 4l-5 4", MUTED)
    drawing.words(end + 15, top + 112, "scatter", 11, MUTED, "middle")
    for row in range(HIDDEN):
        drawing.box(end + 32, top + row * CELL, CELL, CELL, "#CFCFCF")
    drawing.words(end + 32 + CELL / 2, top - 10, "+", 14, where="middle")
    drawing.words(x, 300, "same outputs, up to rounding", 12.5)
    drawing.words(x, 352, "the residual stream keeps its width;", 11.5)
    drawing.words(x, 368, "gates are folded into W and b", 11.5)


def picture() -> str:
    """The SVG file's content."""
    drawing = Drawing(1010, 388)
    gates(drawing, 28)
    groups(drawing, 300)
    compaction(drawing, 660)
    drawing.path("M270 24V364M632 24V364", "#E0E0E0", 1)
    return drawing.text()


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
