"""The code digest changes if and only if executed code changes."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from finegates.suite.jobs import provenance


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A small repository: script -> finegates.a -> finegates.b; nothing imports finegates.c."""
    package = tmp_path / "finegates"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from finegates.b import f\n")
    (package / "b.py").write_text('def f():\n    """Says one."""\n    return 1\n')
    (package / "c.py").write_text("x = 1\n")
    (tmp_path / "script.py").write_text("def run():\n    from finegates import a\n")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)

    def digest():
        for cached in ("_analysed", "_module_files", "_lazy_files", "_remembered"):
            getattr(provenance, cached).cache_clear()
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


def test_docstrings_of_attributes_do_not_count_and_their_values_do(tree):
    root, digest = tree
    module = root / "finegates" / "b.py"
    seen = []
    for rate, text in ((1, "The rate."), (1, "Said in other words."), (2, "The rate.")):
        module.write_text(
            f'RATE = {rate}\n"""{text}"""\n\n\nclass C:\n    x: int\n    """{text}"""\n'
        )
        seen.append(digest())
    assert seen[0] == seen[1] != seen[2]


def test_an_edit_to_a_module_that_is_not_imported_does_not_count(tree):
    root, digest = tree
    before = digest()
    (root / "finegates" / "c.py").write_text("x = 2\n")
    assert digest() == before


TYPED = """
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finegates.c import x as x


def __getattr__(name):
    ...
"""


def test_what_is_imported_for_type_checkers_does_not_count(tree):
    root, digest = tree
    (root / "finegates" / "__init__.py").write_text(TYPED)
    before = digest()
    (root / "finegates" / "c.py").write_text("x = 2\n")
    assert digest() == before
    (root / "finegates" / "__init__.py").write_text(TYPED.replace("x as x", "x as x, y as y"))
    assert digest() == before


@pytest.mark.parametrize("use", ["from finegates import x", "import finegates"])
def test_what_a_package_loads_on_first_use_counts_where_it_is_used(tree, use):
    root, digest = tree
    (root / "finegates" / "__init__.py").write_text(TYPED)
    (root / "finegates" / "b.py").write_text(f"{use}\n")
    before = digest()
    (root / "finegates" / "c.py").write_text("x = 2\n")
    assert digest() != before


def test_a_file_is_parsed_once_by_all_processes_together(tree, monkeypatch):
    root, digest = tree
    before = digest()
    (root / "finegates" / "c.py").write_text("x = 3\n")
    with monkeypatch.context() as patch:
        patch.setattr(provenance.ast, "parse", None)
        assert digest() == before
    (root / "finegates" / "b.py").write_text("def f():\n    return 2\n")
    changed = digest()
    assert changed != before
    (root / provenance.MEMORY).unlink()
    assert digest() == changed, "what is kept changes nothing"


def test_a_module_that_appears_is_seen_though_its_importer_is_known(tree):
    root, digest = tree
    (root / "finegates" / "a.py").write_text("from finegates import b, d\n")
    before = digest()
    (root / "finegates" / "d.py").write_text("x = 1\n")
    assert digest() != before


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 1}', '{"a": ["xyz", []]}', "null"])
def test_damaged_findings_are_found_again(tree, damage):
    root, digest = tree
    before = digest()
    (root / provenance.MEMORY).write_text(damage)
    assert digest() == before
    assert json.loads((root / provenance.MEMORY).read_text())


def test_findings_that_cannot_be_kept_are_done_without(tree, monkeypatch):
    root, digest = tree
    before = digest()
    (root / provenance.MEMORY).unlink()
    (root / provenance.MEMORY).mkdir()
    assert digest() == before


def test_findings_do_not_pile_up(tree, monkeypatch):
    root, digest = tree
    monkeypatch.setattr(provenance, "_MOST", 4)
    digest()
    (root / "finegates" / "b.py").write_text("def f():\n    return 2\n")
    digest()
    assert len(json.loads((root / provenance.MEMORY).read_text())) == 4


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
        "finegates/gates/gate.py",
        "finegates/gates/penalty.py",
        "finegates/compaction/transform.py",
    } <= names
    assert "finegates/suite/tables/glue.py" not in names
    assert "finegates/formats/onnx.py" not in names, "the package loads it on first use"


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", sorted((provenance.ROOT / "workflow" / "scripts").glob("*.py")), ids=lambda p: p.stem
)
def test_the_digest_of_a_script_covers_every_module_that_its_imports_load(script):
    imports = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    told = (
        "import json, sys; print(json.dumps([m.__file__ for m in [*sys.modules.values()] if "
        "(m.__name__ or '').partition('.')[0] in ('finegates', 'theory')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*imports, told])],
        cwd=provenance.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    covered, pending = set(), [script]
    while pending:
        path = pending.pop()
        if path not in covered:
            covered.add(path)
            pending += provenance._analysed(path)[1]
    assert {Path(file) for file in json.loads(done.stdout.splitlines()[-1])} <= covered
