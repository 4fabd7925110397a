"""Verdicts on the paper's claims follow from the verdicts of their checks."""

from __future__ import annotations

from typing import Any

import pytest

from theory.checks.settings import Settings
from theory.study import TOY_CHECKS
from theory.verdicts import CLAIMS, PARTS, judge_claims, verdict_markdown, whole


def record(claim: str, name: str, verdict: str, on: str = "") -> dict[str, Any]:
    return {"claim": claim, "id": name, "kind": "claim", "verdict": verdict, "depends_on": on}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("supported", "supported", "supported"),
        ("supported", "proved", "supported"),
        ("supported", "contradicted", "depends"),
        ("supported", "depends", "depends"),
        ("contradicted", "contradicted", "contradicted"),
        ("supported", "disproved", "contradicted"),
        ("depends", "proved in part", "contradicted"),
        ("inconclusive", "supported", "supported"),
        ("inconclusive", "inconclusive", "inconclusive"),
    ],
)
def test_a_counterexample_contradicts_and_measurements_that_differ_depend(first, second, expected):
    records = [record("pl", "pl-claim", first), record("pl", "network-pl-claim", second)]
    for given in (records, records[::-1]):
        assert list(judge_claims(given)["verdict"]) == [expected]


@pytest.mark.parametrize("verdict", ["supported", "depends", "disproved"])
def test_a_theorem_that_denies_one_setting_of_a_check_denies_the_claim(verdict):
    """The claim has no conditions, also where other settings of its check are measured."""
    named = {**record("conditioning", "conditioning-claim", verdict), "disproved": 1}
    judged = judge_claims([named, record("conditioning", "speed-claim", "supported")])
    assert list(judged["verdict"]) == ["contradicted"]
    told = "" if verdict == "disproved" else ", disproved in one setting"
    assert judged["checks"][0].startswith(f"`conditioning-claim` {verdict}{told};")


def test_the_start_of_rank_one_denies_that_gates_are_better_conditioned():
    check = TOY_CHECKS["conditioning-claim"](Settings(problems=2, trials=6, limit=60))
    assert check.proofs == (0, 1)
    assert list(judge_claims([check.record()])["verdict"]) == ["contradicted"]


def test_a_contradicted_part_contradicts_the_claim_and_no_other_part():
    judged = judge_claims(
        [
            record("conditioning", "spurious-claim", "disproved"),
            record("conditioning", "speed-claim", "depends", "rank, family"),
            record("conditioning", "network-conditioning-claim", "supported"),
            {**record("conditioning", "spurious-minima", "supported"), "kind": "law"},
        ]
    )
    assert judged[["part", "verdict"]].to_numpy().tolist() == [
        ["simpler", "contradicted"],
        ["better conditioned", "depends"],
    ]
    assert judged["checks"][1] == (
        "`speed-claim` depends on rank, family; `network-conditioning-claim` supported"
    )
    text = verdict_markdown(judged)
    title = (
        f"| conditioning: {CLAIMS['conditioning']} | **contradicted** | simpler | contradicted |"
    )
    assert title in text
    assert "|  |  | better conditioned | depends | `speed-claim` depends on" in text


def test_a_claim_of_two_parts_is_supported_only_if_both_are():
    assert whole(["supported", "supported"]) == "supported"
    assert whole(["supported", "depends"]) == "depends"
    assert whole(["inconclusive", "depends"]) == "inconclusive"
    assert whole(["depends", "contradicted"]) == "contradicted"


def test_a_check_outside_all_parts_is_refused():
    with pytest.raises(ValueError, match="'new-claim' is about the claim 'pl', but in none"):
        judge_claims([record("pl", "new-claim", "supported")])


def test_the_parts_name_checks_that_exist():
    named = [name for parts in PARTS.values() for checks in parts.values() for name in checks]
    assert len(named) == len(set(named))
    assert {name for name in named if not name.startswith("network-")} <= set(TOY_CHECKS)
    assert list(PARTS) == list(CLAIMS)
