"""The files of tiers: found by name or path, and distinct in what they call and write.

The tiers of this repository are the files of ``config/`` that name one. A file elsewhere is a tier
of its own, often a copy of one of these.
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
    """The file of a tier: of this repository by name, or any by a path that ends in ``.yaml``.

    Raises:
        ConfigError: no such tier or file; the message has the nearest name.
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
    """What to call a tier's file by: its name in ``config/``, elsewhere its path."""
    path = path.resolve()
    return path.stem if path.parent == CONFIG else str(path)


@cache
def known_tiers() -> dict[str, str]:
    """The folders of results of this repository's tiers, by the tier's name.

    Read by line, because every job of the workflow looks: parsing all files takes a second.
    """
    found = {}
    for path in sorted(CONFIG.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        values = dict(re.findall(r"^(tier|results):[ \t]*(\S+)", text, re.MULTILINE))
        if values.get("tier") == path.stem:
            found[path.stem] = values.get("results", "")
    return found


def configuration_file(name: str, path: Path, place: str) -> Path:
    """The file that another one extends: next to it, or else of this repository's ``config/``.

    Args:
        name: of the file, relative or absolute.
        path: of the file that extends it.
        place: of the key, for messages.

    Raises:
        ConfigError: neither is there.
    """
    found = next((p for p in (path.parent / name, CONFIG / name) if p.exists()), None)
    if found is None:
        raise ConfigError(
            f"{path}: {place}: no file {name!r} in {path.parent.resolve()} and none in {CONFIG}; "
            "give its path relative to the file that extends it, or absolute"
        )
    return found


def check_distinct(tier: str, results: str, path: Path) -> None:
    """Raises ConfigError for a file that passes for another tier, or writes where one does.

    Records, tables and published copies of the one would be taken for the other's. A copy with the
    same content is the same tier.

    Args:
        tier: the name that the file gives.
        results: its folder of results.
        path: of the file.
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
    """Raises ConfigError where a folder of results holds the runs of another tier."""
    folder = Path(results)
    record = next(folder.glob("runs/*/*/seed*.json"), None)
    if record is None:
        record = next(folder.glob("llama/runs/*/*/*/seed*.json"), None)
    try:
        owner = None if record is None else json.loads(record.read_bytes()).get("tier")
    except (OSError, ValueError, AttributeError):
        return  # corrupt: its reader raises
    if owner not in (None, tier):
        raise ConfigError(
            f"results: {results} holds runs of tier {str(owner)!r}, and this is tier {tier!r}; set "
            f"results: to a folder of its own, such as results/{tier}, or tier: to {owner}"
        )
