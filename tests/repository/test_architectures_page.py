"""The table of supported types follows from the descriptions."""

from __future__ import annotations

import architectures

from support.described_types import CONFIGURATIONS


def test_the_page_has_the_table_that_the_descriptions_give() -> None:
    assert architectures.table() in architectures.PAGE.read_text()


def test_every_type_of_the_conformance_suite_is_in_it() -> None:
    table = architectures.table()
    for name in CONFIGURATIONS:
        assert f"`{name.partition('/')[0]}`" in table
