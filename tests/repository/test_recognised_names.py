"""The page on new architectures lists the names that the search recognises."""

from __future__ import annotations

from finegates.spec_search.candidates import RECOGNISED
from support.paths import ROOT

PAGE = ROOT / "docs" / "add-an-architecture.md"


def test_the_page_lists_the_names_that_the_search_recognises() -> None:
    table = ["| what | names |", "|---|---|"]
    for what, names in RECOGNISED.items():
        table.append(f"| {what} | {', '.join(f'`{name}`' for name in names)} |")
    assert "\n".join(table) in PAGE.read_text()
