"""Finds the files of tiers, and checks that tiers do not collide.

The tiers of this repository are the files of ``config/`` with a key ``tier``. A file elsewhere is a
tier of its own, often a copy of one of these.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from finegates.suite.config.strict_yaml import ConfigError, read_yaml
from finegates.suite.config.suggest import nearest
from finegates.suite.paths import ROOT

CONFIG = ROOT / "config"


def tier_path(name: str = "smoke") -> Path:
    """Finds the file of a tier.

    Args:
        name: a tier of this repository, or a path that ends in ``.yaml``.

    Raises:
        ConfigError: there is no such tier or file. The message suggests the nearest name.
    """
    is_path = name.endswith((".yaml", ".yml"))
    path = Path(name).resolve() if is_path else CONFIG / f"{name}.yaml"
    if path.exists() if is_path else name in known_tiers():
        return path
    known = list(known_tiers())
    if is_path:
        raise ConfigError(
            f"cannot read configuration {path}: no such file; give the path of a tier's file, or "
            f"the name of a tier{nearest(path.stem, known)}"
        )
    raise ConfigError(
        f"--config tier={name}: no tier of that name{nearest(Path(name).name, known)}; a tier of "
        "your own is given by the path of its file, which ends in .yaml"
    )


def tier_name(path: Path) -> str:
    """The name of a tier's file in ``config/``, or its path elsewhere."""
    path = path.resolve()
    return path.stem if path.parent == CONFIG else str(path)


@cache
def known_tiers() -> dict[str, str]:
    """The results folders of this repository's tiers, by the tier's name.

    Files are searched line by line. Every job of the workflow calls this, and parsing all files
    would take a second.
    """
    found = {}
    for path in sorted(CONFIG.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        values = dict(re.findall(r"^(tier|results):[ \t]*(\S+)", text, re.MULTILINE))
        if values.get("tier") == path.stem:
            found[path.stem] = values.get("results", "")
    return found


def configuration_file(name: str, path: Path, place: str) -> Path:
    """Finds a file that another one extends.

    It is next to that file, or else in this repository's ``config/``.

    Args:
        name: name of the file, relative or absolute.
        path: path of the file that extends it.
        place: place of the key, for messages.

    Raises:
        ConfigError: neither file exists.
    """
    found = next((p for p in (path.parent / name, CONFIG / name) if p.exists()), None)
    if found is None:
        raise ConfigError(
            f"{path}: {place}: no file {name!r} in {path.parent.resolve()} and none in {CONFIG}; "
            "give its path relative to the file that extends it, or absolute"
        )
    return found


def check_distinct(tier: str, results: str, path: Path) -> None:
    """Raises ConfigError if a file has the name or results of another tier.

    Records, tables and published copies of the two would be mixed up. A copy with the same content
    is the same tier.

    Args:
        tier: the tier's name in the file.
        results: its results folder.
        path: path of the file.
    """
    if path.resolve().parent == CONFIG:
        return
    remedy = "set tier: and results: to a name and a folder of its own, such as results/mine"
    for name, folder in known_tiers().items():
        own = {"tier": (tier, name), "results": (results, folder)}
        same = [key for key, (mine, theirs) in own.items() if mine == theirs]
        if same and read_yaml(path) != read_yaml(CONFIG / f"{name}.yaml"):
            raise ConfigError(
                f"{path}: {same[0]}: {own[same[0]][0]!r} belongs to tier {name!r} "
                f"({CONFIG / name}.yaml), which has other settings; {remedy}"
            )


def check_folder(tier: str, results: str) -> None:
    """Raises ConfigError if a results folder holds the runs of another tier."""
    folder = Path(results)
    record = next(folder.glob("runs/*/*/seed*.json"), None)
    if record is None:
        record = next(folder.glob("llama/runs/*/*/*/seed*.json"), None)
    try:
        owner = None if record is None else json.loads(record.read_bytes()).get("tier")
    except (OSError, ValueError, AttributeError):
        return  # corrupt: the job that reads it raises the error
    if owner not in (None, tier):
        raise ConfigError(
            f"results: {results} holds runs of tier {str(owner)!r}, and this is tier {tier!r}; set "
            f"results: to a folder of its own, such as results/{tier}, or tier: to {owner}"
        )
