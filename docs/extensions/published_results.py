"""Makes pages of the published results: tables with captions, figures and reports.

The site build makes the pages from ``results/published`` and stores them nowhere else. It copies
the files themselves (CSV, LaTeX, run records) next to the pages that link to them. It rebuilds each
tier's report from its published records and tables.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
PUBLISHED = ROOT / "results" / "published"
PAGES = DOCS / "published"
REPORT = "report.html"

GROUPS = (
    ("Scores", ("tables",)),
    ("Studies", ("studies",)),
    ("Time", ("timing",)),
    ("Llama", ("llama/tables", "llama/timing")),
    ("Theory", ("theory",)),
    ("Figures", ("figures", "llama/figures", "theory/figures")),
)
"""Headings of a tier's page, with the folders whose pages each lists."""

TITLES = {
    "cost": "What the jobs cost",
    "step": "Time of a training step",
    "training": "Time of whole training runs",
    "checks": "Checks of the theory",
    "fuzz": "Wrong files",
}
"""Titles of published texts without a heading, by file name."""

_TITLE = re.compile(r"\A#+ (.+)\n")
_HEADING = re.compile(r"^#{2,6} ", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Page:
    """A page of the site: its path, its title, and the Markdown below the title."""

    path: Path
    title: str
    body: str

    def write(self) -> None:
        """Writes the page."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(f"# {self.title}\n\n{self.body.strip()}\n", encoding="utf-8")


_STATEMENTS = ("claims", "claims_evidence", "checks", "faults")
"""File names of texts whose tables contain sentences; their cells are wrapped."""


def tiers() -> list[Path]:
    """The published folders with both run records and tables, sorted.

    An unfinished tier has records only.
    """
    return sorted(
        folder
        for folder in PUBLISHED.iterdir()
        if (folder / "runs").is_dir() and (folder / "tables").is_dir()
    )


def pages(published: Path, target: Path) -> list[Page]:
    """Makes a page for every published Markdown file and for every folder that has only figures.

    Args:
        published: ``results/published``.
        target: folder of the pages.
    """
    found = [_text_page(path, published, target) for path in sorted(published.rglob("*.md"))]
    shown = {path.with_suffix("") for path in published.rglob("*.md")}
    alone: dict[Path, list[Path]] = {}
    for figure in sorted(published.rglob("*.svg")):
        if figure.with_suffix("") not in shown:
            folder = figure.parent if figure.parent.name == "figures" else figure.parent.parent
            alone.setdefault(folder, []).append(figure)
    for folder, figures in alone.items():
        path = target / folder.relative_to(published).with_suffix(".md")
        title = "Figures" if folder.parent.parent == published else f"Figures: {folder.parent.name}"
        body = "\n\n".join(f"## {_words(f.stem)}\n\n{_figure(f, path)}" for f in figures)
        found.append(Page(path, title, body))
    return found


def _text_page(path: Path, published: Path, target: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    place = target / path.relative_to(published)
    match = _TITLE.match(text)
    title = match[1] if match else TITLES.get(path.stem, _words(path.stem))
    body = _HEADING.sub("## ", text[match.end() :] if match else text)
    # Links in a tier's text are relative to the tier's folder.
    tier = published / path.relative_to(published).parts[0]
    body = _LINK.sub(lambda m: _file_link(m[1], tier / m[2], place, published, target), body)
    parts = [styled(body, path.stem)]
    if path.with_suffix(".svg").is_file():
        parts.append(_figure(path.with_suffix(".svg"), place))
    files = [f for f in (path.with_suffix(s) for s in (".csv", ".tex", ".pdf")) if f.is_file()]
    if files:
        links = ", ".join(_file_link(f"`{f.name}`", f, place, published, target) for f in files)
        parts.append(f"The same as files: {links}.")
    return Page(place, title, "\n\n".join(parts))


def styled(body: str, name: str) -> str:
    """Puts the tables and captions of a published text in containers for the style sheet.

    Args:
        body: Markdown.
        name: of the published file, without suffix.
    """
    kind = "statements" if name in _STATEMENTS else "numbers"
    chunks, after_table = [], False
    for chunk in re.split(r"\n{2,}", body.strip()):
        is_table = chunk.startswith("|")
        classes = kind if is_table else "caption" if after_table and chunk[0] != "#" else None
        chunks.append(f":::{{container}} {classes}\n{chunk}\n:::" if classes else chunk)
        after_table = is_table or (after_table and classes is not None)
    return "\n\n".join(chunks)


def _file_link(words: str, file: Path, page: Path, published: Path, target: Path) -> str:
    """A link to a copied file; plain code if the target is a folder or a pattern."""
    if not file.is_file():
        return f"`{words.strip('`')}`"
    to = os.path.relpath(target / file.relative_to(published), page.parent)
    return f'<a href="{to}">{words.strip("`")}</a>'


def _figure(figure: Path, page: Path) -> str:
    return f"![{_words(figure.stem)}]({os.path.relpath(figure, page.parent)})"


def _words(name: str) -> str:
    words = name.replace("_", " ").replace("-", " ")
    return words[:1].upper() + words[1:]


def tier_page(tier: Path, target: Path, found: Iterable[Page]) -> Page:
    """The page of a published tier: its report, its claims, and all of its other pages."""
    folder = target / tier.name
    of_tier = f" (tier {tier.name})"
    by_place = {
        page.path.relative_to(folder).with_suffix("").as_posix(): page.title.removesuffix(of_tier)
        for page in found
    }
    runs = len(list((tier / "runs").rglob("seed*.json")))
    lines = [
        f'<a href="{REPORT}">The report</a> is one page with the verdict on every claim, all '
        f"tables and figures, and links to the {runs} run records.",
        _toctree("Claims", [n for n in ("claims", "claims_evidence") if n in by_place], by_place),
    ]
    left = set(by_place) - {"claims", "claims_evidence"}
    for heading, folders in GROUPS:
        names = sorted(n for n in left if n in folders or n.rpartition("/")[0] in folders)
        left -= set(names)
        lines.append(_toctree(heading, names, by_place))
    lines.append(_toctree("Others", sorted(left), by_place))
    return Page(folder / "index.md", f"Tier {tier.name}", "\n\n".join(filter(None, lines)))


def _toctree(heading: str, names: list[str], titles: dict[str, str]) -> str:
    if not names:
        return ""
    listed = "\n".join(f"{titles[name]} <{name}>" for name in names)
    return f"## {heading}\n\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```"


def write_pages(published: Path = PUBLISHED, target: Path = PAGES) -> list[Page]:
    """Writes all pages and returns them, the tiers' own pages last."""
    shutil.rmtree(target, ignore_errors=True)
    found = pages(published, target)
    for tier in tiers():
        own = [page for page in found if page.path.is_relative_to(target / tier.name)]
        found.append(tier_page(tier, target, own))
    for page in found:
        page.write()
    return found


def write_report(tier: Path, path: Path) -> None:
    """Builds a tier's report from its published records and tables, with current names.

    Args:
        tier: the published folder.
        path: the HTML file to write.
    """
    from finegates.suite.claims import Evidence, audit, load_ledger
    from finegates.suite.config.load import CONFIG, load_tier
    from finegates.suite.report import build_report
    from finegates.suite.runs.record import read_records
    from finegates.suite.tables.wording import reworded, words_of

    configuration = load_tier(CONFIG / f"{tier.name}.yaml")
    runs = tier / "runs"
    main = [
        runs / task / method / f"seed{seed}.json"
        for task in configuration.tasks
        for method in configuration.methods
        for seed in configuration.seeds
    ]
    main = [record for record in main if record.is_file()]
    studied = sorted(set(runs.rglob("seed*.json")) - set(main))
    words = words_of(configuration, configuration.all_methods)
    results = audit(load_ledger(CONFIG / "claims.yaml"), Evidence(tier))
    records = reworded(read_records(main), words)
    page = build_report(tier, records, results, reworded(read_records(studied), words))
    path.write_text(page, encoding="utf-8")


def _copy(app: Any, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    target = Path(app.outdir) / PAGES.name
    shutil.copytree(PUBLISHED, target, dirs_exist_ok=True)
    for tier in tiers():
        write_report(tier, target / tier.name / REPORT)


def setup(app: Any) -> dict[str, bool]:
    """Connects the extension to Sphinx."""
    app.connect("builder-inited", lambda app: write_pages())
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
