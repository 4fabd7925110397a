"""Shows pages of the repository as pages of the site.

``README.md`` is the site's first page, and ``theory/README.md`` is the page of the theory. Their
text replaces the comment ``<!-- text of PATH -->`` in a page of the site. A link to a file of the
repository becomes a link to the page that shows it, or plain text if there is none.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from published_results import styled

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
PUBLISHED = ROOT / "results" / "published"
PAGES = {"README.md": "index.md", "theory/README.md": "theory.md"}
"""Files of the repository, and the pages of the site that contain their text."""

_QUOTE = re.compile(r"(<!-- begin \S*?(\w+)\.md -->\n)(.*?)(\n<!-- end \S+ -->)", re.DOTALL)
_TEXT = re.compile(r"<!-- text of (\S+) -->")
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(
    r"(?P<image>!?)\[(?P<words>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)"
)


def page_text(source: str, page: Path) -> str:
    """The text that Sphinx reads for a page.

    Args:
        source: the page's own text.
        page: its path.
    """
    named = _TEXT.search(source)
    if named is None:
        return with_links(source, page.parent, page)
    origin = ROOT / named[1]
    text = with_links(origin.read_text(encoding="utf-8"), origin.parent, page)
    text = _QUOTE.sub(lambda quote: quote[1] + styled(quote[3], quote[2]) + quote[4], text)
    return source.replace(named[0], text)


def with_links(text: str, folder: Path, page: Path) -> str:
    """Rewrites every link for the page that shows the text.

    Args:
        text: Markdown with links relative to ``folder``.
        folder: the folder of the text.
        page: the page of the site that shows it.
    """

    def link(match: re.Match[str]) -> str:
        target = match["target"]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = Path(os.path.normpath(folder / target))
        if match["image"]:
            return f"![{match['words']}]({os.path.relpath(path, page.parent)})"
        found = site_page(path)
        if found is None:
            words = match["words"]
            return words if words.startswith("`") else f"{words} (`{path.relative_to(ROOT)}`)"
        return f"[{match['words']}]({os.path.relpath(found, page.parent)}{match['anchor'] or ''})"

    fences = list(_FENCE.finditer(text))
    inside = {place for fence in fences for place in range(fence.start(), fence.end())}
    return _LINK.sub(lambda match: match[0] if match.start() in inside else link(match), text)


def site_page(path: Path) -> Path | None:
    """The page of the site that shows a file or folder of the repository, or None."""
    name = path.relative_to(ROOT).as_posix()
    if name in PAGES:
        return DOCS / PAGES[name]
    if path.is_relative_to(PUBLISHED):
        shown = DOCS / "published" / path.relative_to(PUBLISHED)
        if path.is_dir():
            # The page of a tier shows its folders of tables.
            tier = path.relative_to(PUBLISHED).parts[:1]
            shown = DOCS.joinpath("published", *tier, "index.md")
        return shown if shown.is_file() else None
    if path.is_relative_to(DOCS) and path.suffix == ".md":
        return path
    return None


def _read(app: Any, document: str, source: list[str]) -> None:
    page = DOCS / f"{document}.md"
    if page.is_file() and not document.startswith(("published/", "modules/")):
        source[0] = page_text(source[0], page)


def setup(app: Any) -> dict[str, bool]:
    """Connects the extension to Sphinx."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
