"""Finds the commands that a document names and reports what is wrong with them."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

from finegates.cli.program import parser
from finegates.cli.suite import SUITE
from finegates.suite.config.load import CONFIG, ConfigError, configured_tier
from support.pages import FENCE, fences
from support.paths import ROOT

STARTS = ("make", "snakemake", "python", "pip", "finegates")
SHELLS = ("", "bash", "console")


def commands(text: str) -> list[str]:
    """The commands of a page: in code fences of a shell or without a language, and in backticks."""
    text = re.sub(r"<!-- begin .*?<!-- end \S+ -->", "", text, flags=re.DOTALL)
    blocks = [block for language, block in fences(text) if language in SHELLS]
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    lines = [
        line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()
    ] + inline
    return [line for line in lines if line.split(" ")[0] in STARTS and line not in STARTS]


def comments(text: str) -> str:
    """A YAML file's comments, as the code fence of a page."""
    lines = [line.partition("#")[2].strip() for line in text.splitlines() if "#" in line]
    found = [line for line in lines if line.split(" ")[0] in STARTS and len(line.split()) > 1]
    return "```\n" + "\n".join(found) + "\n```\n"


def fault(command: str) -> str | None:
    """Why a command is wrong, or None."""
    # A placeholder, or the rest of a sentence that continues after a comment.
    words = shlex.split(command.replace("...", "x"), comments=True)
    checks = {"make": _make, "snakemake": _snakemake, "python": _python, "pip": _pip}
    return {**checks, "finegates": _finegates}[words[0]](words[1:])


def _make(words: list[str]) -> str | None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    options = set(re.findall(r"\$[({](\w+)", text)) | {"PYTHON"}
    for word in words:
        name, is_option, value = word.partition("=")
        if is_option and name not in options:
            return f"no option {name}"
        if not is_option and name not in targets:
            return f"no target {name}"
        if name == "TIER" and not (CONFIG / f"{value}.yaml").is_file():
            return f"no tier {value}"
    return None


def _rules() -> set[str]:
    files = [ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.smk")]
    found = [
        re.findall(r"^\s*rule (\w+):|^use rule \w+ as (\w+)", f.read_text(), re.M) for f in files
    ]
    return {name for pairs in found for pair in pairs for name in pair if name}


def _snakemake(words: list[str]) -> str | None:
    from snakemake.cli import get_argument_parser

    try:
        given, unknown = get_argument_parser().parse_known_args(words)
    except SystemExit:
        return "its options are wrong"
    for word in unknown:
        return f"no option {word}"
    for target in given.targets:
        of_a_tier = re.match(r"results/(\w+)/", target)
        is_file = of_a_tier and (CONFIG / f"{of_a_tier[1]}.yaml").is_file()
        if not is_file and target not in _rules():
            return f"no rule {target}"
    # A path in an example represents any file, so it is not checked.
    config = {k: v for k, _, v in (c.partition("=") for c in given.config or []) if "/" not in v}
    try:
        configured_tier(config)
    except ConfigError as error:
        return str(error)
    # A list in later versions of Snakemake.
    profiles = [given.profile] if isinstance(given.profile, str) else given.profile or []
    for profile in profiles:
        if not (ROOT / profile).is_dir():
            return f"no profile {profile}"
    return None


def _python(words: list[str]) -> str | None:
    if words[0] != "-m":
        return None if (ROOT / words[0]).is_file() else f"no program {words[0]}"
    found = importlib.util.find_spec(words[1])
    if found is None or found.origin is None:
        return f"no module {words[1]}"
    is_own = Path(found.origin).is_relative_to(ROOT)
    is_program = "__main__" in Path(found.origin).read_text()
    is_package = found.submodule_search_locations is not None
    is_program |= is_package and Path(found.origin).with_name("__main__.py").is_file()
    if is_own and not is_program:
        return f"{words[1]} is not a program"
    return _published(words[2:])


def _finegates(words: list[str]) -> str | None:
    if words[0] in SUITE:
        return _published(words[1:])
    try:
        # `finegates shrink` in running text may omit its required options.
        parser().parse_args(words if words[1:] else [*words, "--help"])
    except SystemExit as end:
        return "its options are wrong" if end.code else None
    return None


def _published(words: list[str]) -> str | None:
    for word in words:
        if word.startswith("results/published") and not (ROOT / word).exists():
            return f"no {word}"
    return None


def _pip(words: list[str]) -> str | None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words[1:]:
        for extra in re.findall(r"^\.\[(.*)\]$", word):
            for name in extra.split(","):
                if name not in project["optional-dependencies"]:
                    return f"no extra {name}"
    return None
