"""README.md and theory/README.md quote published files without changes."""

import pytest

from finegates.suite.readme import QUOTING, ROOT, quoted_files, with_quotes


def test_quotes_are_replaced_by_the_files_content(tmp_path):
    (tmp_path / "t.md").write_text("| a |\n")
    text = "x\n<!-- begin t.md -->\nold\n<!-- end t.md -->\ny\n"
    assert with_quotes(text, tmp_path) == "x\n<!-- begin t.md -->\n| a |\n<!-- end t.md -->\ny\n"


@pytest.mark.parametrize("name", QUOTING)
def test_the_readme_quotes_the_published_tables_as_they_are(name):
    text = (ROOT / name).read_text()
    assert quoted_files(text)
    assert with_quotes(text, ROOT) == text, "run: finegates quote"
