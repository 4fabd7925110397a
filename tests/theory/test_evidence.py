"""Cases, verdicts and the power of a check follow from the measurements."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from theory.cases import Case
from theory.evidence import Check
from theory.tables import (
    case_frame,
    check_markdown,
    flat_markdown,
    level_markdown,
    printed,
    share_markdown,
)

positive = st.floats(1e-6, 1e6)
relations = st.sampled_from(["equal", "at least", "at most"])
tolerances = st.floats(0.0, 0.9)


def _check(kind: str, *measured: float) -> Check:
    cases = tuple(
        Case(str(i), "at most", 1.0, value, levels={"setting": str(i)})
        for i, value in enumerate(measured)
    )
    return Check("x-claim", 3, kind, "a | b", "none", cases, claim="pl")  # type: ignore[arg-type]


def _law(*cases: Case) -> Check:
    return Check("x", 1, "law", "s", "a", cases)


def _claim(*cases: Case) -> Check:
    named = tuple(replace(case, levels=case.levels or {"setting": case.name}) for case in cases)
    return Check("x-claim", 3, "claim", "s", "a", named, claim="pl")


@pytest.mark.parametrize(
    ("kind", "measured", "verdict"),
    [
        ("law", (0.5, 1.0), "supported"),
        ("law", (0.5, 1.1), "contradicted"),
        ("bound", (0.5, 1.1), "contradicted"),
        ("claim", (0.5, 1.1), "depends"),
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


def test_a_case_without_a_positive_constant_is_refused():
    with pytest.raises(ValueError, match="must be positive and finite, got 0"):
        Case("a", "at most", 0.0, 1.0)
    with pytest.raises(ValueError, match="has no cases"):
        Check("x", 1, "law", "s", "a", ())


@given(relations, positive, positive, tolerances)
def test_the_power_of_a_case_is_the_factor_at_which_it_breaks(relation, predicted, ratio, slack):
    case = Case("a", relation, predicted, predicted * ratio, slack)
    if not case.holds:
        assert case.power == 1
        return
    assume(math.isfinite(case.power))

    def breaks(factor: float) -> bool:
        ways = (factor, 1 / factor) if relation == "equal" else (factor,)
        return all(not case.strengthened(way).holds for way in ways)

    assert breaks(case.power * 1.001)
    if case.power > 1.002:
        assert not breaks(case.power / 1.001)


@pytest.mark.parametrize(
    ("relation", "measured", "tolerance", "power"),
    [
        ("at most", 1.0, 0.0, 2.0),
        ("at most", 1.0, 0.1, 2.2),
        ("at least", 5.0, 0.0, 2.5),
        ("equal", 2.0, 0.25, 4 / 3),  # up 1/0.75, down 1.25
        ("equal", 2.0, 1.0, np.inf),  # zero would hold
        ("at most", 3.0, 0.0, 1.0),  # broken already
        ("at most", 0.0, 0.0, np.inf),
    ],
)
def test_the_power_of_a_case_has_known_values(relation, measured, tolerance, power):
    assert Case("a", relation, 2.0, measured, tolerance).power == pytest.approx(power)


@given(st.lists(st.tuples(positive, st.booleans()), min_size=1, max_size=5))
def test_the_power_of_a_claim_is_how_far_its_bar_moves_to_another_verdict(found):
    cases = [Case(str(i), "at least", 1.0, m if up else 1 / m) for i, (m, up) in enumerate(found)]
    check = _claim(*cases)
    power = check.power
    assert any(
        check.strengthened(factor).verdict != check.verdict
        for factor in (power * 1.001, 1 / (power * 1.001))
    )
    for factor in (power / 1.001, 1.001 / power) if power > 1.002 else ():
        assert check.strengthened(factor).verdict == check.verdict


def test_each_of_several_constants_must_be_noticed():
    tight = Case("tight", "equal", 1.0, 1.0, 0.1, constant="one")
    loose = Case("loose", "at most", 1.0, 0.2, constant="other")
    check = _law(tight, loose)
    assert check.constants == ("one", "other")
    assert check.power == pytest.approx(5.0)
    assert check.strengthened(1.25, "one").verdict == "contradicted"
    assert check.strengthened(1.25, "other").verdict == "supported"
    assert _law(tight).power == pytest.approx(1 / 0.9)


def test_cases_built_to_attain_a_constant_give_power_and_are_not_counted():
    drawn = Case("drawn", "at least", 1.0, 3.0)
    built = Case("built", "equal", 1.0, 1.0, built=True)
    check = _law(drawn, built)
    assert (check.held, check.record()["cases"]) == (1, 1)
    assert check.typical == pytest.approx(1 / 3)
    assert check.power == 1
    assert _law(drawn, Case("built", "equal", 1.0, 2.0, built=True)).verdict == "contradicted"
    assert _law(built).record()["cases"] == 1


def test_a_setting_that_a_theorem_decides_has_no_vote():
    held, failed = Case("a", "at least", 1.0, 2.0), Case("b", "at least", 1.0, 0.5)
    proved = Case("c", "at least", 1.0, 2.0, proof="holds")
    disproved = Case("d", "at least", 1.0, 0.5, proof="fails")
    assert _claim(held, disproved).verdict == "supported"
    assert _claim(failed, proved).verdict == "contradicted"
    assert _claim(proved).verdict == "proved"
    assert _claim(disproved).verdict == "disproved"
    assert _claim(proved, disproved).verdict == "proved in part"
    assert _claim(held, proved, disproved).record()["cases"] == 1
    # A measurement that contradicts a proof changes the verdict.
    assert _claim(held, Case("e", "at least", 1.0, 2.0, proof="fails")).verdict == "contradicted"
    with pytest.raises(ValueError, match=r"only the cases of a claim are proved.*\['c'\]"):
        _law(proved)


def test_a_setting_whose_interval_contains_the_bar_has_no_vote():
    tie = Case("a", "at least", 1.0, 1.01, low=0.9, high=1.2)
    assert _claim(tie).verdict == "inconclusive"
    assert _claim(tie, Case("b", "at least", 1.0, 2.0)).verdict == "supported"


settings_with_intervals = st.lists(
    st.tuples(st.floats(0.01, 100), st.floats(1, 10), st.floats(1, 10)), min_size=1, max_size=6
)


def _decided(relation: str, found: list[tuple[float, float, float]], bar: float) -> str:
    """The verdict of settings (median, factors below and above) under a bar, from their ends."""
    up = [low > bar for median, below, above in found
          if (low := median / below) > bar or median * above < bar]  # fmt: skip
    votes = {above == (relation == "at least") for above in up}
    if not votes:
        return "inconclusive"
    return "depends" if len(votes) > 1 else "supported" if True in votes else "contradicted"


@given(st.sampled_from(["at least", "at most"]), settings_with_intervals)
def test_the_power_of_a_claim_is_the_factor_at_which_its_verdict_changes(relation, found):
    """By the ends of intervals, not by medians: a setting becomes undecided on the way."""
    check = _claim(
        *(
            Case(str(i), relation, 1.0, median, low=median / below, high=median * above)
            for i, (median, below, above) in enumerate(found)
        )
    )
    verdict = _decided(relation, found, 1.0)
    assert check.verdict == verdict
    ends = [end for median, below, above in found for end in (median / below, median * above)]
    changes = [
        max(end, 1 / end)
        for end in ends
        for bar in (end * (1 - 1e-7), end * (1 + 1e-7))
        if _decided(relation, found, bar) != verdict
    ]
    assert check.power == pytest.approx(min(changes), rel=1e-5)


def test_a_claim_notices_less_than_its_medians_say():
    held = Case("a", "at least", 1.0, 30.0, low=10.0, high=90.0)
    failed = Case("b", "at least", 1.0, 0.01, low=0.005, high=0.02)
    assert _claim(held).power == pytest.approx(10)
    assert _claim(held, failed).power == pytest.approx(10)  # then a has no vote
    assert held.power == pytest.approx(10)
    assert failed.power == 1
    # A stale vote would make this 30.
    assert _claim(held, failed).strengthened(11).verdict == "contradicted"
    proof = Case("c", "at least", 1.0, 0.0, proof="fails")
    assert _claim(held, proof).power == pytest.approx(10)
    assert _claim(proof).power == math.inf


def _setting(holds: bool, **levels: str) -> Case:
    return Case(str(levels), "at least", 1.0, 2.0 if holds else 0.5, levels=levels)


outcomes = st.fixed_dictionaries(
    {(family, rank): st.booleans() for family in ("well", "ill") for rank in ("1", "2", "4")}
)


@given(outcomes, st.integers(1, 20), st.sampled_from(["well", "ill"]))
def test_listing_settings_of_one_kind_again_steers_no_verdict(found, times, favoured):
    """A kind that is listed many times under other names has one voice."""
    cases = [_setting(h, family=f, rank=r) for (f, r), h in found.items()]
    more = [
        _setting(holds, family=f"{family} {again}", rank=rank)
        for (family, rank), holds in found.items()
        for again in range(times)
        if family == favoured
    ]
    plain, padded = _claim(*cases), _claim(*more, *cases)
    assert padded.verdict == plain.verdict
    assert padded.depends_on == plain.depends_on
    assert _claim(*reversed(padded.cases)).verdict == plain.verdict
    levels = padded.by_level()
    assert {level: levels["family"][level] for level in ("well", "ill")} == plain.by_level()[
        "family"
    ]
    assert (
        levels["rank"].items()
        >= {
            rank: verdict
            for rank, verdict in plain.by_level()["rank"].items()
            if verdict == "depends"
        }.items()
    )


def test_a_claim_depends_on_the_factors_of_which_another_level_changes_the_outcome():
    check = _claim(
        *(
            _setting(rank == "1", family=family, rank=rank)
            for family in ("well", "ill")
            for rank in ("1", "2", "4")
        )
    )
    assert (check.verdict, check.depends_on) == ("depends", ("rank",))
    assert check.by_level() == {
        "family": {"well": "depends", "ill": "depends"},
        "rank": {"1": "supported", "2": "contradicted", "4": "contradicted"},
    }
    apart = _claim(_setting(True, family="well", rank="1"), _setting(False, family="ill", rank="2"))
    assert apart.depends_on == ("family", "rank")
    assert _claim(_setting(True, family="well", rank="1")).depends_on == ()


def test_settings_of_a_claim_are_distinct_levels_of_the_same_factors():
    one = _setting(True, family="well")
    with pytest.raises(ValueError, match="'well'.*listed more than once; join its draws"):
        _claim(one, one)
    with pytest.raises(ValueError, match="needs a level of the same factors"):
        _claim(one, _setting(True, rank="1"))
    with pytest.raises(ValueError, match="needs a level of the same factors"):
        Check(
            "x-claim",
            3,
            "claim",
            "s",
            "a",
            (Case("a", "at most", 1, 1), Case("b", "at most", 1, 1)),
        )


def test_a_setting_is_decided_by_the_interval_over_its_draws():
    levels = {"family": "well"}
    random = np.random.default_rng(0)
    for centre, undecided, holds in ((2.0, False, True), (0.5, False, False), (1.0, True, None)):
        draws = centre * np.exp(0.1 * random.standard_normal(60))
        case = Case.of_draws(levels, "at least", 1.0, draws)
        assert case.low < np.median(draws) < case.high
        assert case.undecided == undecided
        assert holds is None or case.holds == holds
    # Few draws: their range. One: nothing, wherever the bar is.
    assert Case.of_draws(levels, "at least", 1.0, np.array([1.1, 3.0, 0.9])).undecided
    assert not Case.of_draws(levels, "at least", 1.0, np.array([1.1, 3.0, 1.2])).undecided
    single = Case.of_draws(levels, "at least", 1.0, np.array([3.0]))
    assert single.undecided
    assert single.strengthened(1e6).undecided


def test_more_draws_of_one_setting_give_it_no_second_voice():
    """The share of draws that hold does not matter either: the median has the voice."""
    loud = Case.of_draws({"family": "well"}, "at least", 1.0, np.full(500, 2.0))
    quiet = Case.of_draws({"family": "ill"}, "at least", 1.0, np.full(8, 0.5))
    check = _claim(loud, quiet)
    assert (check.verdict, check.depends_on) == ("depends", ("family",))


def test_tables_say_where_claims_hold():
    check = _claim(
        _setting(True, family="well", rank="1"),
        _setting(False, family="ill", rank="1"),
        replace(_setting(True, family="over", rank="1"), low=0.5, high=4.0),
    )
    text = level_markdown([check.record(), _check("claim", 0.5).record()])
    assert text.splitlines()[-2:] == [
        "| `x-claim` | **family** | well | ill |  | over |",
        "| `x-claim` | rank |  |  | 1 (1 of 2) |  |",
    ]
    assert "by family" in check_markdown([check.record()], "")


def test_shares_and_counts_are_written_with_their_intervals():
    minima = pd.DataFrame(
        [{"family": "well", "teacher": "dense", "spurious_problems": 8, "spurious": 0.5,
          "spurious_low": 0.157, "spurious_high": 0.843, "missed_problems": 7, "missed": 0.0,
          "missed_low": 0.0, "missed_high": 0.41}]
    )  # fmt: skip
    relaxed = pd.DataFrame(
        [{"family": "well", "sigma": s, "problems": 8, "single": s, "low": 0.0, "high": 1.0}
         for s in (0.1, 0.5)]
    )  # fmt: skip
    lines = share_markdown(minima, relaxed).splitlines()
    assert "| well, dense | 0.5 [0.157, 0.843] of 8 | 0 [0, 0.41] of 7 |" in lines
    assert lines[-1] == "| well | 0.1 [0, 1] | 0.5 [0, 1] |"
    counted = pd.DataFrame(
        [{"model": "M", "layers": 6, "parameters": "independent gates", "size": 1000, "flat": 111,
          "share": 0.111},
         {"model": "M", "layers": 6, "parameters": "LoRA 8", "size": 8000, "flat": 28,
          "share": 0.0035},
         {"model": "M", "layers": 6, "parameters": "LoRA 8, start", "size": 8000, "flat": 4100,
          "share": 0.5125}]
    )  # fmt: skip
    assert flat_markdown(counted) == (
        "Flat directions at the shape of M, 6 layers: 111 of 1,000 (11.10 %) for independent "
        "gates, 28 of 8,000 (0.35 %) for LoRA r = 8 on the same layers at factors of full rank, "
        "4,100 of 8,000 (51.25 %) at its start, where B = 0.\n"
    )


def test_a_table_escapes_what_Markdown_reads_as_a_column():
    proof = _claim(Case("d", "at least", 1.0, 0.5, proof="fails")).record()
    text = check_markdown([_check("claim", 2.0).record(), proof], "Setting.")
    assert r"a \| b" in text
    assert "**contradicted**" in text
    assert "| 1 disproved | **disproved** |" in text


def test_the_tables_say_which_factor_is_noticed():
    check = _law(Case("a", "equal", 1.0, 1.0, 0.1), Case("b", "equal", 1.0, 1.0, built=True))
    assert "| × 1 | 1 of 1 | **supported** |" in check_markdown([check.record()], "Setting.")
    assert "| × 1.34 |" in check_markdown([{**check.record(), "power": 4 / 3}], "")
    frame = case_frame([check])
    assert list(frame["power"]) == [pytest.approx(1.111, abs=1e-3), 1.0]
    assert list(frame["built"]) == [False, True]


def test_numbers_are_printed_as_a_reader_writes_them():
    assert printed(0.1234) == "0.123"
    assert printed(1e-5) == "10⁻⁵"
    assert printed(2.5e-7) == "2.5·10⁻⁷"
    assert printed(np.inf) == "∞"
