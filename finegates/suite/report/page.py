"""Builds the page from a tier's tables, figures, verdicts and runs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finegates.suite.claims import ClaimResult, shown
from finegates.suite.report.summary import summary_lines, synthetic
from finegates.suite.runs.record import Record
from finegates.suite.runs.run_record import DIGEST_DIGITS


class ReportError(ValueError):
    """A report cannot be made. The message names the missing parts."""


SECTIONS = (
    ("Scores", "tables", ("glue", "glue_best_epoch", "sparsity", "detectable")),
    ("Studies", "studies", ()),
    ("Time", "timing", ("inference", "deployed", "properties", "training", "cost")),
    ("LLaMA", "llama", ()),
    ("Theory", "theory", ()),
)
"""Title, folder of the tier, and the order of its files; others follow by name."""


@dataclass(frozen=True)
class Part:
    """A table or a figure of a section. ``html`` is generated and trusted."""

    name: str
    path: str
    html: str


@dataclass(frozen=True)
class Section:
    """A heading and its content."""

    title: str
    anchor: str
    parts: tuple[Part, ...]


def build_report(
    folder: str | Path,
    records: Sequence[Record],
    results: Sequence[ClaimResult],
    studied: Sequence[Record] = (),
) -> str:
    """The page of a tier.

    Args:
        folder: ``results/<tier>`` with Markdown tables and SVG figures.
        records: records of all runs of the main table.
        results: results of :func:`finegates.suite.claims.audit`.
        studied: records of the studies' runs; records of the main table are not repeated.

    Returns:
        a self-contained HTML page that links only to files below ``folder``.

    Raises:
        ReportError: there are no records.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if not records:
        raise ReportError("a report needs at least one run record")
    folder = Path(folder)
    environment = Environment(
        loader=PackageLoader("finegates.suite.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first = records[0]
    return environment.get_template("page.html.j2").render(
        tier=first.tier,
        summary=summary_lines(records, results),
        results=results,
        sections=[s for s in (_section(folder, *spec) for spec in SECTIONS) if s.parts],
        runs=[_run(record) for record in _distinct([*records, *studied])],
        environment=_environment(records),
        shown=_in_parentheses if synthetic(records) else shown,
        number=_number,
        links=_links,
    )


def _in_parentheses(result: ClaimResult) -> str:
    """A verdict in parentheses, for a tier with generated models and data."""
    return f"({result.verdict})"


def _distinct(records: Sequence[Record]) -> list[Record]:
    return list({(r.task, r.method, r.seed): r for r in records}.values())


def _section(folder: Path, title: str, name: str, order: Sequence[str]) -> Section:
    rank = {stem: place for place, stem in enumerate(order)}
    tables = sorted(
        (folder / name).glob("*.md"), key=lambda path: (rank.get(path.stem, len(rank)), path.stem)
    )
    figures = sorted((folder / name).rglob("*.svg"))
    if name == "tables":
        figures = sorted((folder / "figures").rglob("*.svg"))
    parts = [
        *(_table(folder, path) for path in tables),
        *(_figure(folder, path) for path in figures),
    ]
    return Section(title, title.lower(), tuple(parts))


def _table(folder: Path, path: Path) -> Part:
    from markdown_it import MarkdownIt

    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = renderer.parse(path.read_text(encoding="utf-8"))
    for token in tokens:
        if token.type == "th_open":
            token.attrSet("scope", "col")
    html = renderer.renderer.render(tokens, renderer.options, {})
    # Wide tables scroll sideways, so they must be reachable by keyboard.
    place = path.relative_to(folder).as_posix()
    opening = f'<div class="wide" tabindex="0" role="region" aria-label="{place}">'
    return Part(path.stem, place, f"{opening}{html}</div>")


def _figure(folder: Path, path: Path) -> Part:
    place = path.relative_to(folder).as_posix()
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    label = path.stem.replace("_", " ")
    image = (
        f'<figure><img src="data:image/svg+xml;base64,{content}" alt="Figure: {label}; its numbers '
        f'are in the table with the file {place}">'
        f'<figcaption><a href="{place}">{place}</a></figcaption></figure>'
    )
    return Part(path.stem, place, image)


def _run(record: Record) -> dict[str, Any]:
    macs = record.budget.macs
    return {
        "task": record.task,
        "method": record.method,
        "title": record.config.title,
        "seed": record.seed,
        "last": record.last.score,
        "best": record.best.score,
        "realised": 100 * record.realised_sparsity,
        "macs": 100 * macs.kept / macs.dense,
        "trainable": record.budget.parameters.trainable,
        "minutes": record.timing["wall_s"] / 60,
        "commit": record.code.short_commit,
        "dirty": bool(record.code.dirty),
        "path": f"runs/{record.task}/{record.method}/seed{record.seed}.json",
    }


def _environment(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Facts about the runs' environment, with all values if runs differ."""

    def values(read: Any) -> str:
        return "; ".join(dict.fromkeys(str(read(record)) for record in records))

    names = sorted({name for record in records for name in record.versions})
    return [
        ("Model", values(lambda r: f"{r.model.name} {(r.model.sha256 or '')[:DIGEST_DIGITS]}")),
        ("Data", values(lambda r: f"{r.data.name} ({r.data.source})")),
        ("CPU", values(lambda r: r.hardware.cpu)),
        ("GPU", values(lambda r: r.hardware.gpu or "none")),
        ("Threads", values(lambda r: r.hardware.threads)),
        ("Commits", values(lambda r: r.code.short_commit)),
        *((name, values(lambda r, n=name: r.versions.get(n, "–"))) for name in names),
    ]


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _links(files: Sequence[str]) -> list[tuple[str, str]]:
    """Evidence files with their links. A pattern of several files links to its folder."""
    return [(name, name.split("*")[0]) for name in files]
