"""Digests of the source code behind a result.

Snakemake reruns a job when its script changes, but does not see changes of modules that the script
imports. A rule therefore takes the digest of these modules as a parameter. Every job evaluates the
rules again, so the result of parsing a file is cached in Snakemake's folder by the file's content.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from finegates.files import write_text
from finegates.suite.paths import ROOT

MEMORY = ".snakemake/finegates/syntax.json"
"""Where the findings are kept, relative to the root: [digest, imported names, names for type
checkers] by digest of the content and of the Python that read it. A missing or damaged file is
written again."""

_FORMAT = b"3"

_FOR_TYPES = ("TYPE_CHECKING", "typing.TYPE_CHECKING")

_Findings = tuple[str, list[str], list[str]]

_MOST = 1000  # cached files, several times the number of modules


def code_digest(*files: str | Path) -> str:
    """Digest of Python files and the modules of this repository they import.

    The digest is computed from syntax trees, so comments, docstrings and layout do not count.
    Imports below ``if TYPE_CHECKING:`` do not run and do not count, either.

    Args:
        files: paths relative to the repository's root.

    Returns:
        16 hexadecimal digits.

    Raises:
        FileNotFoundError: a file does not exist.
    """
    pending = [ROOT / file for file in files]
    seen: set[Path] = set()
    known = _remembered(ROOT)
    before = len(known)
    while pending:
        path = pending.pop()
        if path not in seen:
            seen.add(path)
            pending += _analysed(path)[1]
    if len(known) > before:
        _remember(ROOT, known)
    digest = hashlib.sha256()
    for path in sorted(seen):
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(_analysed(path)[0])
    return digest.hexdigest()[:16]


@cache
def _analysed(path: Path) -> tuple[bytes, tuple[Path, ...]]:
    """Digest of a file's syntax tree without docstrings, and the files it imports."""
    digest, names, _ = _findings(path)
    found = {file for name in names for file in (*_module_files(name), *_lazy_files(name))}
    return bytes.fromhex(digest), tuple(sorted(found - {path}))


def _findings(path: Path) -> _Findings:
    """Same as :func:`_parsed`, cached over calls and processes."""
    content = path.read_bytes()
    key = hashlib.sha256(_FORMAT + sys.version.encode() + b"\0" + content).hexdigest()
    known = _remembered(ROOT)
    if key not in known:
        known[key] = _parsed(content, path)
    return known[key]


def _parsed(content: bytes, path: Path) -> _Findings:
    """Digest of a syntax tree, its imports, and its imports for type checkers.

    The digest excludes docstrings, also those of attributes, and imports for type checkers.
    """
    tree = ast.parse(content, filename=str(path))
    typed: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in _FOR_TYPES:
            typed += _imported(node.body)
            node.body = []
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_text(statement)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), _imported([tree]), typed


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is the docstring of a module, class, function or attribute."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _imported(nodes: Sequence[ast.AST]) -> list[str]:
    """Names of this repository that are imported at any depth of the tree.

    ``import package`` also gives ``package.*``.
    """
    names: set[str] = set()
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
            names.update(f"{alias.name}.*" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return sorted(name for name in names if name.partition(".")[0] in ("finegates", "theory"))


@cache
def _lazy_files(name: str) -> frozenset[Path]:
    """Files of names that a package loads lazily, found by its imports for type checkers.

    Args:
        name: ``package.name``, or ``package.*`` for all names.
    """
    package, _, taken = name.rpartition(".")
    home = ROOT.joinpath(*package.split("."), "__init__.py")
    if not package or not home.is_file():
        return frozenset()
    if b"def __getattr__" not in home.read_bytes():
        return frozenset()
    typed = _findings(home)[2]
    return frozenset(
        file
        for full in typed
        if taken == "*" or full.rpartition(".")[2] == taken
        for file in _module_files(full)
    )


@cache
def _remembered(root: Path) -> dict[str, _Findings]:
    """Reads the cache of earlier processes, empty if it is missing or corrupt."""
    try:
        stored = json.loads((root / MEMORY).read_text(encoding="utf-8"))
        return {
            str(key): (bytes.fromhex(digest).hex(), [*map(str, names)], [*map(str, typed)])
            for key, (digest, names, typed) in stored.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(root: Path, known: dict[str, _Findings]) -> None:
    newest = dict(list(known.items())[-_MOST:])
    try:
        (root / MEMORY).parent.mkdir(parents=True, exist_ok=True)
        write_text(root / MEMORY, json.dumps(newest))
    except OSError:
        pass  # a read-only checkout: each process parses the files itself


@cache
def _module_files(name: str) -> frozenset[Path]:
    """Files of a module and its parent packages, empty outside the repository."""
    parts = name.split(".")
    if parts[0] not in ("finegates", "theory"):
        return frozenset()
    bases = [ROOT.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    files = [file for base in bases for file in (base.with_suffix(".py"), base / "__init__.py")]
    return frozenset(file for file in files if file.is_file())
