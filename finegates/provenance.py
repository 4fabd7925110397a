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
            pending += _imported(path)
    digest = hashlib.sha256()
    for path in sorted(seen):
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(_tree_digest(path))
    return digest.hexdigest()[:16]


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def _tree_digest(path: Path) -> bytes:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and (ast.get_docstring(node, clean=False) is not None):
            assert isinstance(body, list)
            del body[0]
    return hashlib.sha256(ast.dump(tree).encode()).digest()


@cache
def _imported(path: Path) -> tuple[Path, ...]:
    found: set[Path] = set()
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] in ("finegates", "theory"):
                found.update(_module_files(name))
    return tuple(sorted(found - {path}))


def _module_files(name: str) -> list[Path]:
    """A module's file and the packages above it; empty for names that are no modules."""
    parts = name.split(".")
    files = []
    for depth in range(1, len(parts) + 1):
        base = ROOT.joinpath(*parts[:depth])
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                files.append(candidate)
    return files
