"""Everything that the documents name exists: commands, options, keys, names, files."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

import finegates as fg
import finegates.suite.config.tier
from finegates.gates.config import GateConfig
from finegates.gates.presets import preset_named
from finegates.suite.config.gates import GateFields
from finegates.suite.config.load import CONFIG
from finegates.suite.config.section import Section
from finegates.suite.config.tier import Tier
from support.commands import commands, comments, fault
from support.pages import fences
from support.paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "theory" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README_LINES = 250
SITE = ROOT / "docs"
COMMENTED = [*sorted(CONFIG.glob("*.yaml")), *sorted((ROOT / "profiles").rglob("*.yaml"))]


@pytest.mark.parametrize("page", [*PAGES, *COMMENTED], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_that_a_document_names_exists(page):
    text = page.read_text()
    found = commands(comments(text) if page.suffix == ".yaml" else text)
    assert found or page.name != "README.md"
    assert {command: fault(command) for command in found if fault(command)} == {}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("make reproduces", "no target"),
        ("make reproduce TEIR=local", "no option TEIR"),
        ("make reproduce TIER=locale", "no tier locale"),
        ("snakemake alle --cores 1", "no rule alle"),
        ("snakemake all --coers 1", "no option --coers"),
        ("snakemake all --config teir=local", "unknown key 'teir'"),
        ("snakemake all --config tasks=colla", "'colla' is not in"),
        ("snakemake all --profile profiles/pbs", "no profile"),
        ("python -m finegates.compares a b", "no module"),
        ("python -m finegates.gates.gate", "is not a program"),
        ("pip install '.[workflows]'", "no extra workflows"),
        ("finegates compare results/published/lokal x", "no results/published/lokal"),
        ("finegates comprae a b", "its options are wrong"),
        ("finegates shrink m --train a.csv --out b --goal 0.4", "its options are wrong"),
    ],
)
def test_a_command_that_does_not_exist_is_found(command, message):
    assert message in str(fault(command))


def test_the_commands_of_a_page_are_found_where_it_has_them():
    page = "```\nmake a\n```\ntext `make b` and\n```python\nmake = 1\n```\nmake c of it\n"
    assert commands(page) == ["make a", "make b"]
    page = "```python\nx = 1\n```\n\n```console\n$ make d\n```\n```bash\nmake e\n```\n"
    assert commands(page) == ["make d", "make e"]
    assert commands(comments("tier: x # pip install y\n# snakemake all: now\n"))


def examples() -> Iterator[tuple[str, str, str]]:
    for page in PAGES:
        for kind, block in fences(page.read_text()):
            yield page.name, kind, block


def code_fault(block: str) -> str | None:
    """The first name or argument in an example that the library does not have."""
    for node in ast.walk(ast.parse(block)):
        is_name = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fg"
        if is_name and node.attr not in fg.__all__:
            return f"no name {node.attr}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("fg."):
            function = getattr(fg, ast.unparse(node.func).removeprefix("fg."), None)
            if not callable(function):
                continue
            named: dict[str, Any] = {k.arg: None for k in node.keywords if k.arg}
            try:
                inspect.signature(function).bind_partial(*node.args, **named)
            except TypeError as error:
                return f"{ast.unparse(node.func)}: {error}"
    return None


def test_every_python_example_uses_names_and_arguments_that_exist():
    blocks = [block for _, kind, block in examples() if kind == "python"]
    assert len(blocks) >= 2
    assert [code_fault(block) for block in blocks] == [None] * len(blocks)


@pytest.mark.parametrize(
    "block", ["fg.atach(model)", "fg.attach(model, config=1, x=2)", "fg.GateConfig(goal=0.4)"]
)
def test_a_python_example_that_would_fail_is_found(block):
    assert code_fault(block)


def test_every_yaml_example_has_keys_of_the_section_it_is_for():
    blocks = [block for _, kind, block in examples() if kind == "yaml"]
    assert blocks
    for block in blocks:
        for key, value in yaml.safe_load(block).items():
            assert unknown_keys(Tier.model_fields["llama"].annotation, {key: value}) == []


def unknown_keys(annotation: Any, tree: Any) -> list[str]:
    """Keys of a tree that do not belong to the sections of an annotation."""
    sections = list(_sections(annotation))
    if not isinstance(tree, dict) or not sections:
        return []
    if "dict[" in str(annotation).partition("finegates")[0]:
        return [k for value in tree.values() for k in unknown_keys(sections[0], value)]
    fields = sections[0].model_fields
    known = {k: v for k, v in tree.items() if k in fields}
    unknown = [str(k) for k in tree if k not in fields]
    return unknown + [
        k for key, v in known.items() for k in unknown_keys(fields[key].annotation, v)
    ]


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _sections(argument)


def test_a_yaml_example_with_a_wrong_key_is_found():
    tree = {"posttraining": {"models": {"m": {"name": "x", "paht": "y"}}}, "texts": 1}
    assert unknown_keys(Tier.model_fields["llama"].annotation, tree) == ["texts", "paht"]


KEY = re.compile(r"`((?:llama|data|model|training|theory|methods)(?:\.[a-z_]+)+)`")


def test_every_key_that_a_page_names_is_one():
    named = [key for page in PAGES for key in KEY.findall(page.read_text())]
    assert named
    for key in named:
        sections = [Tier]
        if key == "training.processes":  # of the experiments on plain text
            sections = [finegates.suite.config.llama.CausalTraining]
            key = "processes"
        for part in key.split("."):
            assert sections, key
            assert part in sections[0].model_fields, key
            sections = list(_sections(sections[0].model_fields[part].annotation))


def test_every_file_that_a_page_links_to_exists():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def sections_of_the_schema() -> list[type[Section]]:
    found: list[type[Section]] = [Tier]
    for section in found:
        for field in section.model_fields.values():
            for inner in _sections(field.annotation):
                if inner not in found:
                    found.append(inner)  # type: ignore[arg-type]
    return found


def listed(described: type) -> set[str]:
    """The names that a description lists under ``Attributes:``."""
    attributes = inspect.cleandoc(described.__doc__ or "").partition("Attributes:\n")[2]
    return {
        name.strip()
        for names in re.findall(r"^    (\w[\w, ]*):", attributes, re.MULTILINE)
        for name in names.split(",")
    }


def documented(section: type[BaseModel]) -> set[str]:
    """The keys in the description of a section or of its bases.

    The keys of gates are described once, in the library's configuration.
    """
    found = set().union(*(listed(base) for base in section.__mro__ if issubclass(base, Section)))
    if issubclass(section, GateFields):
        found |= listed(GateConfig) & set(section.model_fields)
    return found


@pytest.mark.parametrize("section", sections_of_the_schema(), ids=lambda s: s.__name__)
def test_the_description_of_a_section_lists_its_keys_and_no_others(section):
    assert documented(section) == set(section.model_fields)


def test_a_key_without_description_and_one_that_is_gone_are_found():
    class Changed(Section):
        """A section.

        Attributes:
            kept: still there.
            gone: not there any more.
        """

        kept: int
        new: int

    assert documented(Changed) ^ set(Changed.model_fields) == {"gone", "new"}


def test_the_table_of_presets_says_what_the_presets_are():
    page = (SITE / "how-it-works.md").read_text()
    rows = re.findall(r"^\| `(\w+)` .*N\(0, ([\d.]+)²\).*Φ\(.*?/([\d.]+)\)", page, re.MULTILINE)
    assert [name for name, _, _ in rows] == ["reference", "structured"]
    for name, noise, spread in rows:
        assert preset_named(name).noise_std == float(noise)
        assert preset_named(name).probability_std == float(spread)


def test_every_public_name_has_a_description():
    for name in fg.__all__:
        if not name.startswith("__"):
            assert (getattr(fg, name).__doc__ or "").strip(), name


def test_the_page_of_the_api_describes_every_public_name_once():
    text = (SITE / "api.md").read_text()
    named = re.findall(r"^\.\. auto(?:class|function):: finegates\.(\w+)$", text, re.MULTILINE)
    assert sorted(named) == sorted(set(fg.__all__) - {"__version__"})


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES
