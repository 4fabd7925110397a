"""House style: avoided words, and short summaries of the public API."""

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import finegates
from support.paths import ROOT

# The style's replacements: next to, instead of, again, is stored or appears, is not a.
AVOIDED = re.compile(
    r"\b(beside|besides|in place of|anew|whatever|whoever|stands?|stood|lies|lying"
    r"|(?<!there )(?:is|are) no(?! longer\b| more\b))\b",
    re.IGNORECASE,
)

FOLDERS = ("finegates", "theory", "tests", "workflow", "config", "docs", "examples", "profiles")
PROSE = {".md", ".rst", ".smk", ".yaml"}

# Allowed occurrences by file: the word, and the reason.
ALLOWED = {
    "config/claims.yaml": {"beside": "a key of the ledger, which published tables carry"},
    "finegates/suite/claims/ledger.py": {"beside": "the same key"},
    "finegates/suite/claims/report.py": {"beside": "the same key"},
    "tests/suite/claims/test_claims.py": {"beside": "the same key"},
    "config/rehearsal.yaml": {"stand": "a stand-in is the name of a replacement"},
    "theory/README.md": {"lies": "a value lies between two others"},
    "theory/bilinear.py": {"lies": "a point lies in a ball"},
    "theory/checks/single.py": {"lies": "a value lies between two others"},
    "theory/checks/smoothing.py": {"lies": "an optimum lies above another"},
    "theory/checks/sparsity.py": {"lies": "a value lies between two others"},
    "tests/repository/test_language.py": {"": "it names the words"},
}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of prose with their numbers: of Python files, only comments and strings."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(content.split("\n"), 1)
        return
    # From Python 3.12 on, the text of an f-string is a separate token type.
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None)}
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type in kinds:
            yield from enumerate(token.string.split("\n"), token.start[0])


def avoided(path: Path, name: str) -> list[str]:
    """Places of a file that use an avoided word."""
    allowed = ALLOWED.get(name, {})
    return [
        f"{name}:{number}: {found.group()}"
        for number, line in texts(path)
        for found in AVOIDED.finditer(line)
        if "" not in allowed and found.group().lower() not in allowed
    ]


def files() -> list[str]:
    paths = [ROOT / "README.md"]
    for folder in FOLDERS:
        found = sorted((ROOT / folder).rglob("*"))
        paths += [path for path in found if path.suffix in PROSE | {".py"} and path.is_file()]
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    return [name for name in names if not name.startswith(("docs/_build/", "docs/published/"))]


def test_no_text_uses_a_word_that_the_style_avoids():
    assert [place for name in files() for place in avoided(ROOT / name, name)] == []


def test_an_allowed_word_is_still_there():
    for name, words in ALLOWED.items():
        content = (ROOT / name).read_text(encoding="utf-8").lower()
        assert all(word in content for word in words), name


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("# It lies beside the graph.\n", ["lies", "beside"]),
        ("x = 'a layer is no nn.Linear'\n", ["is no"]),
        ('"""There is no gate, and it is no longer tied."""\n', []),
        ("beside = 1\n", []),
    ],
)
def test_planted_words_are_found_in_comments_and_strings_alone(tmp_path, text, found):
    place = tmp_path / "planted.py"
    place.write_text(text, encoding="utf-8")
    assert [line.rpartition(": ")[2] for line in avoided(place, "planted.py")] == found


def public() -> Iterator[tuple[str, str]]:
    """The package's public functions, classes and methods, with their docstrings."""
    for name in finegates.__all__:
        value = getattr(finegates, name)
        members: dict[str, object] = {name: value}
        if inspect.isclass(value):
            members |= {
                f"{name}.{key}": member
                for key, member in vars(value).items()
                if not key.startswith("_") and isinstance(member, Callable | property)
            }
        for path, member in members.items():
            if docstring := inspect.getdoc(member):
                yield path, docstring


def test_summaries_of_the_public_api_are_short_and_one_sentence():
    long = {
        path: summary
        for path, docstring in public()
        if len(summary := docstring.split("\n")[0]) > 72 or ";" in summary
    }
    assert long == {}


def test_every_summary_is_one_line():
    """ruff's D205 covers all folders but theory, where checks start with formulas."""
    for path in sorted((ROOT / "finegates").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                summary = (ast.get_docstring(node) or "").split("\n\n")[0]
                assert "\n" not in summary, f"{path}: {summary}"
