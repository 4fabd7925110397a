"""Every check at a small size: verdicts are computed, and every one of them can fail."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pandas as pd
import pytest

from theory.checks.encoder import network_checks
from theory.checks.settings import Settings
from theory.evidence import (
    CLAIMS,
    ITEMS,
    Case,
    Check,
    check_markdown,
    comparison_markdown,
    judge_claims,
    printed,
)
from theory.study import TOY_CHECKS, figure_frames, run_checks

SMALL = Settings(
    problems=2, trials=6, limit=60, runs=24, steps=1500, samples=20_000, gate_steps=900
)

# By how much the constant of each check must be wrong to be found out: 1.3 where it is attained;
# more for bounds, by their looseness. A claim is contradicted where all its settings fail.
LOOSE = {
    "box-descent": 10,
    "box-prox-pl": 10,
    "clip-plateau": 1e8,
    "columns-condition": 10,
    "columns-descent": 10,
    "joint-lipschitz": 100,
    "joint-local": 100,
    "joint-region": 1e4,
    "rows-descent": 10,
    "penalty-endpoint": 1e6,
    "sgd-decaying": 5,
}
CLAIMED = [name for name in TOY_CHECKS if name.endswith("-claim")]


@pytest.fixture(scope="module")
def found() -> dict[str, Check]:
    """Every check of the study."""
    return {check.id: check for check in run_checks(SMALL)}


@pytest.mark.parametrize("name", TOY_CHECKS)
def test_every_law_holds_and_what_is_false_is_found_false(found, name):
    check = found[name]
    if check.kind == "claim":
        assert check.verdict in ("supported", "partly", "contradicted")
    elif name == "columns-schur-naive":
        assert check.verdict == "contradicted"
    else:
        broken = [case for case in check.cases if not case.holds]
        assert check.verdict == "supported", broken


@pytest.mark.parametrize("name", TOY_CHECKS)
def test_a_wrong_constant_gives_contradicted(found, name):
    factor = 1e40 if name in CLAIMED else LOOSE.get(name, 1.3)
    assert found[name].strengthened(factor).verdict == "contradicted"


@pytest.mark.parametrize("name", TOY_CHECKS)
def test_every_check_says_what_it_states_and_under_which_assumptions(found, name):
    check = found[name]
    assert check.item in ITEMS
    assert check.claim in ("", *CLAIMS)
    assert len(check.statement) > 30
    assert check.assumptions
    json.dumps(check.record(), allow_nan=True)


def test_the_paper_claims_hold_only_in_part(found):
    assert found["pl-claim"].verdict == "partly"
    held = {case.name: case.holds for case in found["pl-claim"].cases}
    for family in ("well-conditioned", "rank-deficient"):
        assert held[f"columns, {family}"]
        assert held[f"columns in the box, proximal, {family}"]
        assert not held[f"rows + columns globally, {family}"]
        assert not held[f"columns through clipping, {family}"]


def test_the_same_settings_give_the_same_tables():
    names = ["sgd-ball", "relaxation-modules", "reach-claim", "joint-local"]
    first, again = (run_checks(SMALL, names) for _ in range(2))
    assert [check.record() for check in first] == [check.record() for check in again]
    for name, frame in figure_frames(first).items():
        pd.testing.assert_frame_equal(frame, figure_frames(again)[name])


def test_an_unknown_check_and_a_useless_setting_are_refused():
    with pytest.raises(ValueError, match="unknown checks \\['nonsense'\\]"):
        run_checks(SMALL, ["nonsense"])
    with pytest.raises(ValueError, match="steps\n.*greater than or equal to 1000"):
        Settings(steps=5)


def _network(ratio: float = 0.1) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"parameters": kind, "step": step, "ratio": ratio, "largest": 1.0, "smallest": -0.1}
            for kind in ("gates, as trained", "gates, before clipping", "LoRA")
            for step in (0, 10)
        ]
    )


def test_network_checks_can_hold_and_can_fail():
    assert [check.verdict for check in network_checks(_network())] == ["supported", "supported"]
    for check in network_checks(_network()):
        assert check.strengthened(1e6).verdict == "contradicted"
    assert network_checks(_network(ratio=0.0))[0].verdict == "contradicted"
    with pytest.raises(ValueError, match=r"no rows of \['LoRA'\]; run probe_network again"):
        network_checks(_network().query("parameters != 'LoRA'"))


def _check(kind: str, *measured: float) -> Check:
    cases = tuple(Case(str(i), "at most", 1.0, value) for i, value in enumerate(measured))
    return Check("x-claim", 3, kind, "a | b", "none", cases, claim="pl")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "measured", "verdict"),
    [
        ("law", (0.5, 1.0), "supported"),
        ("law", (0.5, 1.1), "contradicted"),
        ("claim", (0.5, 1.1), "partly"),
        ("claim", (2.0, 1.1), "contradicted"),
        ("law", (np.nan,), "contradicted"),
    ],
)
def test_verdicts_follow_from_the_cases(kind, measured, verdict):
    assert _check(kind, *measured).verdict == verdict


def test_relations_and_tolerances_decide_a_case():
    assert Case("a", "equal", 2.0, 2.09, 0.05).holds
    assert not Case("a", "equal", 2.0, 2.11, 0.05).holds
    assert Case("a", "at least", 2.0, 1.91, 0.05).holds
    assert not Case("a", "at most", 2.0, 2.2, 0.05).holds
    assert Case("a", "at most", 2.0, 1.0).tightness == 0.5
    assert Case("a", "at least", 2.0, 4.0).tightness == 0.5


@pytest.mark.parametrize(
    ("relation", "measured", "tolerance", "power"),
    [
        ("at most", 1.0, 0.0, 2.0),
        ("at most", 1.0, 0.1, 2.2),
        ("at least", 5.0, 0.0, 2.5),
        ("equal", 2.0, 0.25, 4 / 3),  # up 1/0.75, down 1.25
        ("equal", 2.0, 1.0, np.inf),  # zero would be accepted
        ("at most", 3.0, 0.0, 1.0),  # broken as it is
        ("at most", 0.0, 0.0, np.inf),
    ],
)
def test_the_power_of_a_case_is_the_factor_that_breaks_it(relation, measured, tolerance, power):
    case = Case("a", relation, 2.0, measured, tolerance)
    assert case.power == pytest.approx(power)
    if 1 < power < np.inf:
        wrong = [case.strengthened(1.001 * power), case.strengthened(1 / (1.001 * power))]
        assert not all(found.holds for found in wrong[: 2 if relation == "equal" else 1])
        assert case.strengthened(0.999 * power).holds or relation == "equal"


def test_the_table_says_what_factor_a_law_notices():
    law = Check(
        "x", 1, "law", "s", "a", (Case("a", "at most", 2.0, 1.6), Case("b", "at most", 9, 1))
    )
    assert law.power == pytest.approx(1.25)
    assert "| × 1.25 | 2 of 2 |" in check_markdown([law.record()], "")
    assert "| × 1.34 |" in check_markdown([{**law.record(), "power": 4 / 3}], "")
    assert _check("claim", 0.5).record()["power"] is None


def test_a_case_without_a_positive_constant_is_refused():
    with pytest.raises(ValueError, match="must be positive and finite, got 0"):
        Case("a", "at most", 0.0, 1.0)
    with pytest.raises(ValueError, match="has no cases"):
        Check("x", 1, "law", "s", "a", ())


def test_medians_of_the_comparison_stand_with_their_intervals(found):
    frames = figure_frames(list(found.values()))
    text = comparison_markdown(frames["conditioning"], frames["speed"], frames["reach"])
    row = frames["speed"].iloc[0]
    assert f"{printed(row['median'])} [{printed(row['low'])}, {printed(row['high'])}]" in text
    assert text.count("| rank-deficient |") == 3
    assert text.count("| dense |") == 1


def test_a_claim_is_judged_from_all_its_checks():
    records = [_check("claim", 0.5).record(), {**_check("claim", 2.0).record(), "id": "y-claim"}]
    assert judge_claims(records)["pl"]["verdict"] == "partly"
    assert judge_claims(records[:1])["pl"]["verdict"] == "supported"
    text = check_markdown(records, "Setting.")
    assert r"a \| b" in text
    assert "**contradicted**" in text


def test_numbers_are_printed_as_a_reader_writes_them():
    assert printed(0.1234) == "0.123"
    assert printed(1e-5) == "10⁻⁵"
    assert printed(2.5e-7) == "2.5·10⁻⁷"
    assert printed(np.inf) == "∞"


@pytest.mark.parametrize(
    ("name", "place", "wrong"),
    [
        ("relaxation-moments", "smoothing.mean_clip", lambda f: lambda m, s: f(m, 1.01 * s)),
        ("relaxation-modules", "smoothing.square_clip", lambda f: lambda m, s: f(m + 0.05, s)),
        ("sgd-decaying", "convergence.decaying_constant", lambda f: lambda *a: 9 * f(*a)),
        ("sgd-linear", "convergence.expected_excess", lambda f: lambda *a: 2 * f(*a)),
        ("box-prox-pl", "clipping.box_constant", lambda f: lambda q: q.smoothness),
        ("lora-zeros", "lowrank.zero_eigenvalues", lambda f: lambda *a: f(*a) + 1),
        ("joint-saddle", "joint.saddle_coupling", lambda f: lambda p: f(p) + 0.1),
        ("penalty-half-open", "sparsity.penalty_minimiser", lambda f: lambda s, p: f(s, 1.2 * p)),
        ("columns-schur", "single.schur_lower_bound", lambda f: lambda a, b: 30 * f(a, b)),
    ],
)
def test_a_wrong_formula_is_found_out(monkeypatch, name, place, wrong):
    module, function = place.split(".")
    target = f"theory.checks.{module}.{function}"
    original = getattr(importlib.import_module(f"theory.checks.{module}"), function)
    assert TOY_CHECKS[name](SMALL).verdict == "supported"
    monkeypatch.setattr(target, wrong(original))
    assert TOY_CHECKS[name](SMALL).verdict == "contradicted"
