"""The code digest: it changes with what runs, and only with that."""

import pytest

from finegates import provenance


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A little repository: script -> finegates.a -> finegates.b; finegates.c stands alone."""
    package = tmp_path / "finegates"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from finegates.b import f\n")
    (package / "b.py").write_text('def f():\n    """Says one."""\n    return 1\n')
    (package / "c.py").write_text("x = 1\n")
    (tmp_path / "script.py").write_text("def run():\n    from finegates import a\n")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)

    def digest():
        for cached in (provenance._analysed, provenance._module_files):
            cached.cache_clear()
        return provenance.code_digest("script.py")

    return tmp_path, digest


def test_an_edit_to_an_imported_module_changes_the_digest(tree):
    root, digest = tree
    before = digest()
    (root / "finegates" / "b.py").write_text("def f():\n    return 2\n")
    assert digest() != before


def test_comments_docstrings_and_layout_do_not_count(tree):
    root, digest = tree
    before = digest()
    (root / "finegates" / "b.py").write_text(
        '"""About b."""\n\n\ndef f():\n    """Another text."""\n    # why\n    return (1)\n'
    )
    assert digest() == before


def test_an_edit_to_a_module_that_is_not_imported_does_not_count(tree):
    root, digest = tree
    before = digest()
    (root / "finegates" / "c.py").write_text("x = 2\n")
    assert digest() == before


def test_a_missing_file_is_an_error(tree):
    with pytest.raises(FileNotFoundError):
        provenance.code_digest("absent.py")


def test_the_digest_of_a_real_script_covers_the_library_it_uses():
    files = set()
    pending = [provenance.ROOT / "workflow/scripts/finetune.py"]
    while pending:
        path = pending.pop()
        if path not in files:
            files.add(path)
            pending += provenance._analysed(path)[1]
    names = {str(path.relative_to(provenance.ROOT)) for path in files}
    assert {
        "finegates/gates.py",
        "finegates/penalty.py",
        "finegates/compaction/transform.py",
    } <= names
    assert "finegates/tables/glue.py" not in names
