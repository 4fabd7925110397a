"""Digests of the source code behind a result.

Snakemake reruns a job when its script changes, but does not see edits to modules that the script
imports. A rule therefore takes the digest of its modules as a parameter. As every job reads the
rules anew, what was found in a file is kept beside what Snakemake keeps, under the file's content.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from functools import cache
from pathlib import Path

from finegates.files import write_text

ROOT = Path(__file__).resolve().parent.parent

MEMORY = ".snakemake/finegates/syntax.json"
"""Where the findings are kept, relative to the root: [digest, imported names] by digest of the
content and of the Python that read it. A missing or damaged file is written anew."""

_MOST = 1000  # findings in the file: several times as many as there are modules


def code_digest(*files: str | Path) -> str:
    """Digest of Python files and of everything that they import from this repository.

    Comments, docstrings and layout do not count: the digest is over syntax trees.

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
    """Digest of a file's syntax tree without docstrings, and the repository files it imports."""
    content = path.read_bytes()
    key = hashlib.sha256(sys.version.encode() + b"\0" + content).hexdigest()
    known = _remembered(ROOT)
    if key not in known:
        known[key] = _parsed(content, path)
    digest, names = known[key]
    found = {file for name in names for file in _module_files(name)}
    return bytes.fromhex(digest), tuple(sorted(found - {path}))


def _parsed(content: bytes, path: Path) -> tuple[str, list[str]]:
    """Digest of the syntax tree without docstrings, and the names of what is imported."""
    tree = ast.parse(content, filename=str(path))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and (ast.get_docstring(node, clean=False) is not None):
            del node.body[0]
    ours = sorted(name for name in names if name.partition(".")[0] in ("finegates", "theory"))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), ours


@cache
def _remembered(root: Path) -> dict[str, tuple[str, list[str]]]:
    """What earlier processes found, to be added to; empty if there is nothing to be read."""
    try:
        stored = json.loads((root / MEMORY).read_text(encoding="utf-8"))
        return {
            str(key): (bytes.fromhex(digest).hex(), [str(name) for name in names])
            for key, (digest, names) in stored.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(root: Path, known: dict[str, tuple[str, list[str]]]) -> None:
    newest = dict(list(known.items())[-_MOST:])
    try:
        (root / MEMORY).parent.mkdir(parents=True, exist_ok=True)
        write_text(root / MEMORY, json.dumps(newest))
    except OSError:
        pass  # a read-only checkout: each process looks for itself


@cache
def _module_files(name: str) -> frozenset[Path]:
    """A module's file and the packages above it; empty for names that are no modules of ours."""
    parts = name.split(".")
    if parts[0] not in ("finegates", "theory"):
        return frozenset()
    bases = [ROOT.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    files = [file for base in bases for file in (base.with_suffix(".py"), base / "__init__.py")]
    return frozenset(file for file in files if file.is_file())
