"""Scans sources and files for anything that could execute data as code."""

from __future__ import annotations

import ast
import io
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
"""Modules whose files can be programs; nothing imports them."""

CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
"""Built-in functions that execute text."""

TRUST = "trust_remote_code"

SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".joblib", ".ckpt", ".npy", ".npz", ".h5"}
"""Suffixes of files that contain pickle, or may contain it."""


def faults(source: str) -> list[str]:
    """Statements of a Python source that could execute code from a file, with line numbers."""
    return [f"line {line}: {what}" for line, what in sorted(set(_faults(ast.parse(source))))]


def _faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in MODULES:
                    yield node.lineno, f"imports {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").partition(".")[0] in MODULES:
                yield node.lineno, f"imports {node.module}"
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in _call_faults(node))
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                named = isinstance(key, ast.Constant) and key.value == TRUST
                if named and not _is_refusal(value):
                    yield node.lineno, f"sets {TRUST}"
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if TRUST in ast.unparse(target) and not _is_refusal(node.value):
                    yield node.lineno, f"sets {TRUST}"


def _call_faults(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    last = name.rpartition(".")[2]
    if isinstance(call.func, ast.Name) and name in CALLS:
        yield f"calls {name}"
    if name in ("torch.load", "torch.hub.load", "torch.package.PackageImporter"):
        safe = name == "torch.load" and _constant(given.get("weights_only")) is True
        if not safe:
            yield f"calls {name} without weights_only=True"
    if last in ("load", "save") and name.partition(".")[0] in ("np", "numpy"):
        yield f"calls {name}, whose files may hold pickle"
    if "allow_pickle" in given and _constant(given["allow_pickle"]) is not False:
        yield f"{name} allows pickle"
    if last in ("read_pickle", "to_pickle"):
        yield f"calls {name}"
    if name.startswith("yaml.") and (
        last.startswith("unsafe_load")
        or last.startswith("full_load")
        or (last in ("load", "load_all") and ast.unparse(_loader(call, given)) != "_StrictLoader")
    ):
        yield f"calls {name} with another loader than the strict one"
    if last == "from_pretrained" and _constant(given.get(TRUST)) is not False:
        yield f"calls from_pretrained without {TRUST}=False"
    if TRUST in given and not _is_refusal(given[TRUST]):
        yield f"sets {TRUST}"
    if "shell" in given and _constant(given["shell"]) is not False:
        yield f"{name} starts a shell"
    if name in ("os.system", "os.popen"):
        yield f"calls {name}"


def _constant(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def _is_refusal(node: ast.expr) -> bool:
    """Whether a value is False or a string with the reason of a refusal."""
    return _constant(node) is False or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _loader(call: ast.Call, given: dict[str | None, ast.expr]) -> ast.expr:
    found = given.get("Loader", call.args[1] if len(call.args) > 1 else None)
    return ast.Constant(None) if found is None else found


def holds_pickle(content: bytes) -> bool:
    """Whether a file's content is a pickle.

    The pickle may be the whole file, in a zip archive (as ``torch.save`` writes), or in a NumPy
    array of objects.
    """
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any(
                name.endswith((".pkl", ".pickle")) or holds_pickle(archive.read(name))
                for name in archive.namelist()
            )
    if content.startswith(b"\x93NUMPY"):
        return b"|O" in content[:256]
    try:
        with warnings.catch_warnings(action="ignore"):  # strings with escapes of their own
            opcodes = [(opcode.name, place) for opcode, _, place in pickletools.genops(content)]
    except Exception:  # not a pickle: the reader fails in many ways
        return False
    if opcodes[0][0] == "PROTO":
        return True
    # The first lines of a table can be a valid protocol 0 program by chance. A complete program
    # that builds an object cannot.
    builds = {"GLOBAL", "REDUCE", "INST", "OBJ", "BUILD"} & {name for name, _ in opcodes}
    return bool(builds) and opcodes[-1][1] == len(content) - 1


def pickles_below(folder: Path) -> list[str]:
    """Files that contain pickle or have a suffix of it, relative to the folder."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and (path.suffix in SUFFIXES or holds_pickle(path.read_bytes()))
    )
