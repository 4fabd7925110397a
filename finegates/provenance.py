"""Digests of the source code behind a result.

Snakemake reruns a job when its script changes, but does not see edits to modules that the script
imports. A rule therefore takes the digest of its modules as a parameter.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


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
    while pending:
        path = pending.pop()
        if path not in seen:
            seen.add(path)
            pending += _analysed(path)[1]
    digest = hashlib.sha256()
    for path in sorted(seen):
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(_analysed(path)[0])
    return digest.hexdigest()[:16]


@cache
def _analysed(path: Path) -> tuple[bytes, tuple[Path, ...]]:
    """Digest of a file's syntax tree without docstrings, and the repository files it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    found: set[Path] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(*(_module_files(alias.name) for alias in node.names))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update(_module_files(node.module))
            found.update(*(_module_files(f"{node.module}.{alias.name}") for alias in node.names))
        elif isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and (ast.get_docstring(node, clean=False) is not None):
            del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).digest(), tuple(sorted(found - {path}))


@cache
def _module_files(name: str) -> frozenset[Path]:
    """A module's file and the packages above it; empty for names that are no modules of ours."""
    parts = name.split(".")
    if parts[0] not in ("finegates", "theory"):
        return frozenset()
    bases = [ROOT.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    files = [file for base in bases for file in (base.with_suffix(".py"), base / "__init__.py")]
    return frozenset(file for file in files if file.is_file())
