"""Runs the Python blocks of a page as a reader would: in order, in one namespace."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
"""A code fence: language and content. Matching them in order distinguishes a fence's end from the
start of the next.
"""

_NUMBER = re.compile(r"\d[\d,.]*")


class PageError(AssertionError):
    """A block fails, or prints something other than the page shows."""


@dataclass(frozen=True)
class Example:
    """A Python block, with the output that the page shows directly below it, or None."""

    code: str
    output: str | None


def fences(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of every code fence of a page, in order."""
    for match in FENCE.finditer(text):
        yield match[1].strip(), match[2]


def examples(text: str) -> list[Example]:
    """The Python blocks of a page.

    A fence of the language ``text`` directly after a block is its output.
    """
    found: list[Example] = []
    end = -1
    for match in FENCE.finditer(text):
        language = match[1].strip()
        if language == "python":
            found.append(Example(match[2], None))
        elif language == "text" and found and not text[end : match.start()].strip():
            found[-1] = Example(found[-1].code, match[2])
        end = match.end()
    return found


def run(text: str, namespace: dict[str, Any] | None = None, *, measured: bool = False) -> Any:
    """Runs a page.

    Args:
        text: of the page.
        namespace: names that the first block may use.
        measured: the numbers in shown outputs are from another model or machine, so only the words
            are compared.

    Returns:
        the namespace after the last block, with the output of all blocks under ``printed``.

    Raises:
        PageError: a block raises, or prints something other than the page shows.
    """
    namespace = {"__name__": "page", **(namespace or {})}
    everything = ""
    for place, example in enumerate(examples(text), 1):
        stream = io.StringIO()
        try:
            with contextlib.redirect_stdout(stream):
                exec(compile(example.code, f"<block {place}>", "exec"), namespace)
        except Exception as error:
            raise PageError(f"block {place} raises {type(error).__name__}: {error}") from error
        everything += stream.getvalue()
        missing = not_printed(example.output or "", stream.getvalue(), measured)
        if missing is not None:
            raise PageError(f"block {place} does not print {missing!r}:\n{stream.getvalue()}")
    return {**namespace, "printed": everything}


def not_printed(shown: str, printed: str, measured: bool) -> str | None:
    """The first line that a page shows and that the block did not print in this order.

    A line ``...`` matches any number of lines. Without it, the block must print exactly these
    lines.
    """

    def lines(text: str) -> list[str]:
        found = [line.rstrip() for line in text.splitlines() if line.strip()]
        return [_NUMBER.sub("#", line) for line in found] if measured else found

    wanted, found = lines(shown), lines(printed)
    rest = list(found)
    for line in wanted:
        if line == "...":
            continue
        if line not in rest:
            return line
        rest = rest[rest.index(line) + 1 :]
    extra = [line for line in found if line not in wanted]
    if wanted and extra and "..." not in wanted:
        return f"only that, but also {extra[0]}"
    return None
