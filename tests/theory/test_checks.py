"""Every check at a small size: verdicts are computed, and each of them can fail."""

from __future__ import annotations

import json
from functools import partial

import pandas as pd
import pytest

from theory.checks.encoder import network_checks
from theory.checks.settings import Settings
from theory.conditioning import ranks_of
from theory.evidence import EXACT, Check
from theory.problems import FAMILIES, TEACHERS
from theory.study import TOY_CHECKS, figure_frames, run_checks
from theory.tables import ITEMS, closing_markdown, comparison_markdown, printed
from theory.verdicts import CLAIMS

SMALL = Settings(
    problems=2, trials=6, limit=60, runs=24, steps=1500, samples=20_000, gate_steps=600
)


SLOW = (
    "joint-critical", "penalty-endpoint", "penalty-minimiser", "penalty-half-open", "binary-claim",
    "plateau-time", "convergence-claim", "relaxation-bias", "relaxation-vertices",
    "one-minimum-claim", "adamw-ball", "adamw-rest", "adamw-rare-claim",
    "joint-clarke", "joint-price-minima",
)  # fmt: skip
"""Checks of more than a second. Others of the same item are unmarked."""

DISPROVED = ("columns-schur-naive", "spurious-claim", "start-claim", "one-minimum-claim")
"""Claims that a counterexample decides."""

NAMES = [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in TOY_CHECKS]


class Found(dict[str, Check]):
    """Runs a check when it is first asked for."""

    def __missing__(self, name: str) -> Check:
        (self[name],) = run_checks(SMALL, [name])
        return self[name]


@pytest.fixture(scope="module")
def found() -> Found:
    """The checks of the study."""
    return Found()


@pytest.mark.parametrize("name", NAMES)
def test_every_check_holds_with_power_and_says_what_it_states(found, name):
    """One test, so that one worker runs the check once."""
    check = found[name]
    _law_holds_and_what_is_false_is_found_false(check)
    _law_notices_five_quarters_on_each_of_its_constants(check)
    _measurements_agree_with_proofs(check)
    assert check.item in ITEMS
    assert check.claim in ("", *CLAIMS)
    assert len(check.statement) > 30
    assert check.assumptions
    json.dumps(check.record(), allow_nan=True)


def _law_holds_and_what_is_false_is_found_false(check: Check) -> None:
    if check.id in DISPROVED:
        assert check.verdict == "disproved"
    elif check.kind != "claim":
        broken = [case for case in check.cases if not case.holds]
        assert check.verdict == "supported", broken


def _law_notices_five_quarters_on_each_of_its_constants(check: Check) -> None:
    if check.kind == "bound":
        assert 1 < check.power < 1000, "a bound is loose, else it is a law; and it is not idle"
    if check.kind == "law":
        assert check.power <= EXACT
        for constant in check.constants:
            assert check.strengthened(EXACT, constant).verdict == "contradicted"


def _measurements_agree_with_proofs(check: Check) -> None:
    for case in check.cases:
        assert not case.proof or case.holds == (case.proof == "holds"), case


@pytest.mark.parametrize("steps", [10, 20])
def test_too_few_steps_to_balance_any_gate_break_the_law_and_stop_no_workflow(steps):
    (check,) = run_checks(Settings(gate_steps=steps), ["joint-clarke"])
    assert not all(case.holds for case in check.cases)


@pytest.mark.parametrize("ranks", [(1,), (4,), (1, 2, 4)])
def test_the_ranks_that_are_listed_decide_no_verdict_on_reach(found, monkeypatch, ranks):
    """A vote of pairs would follow the list; the dependence on the teacher stays.

    The descents are those of all checks, with all ranks.
    """
    assert found["reach-claim"].verdict == "depends"  # after the descents
    monkeypatch.setattr("theory.checks.comparison.ranks_of", partial(ranks_below, ranks=ranks))
    check = TOY_CHECKS["reach-claim"](SMALL)
    assert check.verdict == "depends"
    assert "teacher" in check.depends_on
    assert check.by_level()["teacher"]["gates"] == "supported"


def ranks_below(family: str, ranks: tuple[int, ...]) -> tuple[int, ...]:
    """Those of the ranks that are below full rank in a family."""
    return tuple(rank for rank in ranks if rank in ranks_of(family))


def test_reach_is_judged_in_every_family_and_few_samples_stop_lora_before_gates(found):
    """Two samples of four outputs: 16 gates fit any targets exactly, and rank 1 does not."""
    check = found["reach-claim"]
    assert set(check.by_level()["family"]) == set(FAMILIES)
    held = {case.name for case in check.cases if case.votes and case.holds}
    assert {f"over-parameterised, {t}, LoRA 1" for t in TEACHERS} <= held
    assert not any(", dense," in name or ", low-rank," in name for name in held
                   if not name.startswith("over-parameterised"))  # fmt: skip
    # With rank 2 both fit exactly, and rounding decides nothing.
    equal = [c for c in check.cases if c.name.startswith("over") and c.name.endswith("LoRA 2")]
    assert [case.undecided for case in equal] == [True] * 3


def test_what_theorems_decide_about_pl_is_one_case_each(found):
    check = found["pl-global-claim"]
    assert check.verdict == "proved in part"
    assert {case.name: case.proof for case in check.cases} == {
        "columns": "holds",
        "rows": "holds",
        "columns in the box, proximal": "holds",
        "rows + columns, near ω = 1": "holds",
        "rows + columns": "fails",
        "columns through clipping": "fails",
    }


@pytest.mark.slow
def test_adam_rests_elsewhere_exactly_where_gradients_are_rare(found):
    assert [case.holds for case in found["adamw-rare-claim"].cases] == [True, True, False, False]


def test_the_same_settings_give_the_same_tables():
    names = ["sgd-ball", "relaxation-modules", "reach-dense", "joint-curvature"]
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
            {"parameters": kind, "seed": seed, "step": step, "loss": 0.5, "ratio": ratio,
             "largest": 2.0 if kind == "LoRA" else 1.0, "smallest": 0.1}
            for kind in ("gates, as trained", "gates, before clipping", "LoRA")
            for seed in (0, 1)
            for step in (0, 10)
        ]
    )  # fmt: skip


def _closing(added: float = 0.1) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"seed": seed, "share": share, "closed": 4, "added": added, "linear": 0.05,
             "second": added - 0.05, "curved": 0.02, "steepest": 0.1, "gauss_newton": 0.01,
             "coherence": 2.0, "second_bound": 0.25, "bound": 0.3}
            for seed in (0, 1)
            for share in (0.1, 0.3)
        ]
    )  # fmt: skip


def test_network_checks_can_hold_and_can_fail():
    found = network_checks(_network(), _closing())
    assert [check.verdict for check in found] == ["supported"] * 4
    for check in found:
        assert check.strengthened(1e6).verdict == "contradicted"
    assert network_checks(_network(ratio=0.0), _closing())[0].verdict == "contradicted"
    with pytest.raises(ValueError, match=r"no rows of \['LoRA'\]; run probe_network again"):
        network_checks(_network().query("parameters != 'LoRA'"), _closing())


def _judged(frame: pd.DataFrame) -> dict[str, Check]:
    return {check.id: check for check in network_checks(frame, _closing())}


def test_condition_number_and_rate_of_a_network_are_judged_apart_and_by_parameters():
    frame = _network()
    trained = frame["parameters"] == "gates, as trained"
    frame.loc[trained, "smallest"] = 0.01  # condition number 100, LoRA's is 20
    found = _judged(frame)
    check = found["network-conditioning-claim"]
    assert (check.verdict, check.depends_on) == ("depends", ("parameters",))
    assert check.by_level()["parameters"] == {
        "gates, as trained": "contradicted",
        "gates, before clipping": "supported",
    }
    assert found["network-rate-claim"].verdict == "supported"
    frame = _network()
    frame.loc[trained & (frame["step"] == 0), "ratio"] = 0.01
    found = _judged(frame)
    assert found["network-conditioning-claim"].verdict == "supported"
    check = found["network-rate-claim"]
    assert (check.verdict, check.depends_on) == ("depends", ("parameters", "step"))


def test_saturated_gates_without_any_slope_are_worse_than_every_other_landscape():
    """Zero gradient and zero curvature, 0/0, at a loss that is not minimal."""
    frame = _network()
    flat = (frame["parameters"] == "gates, as trained") & (frame["step"] == 0)
    frame.loc[flat, ["ratio", "largest", "smallest"]] = 0.0
    for name in ("network-conditioning-claim", "network-rate-claim"):
        check = _judged(frame)[name]
        case = next(case for case in check.cases if case.name == "gates, as trained, 0")
        assert (case.measured, case.votes, case.holds) == (1e6, True, False)
        assert check.verdict == "depends"
    # Where LoRA is flat, too, nothing is compared.
    frame.loc[frame["step"] == 0, ["ratio", "largest", "smallest"]] = 0.0
    tied = [case for case in _judged(frame)["network-rate-claim"].cases if case.undecided]
    assert {case.levels["step"] for case in tied} == {"0"}


def test_closing_that_adds_less_than_the_first_order_contradicts_the_network_s_half():
    # First order 0.05, half the Gauss–Newton part 0.005.
    for added, verdict in ((0.1, "supported"), (0.056, "supported"), (0.054, "contradicted"),
                           (0.04, "contradicted")):  # fmt: skip
        assert network_checks(_network(), _closing(added))[3].verdict == verdict


def test_closed_gates_without_effect_test_nothing():
    frame = _closing()
    one, both = frame["share"] == 0.1, ["second", "gauss_newton", "second_bound"]
    frame.loc[one & (frame["seed"] == 0), both] = 0.0
    sign = network_checks(_network(), frame)[3].cases[0]
    assert (sign.name, sign.undecided) == ("10 %", True)  # one seed is left
    frame.loc[one, both] = 0.0
    assert len(network_checks(_network(), frame)[3].cases) == 1


def test_closed_shares_are_quoted_as_ranges_over_seeds():
    frame = _closing()
    frame.loc[frame["seed"] == 1, "added"] = 0.2
    lines = closing_markdown(frame).splitlines()
    assert lines[-1] == "| 30 % | 0.1 to 0.2 | 0.05 | 0.02 | 0.01 | 2 | 0.3 |"


def test_medians_of_the_comparison_are_quoted_with_their_intervals(found):
    names = ("conditioning-claim", "speed-claim", "reach-claim")
    frames = figure_frames([found[name] for name in names])
    text = comparison_markdown(
        *(frames[name] for name in ("conditioning", "speed", "reach", "scale"))
    )
    row = frames["reach"].iloc[0]
    assert f"{printed(row['median'])} [{printed(row['low'])}, {printed(row['high'])}]" in text
    lines = text.splitlines()
    assert sum(line.startswith("| rank-deficient, dense |") for line in lines) == 3
    # Rank 4 is full rank with 4 outputs.
    assert all(" — |" in line for line in lines if line.startswith("| over-parameterised"))
