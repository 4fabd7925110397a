"""A sample of a parameter matrix always runs, and the whole matrix on request."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.sampling import sample

pytest_plugins = ["pytester"]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_every_value_of_every_parameter_appears_in_as_few_cases_as_can_be(sizes: list[int]) -> None:
    cases = [
        {f"p{place}": value for place, value in enumerate(values)}
        for values in itertools.product(*map(range, sizes))
    ]
    chosen = sample(cases)
    for place, size in enumerate(sizes):
        assert {cases[index][f"p{place}"] for index in chosen} == set(range(size))
    # For a full product, the longest axis needs exactly one case for each of its values.
    assert len(chosen) == max(sizes)


def test_a_case_that_shows_nothing_new_is_left_out() -> None:
    assert sample([{"a": 0, "b": 0}, {"a": 0, "b": 0}, {"a": 1, "b": 0}]) == [0, 2]
    assert sample([{"a": 0}, {"a": 1}, {"a": 2}], most=1) == [0]
    assert sample([]) == []


INI = "[pytest]\nmarkers = sampled\n slow\n thorough\npythonpath = {}\n"
MATRIX = """
import pytest

@pytest.mark.sampled
@pytest.mark.parametrize("a", range(3))
@pytest.mark.parametrize("b", range(4))
def test_product(a, b):
    print("ran", a, b)

@pytest.mark.sampled(1)
@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 1), (2, 2)])
def test_pairs(a, b): ...

@pytest.mark.parametrize("a", range(3))
def test_unmarked(a): ...
"""


@pytest.mark.parametrize(
    ("options", "passed"),
    [((), 4 + 1 + 3), (("--run-thorough",), 12 + 3 + 3), (("--run-slow",), 12 + 3 + 3)],
    ids=["fast", "thorough", "slow"],
)
def test_a_sample_runs_always_and_the_matrix_when_asked_for(
    options: tuple[str, ...],
    passed: int,
    pytester: pytest.Pytester,
    pytestconfig: pytest.Config,
) -> None:
    root = pytestconfig.rootpath
    pytester.makeconftest((root / "tests" / "conftest.py").read_text())
    pytester.makeini(
        f"[pytest]\nmarkers = sampled\n slow\n thorough\npythonpath = {root / 'tests'}\n"
    )
    pytester.makepyfile(MATRIX)
    ran = pytester.inline_run("-p", "no:cacheprovider", *options)
    outcomes = ran.countoutcomes()
    assert outcomes == [passed, 18 - passed, 0]


def test_a_case_that_is_asked_for_by_its_name_runs(
    pytester: pytest.Pytester, pytestconfig: pytest.Config
) -> None:
    root = pytestconfig.rootpath
    pytester.makeconftest((root / "tests" / "conftest.py").read_text())
    pytester.makeini(INI.format(root / "tests"))
    path = pytester.makepyfile(MATRIX)
    ran = pytester.inline_run("-p", "no:cacheprovider", f"{path}::test_product[3-2]")
    assert ran.countoutcomes() == [1, 0, 0]
