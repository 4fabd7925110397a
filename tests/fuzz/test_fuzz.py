"""Files of others are read or refused, whatever is in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from targets import TARGETS, Target

from finegates.config import ConfigError, read_yaml
from finegates.files import parse_json

RUNS = 25_000
"""Inputs of each of the five targets in the slow test."""

made = cache(lambda name: TARGETS[name]())

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just([]),
    st.just({}), st.just(-1), st.just(2**70), st.just("../../etc/passwd"),
)  # fmt: skip


@st.composite
def edited(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with bytes replaced, cut out or put in at a few places."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 8)))
        content = content[:start] + draw(st.binary(max_size=8)) + content[end:]
    return content


def nodes(tree: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    return [place] * bool(place) + [p for key, child in items for p in nodes(child, (*place, key))]


@st.composite
def regrown(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with values replaced by others, or removed."""
    for _ in range(draw(st.integers(1, 3))):
        places = nodes(tree)
        if not places:
            return tree
        *path, last = draw(st.sampled_from(places))
        parent = tree
        for key in path:
            parent = parent[key]
        if draw(st.booleans()):
            parent[last] = draw(SCALARS)
        else:
            del parent[last]
    return tree


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_what_was_written_is_read(name):
    target: Target = made(name)
    assert all(target(seed) for seed in target.seeds)


@pytest.mark.parametrize("name", sorted(TARGETS))
@given(data=st.data())
def test_edited_bytes_are_read_or_refused(name, data):
    target: Target = made(name)
    target(data.draw(edited(data.draw(st.sampled_from(target.seeds)))))


@pytest.mark.parametrize("name", ["configuration", "record", "compact_model"])
@given(data=st.data())
def test_other_values_in_the_same_place_are_read_or_refused(name, data):
    target: Target = made(name)
    seed = data.draw(st.sampled_from(target.seeds))
    if name == "configuration":
        content = yaml.safe_dump(data.draw(regrown(yaml.safe_load(seed))), allow_unicode=True)
    else:
        content = json.dumps(data.draw(regrown(json.loads(seed))))
    target(content.encode("utf-8", errors="replace"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": 1e999}', "1e999 is too large"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "Expecting property name"),
    ],
)
def test_json_that_other_readers_would_take_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "'a' stands twice"),
        (LAUGHS, "aliases are not read"),
        ("a: " + "[" * 20_000, "cannot be read|not valid YAML"),
        ("a: 2001-99-99\n", "cannot be read|not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("- a\n", "must hold a mapping"),
    ],
)
def test_yaml_that_other_readers_would_take_is_refused(tmp_path, text, message):
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_fuzzer_that_follows_coverage_finds_no_way_through(name, tmp_path):
    pytest.importorskip("atheris", reason="the extra fuzz is not installed")
    here = Path(__file__)
    path = os.pathsep.join([str(here.parents[2]), str(here.parents[1])])
    done = subprocess.run(
        [sys.executable, str(here.with_name("targets.py")), name, f"-runs={RUNS}", "-timeout=30"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"Done {RUNS} runs" in done.stderr
