"""Every check at a small size: verdicts are computed, and every one of them can fail."""

from __future__ import annotations

import importlib
import json

import pandas as pd
import pytest

from theory.checks.encoder import network_checks
from theory.checks.settings import Settings
from theory.evidence import EXACT, Check
from theory.study import TOY_CHECKS, figure_frames, run_checks
from theory.tables import CLAIMS, ITEMS, comparison_markdown, printed

SMALL = Settings(
    problems=2, trials=6, limit=60, runs=24, steps=1500, samples=20_000, gate_steps=900
)

# Bounds whose looseness no case can mend, by what they notice at this size.
LOOSE = {
    "box-descent": 10,
    "clip-plateau": 1e8,
    "columns-condition": 10,
    "columns-descent": 10,
    "joint-lipschitz": 100,
    "joint-local": 100,
    "joint-region": 1e4,
    "rows-descent": 10,
    "flat-shared": 4,
    "penalty-endpoint": 1e6,
    "penalty-threshold": 2,
    "sgd-decaying": 5,
    "sgd-stationary": 2,
}


@pytest.fixture(scope="module")
def found() -> dict[str, Check]:
    """Every check of the study."""
    return {check.id: check for check in run_checks(SMALL)}


@pytest.mark.parametrize("name", TOY_CHECKS)
def test_every_law_holds_and_what_is_false_is_found_false(found, name):
    check = found[name]
    if name == "columns-schur-naive":
        assert check.verdict == "disproved"
    elif check.kind != "claim":
        broken = [case for case in check.cases if not case.holds]
        assert check.verdict == "supported", broken


@pytest.mark.parametrize("name", TOY_CHECKS)
def test_a_law_notices_a_factor_of_five_quarters_on_each_of_its_constants(found, name):
    check = found[name]
    if check.kind == "claim":
        return
    factor = LOOSE.get(name, EXACT)
    assert check.power <= factor
    for constant in check.constants:
        assert check.strengthened(factor, constant).verdict == "contradicted"


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


def test_medians_of_the_comparison_stand_with_their_intervals(found):
    frames = figure_frames(list(found.values()))
    text = comparison_markdown(frames["conditioning"], frames["speed"], frames["reach"])
    row = frames["speed"].iloc[0]
    assert f"{printed(row['median'])} [{printed(row['low'])}, {printed(row['high'])}]" in text
    assert text.count("| rank-deficient |") == 3
    assert text.count("| dense |") == 1


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
