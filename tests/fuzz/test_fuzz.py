"""Untrusted files are read or refused, for any content."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from campaign import ENGINES, INPUTS
from hypothesis import given
from hypothesis import strategies as st
from mutations import inputs
from target import AcceptedInvalid, Target, must
from targets import TARGETS
from watch import ForbiddenAct

from finegates.files import parse_json
from finegates.suite.config.load import ConfigError, read_yaml
from support.paths import ROOT

made = cache(lambda name: TARGETS[name]())


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_what_was_written_is_read(name):
    target: Target = made(name)
    assert all(target(seed) for seed in target.seeds)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", sorted(TARGETS))
@given(data=st.data())
def test_what_was_changed_is_read_or_refused(name, data):
    target: Target = made(name)
    target(data.draw(inputs(target)))


@pytest.mark.parametrize(
    "act",
    [
        lambda folder: (folder.parent / "x").write_text("x"),
        lambda folder: subprocess.run(["true"]),
        lambda folder: os.system("true"),
        lambda folder: pickle.loads(pickle.dumps(Path())),
        lambda folder: socket.create_connection(("localhost", 1)),
        lambda folder: exec(compile("1", str(folder / "x.py"), "exec")),
        lambda folder: shutil.rmtree(folder),
    ],
    ids=["write", "process", "shell", "pickle", "network", "module", "delete"],
)
def test_what_reading_must_not_do_is_caught(act):
    doing = False

    def read(folder, content):
        (folder / "f").write_bytes(content)
        # Read one seed before watching starts.
        return lambda: act(folder) if doing else None

    target = Target([b"x"], ValueError, read)
    doing = True
    with pytest.raises(ForbiddenAct):
        target(b"x")


def test_a_wrong_file_that_is_accepted_is_caught():
    def read(folder, content):
        return lambda: must(content == b"x", "not an x")

    target = Target([b"x"], ValueError, read)
    assert target(b"x")
    with pytest.raises(AcceptedInvalid, match="not an x"):
        target(b"y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "'a' appears twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
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
        ("a: 1\na: 2\n", "'a' appears twice"),
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
@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_many_inputs_find_no_way_through(engine, name, tmp_path):
    if engine == "atheris":
        pytest.importorskip("atheris", reason="the extra fuzz is not installed")
    found = ENGINES[engine](name, INPUTS[engine], tmp_path)
    assert found["inputs"] >= INPUTS[engine]
    assert (found["crashes"], found["accepted invalid"]) == (0, 0), found["message"]


def test_the_published_counts_are_those_of_every_reader_and_reach_their_number():
    table = pd.read_csv(ROOT / "results" / "published" / "fuzz" / "fuzz.csv")
    assert set(table["reader"]) == set(TARGETS)
    assert table["inputs"].sum() >= 100_000
    assert not table[["crashes", "accepted invalid"]].to_numpy().any()
    assert (table["accepted"] + table["refused"] <= table["inputs"]).all()
    assert (table["accepted"] > 0).all()
