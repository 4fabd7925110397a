"""Verdicts follow from evidence: values planted on either side of a bound change them."""

import json
import math

import numpy
import pandas as pd
import pytest
from scipy import stats

from finegates.suite.claims import (
    Evidence,
    MissingEvidenceError,
    audit,
    evidence_table,
    load_ledger,
    shown,
    verdict_table,
)
from finegates.suite.claims.audit import (
    CONTRADICTED,
    DEPENDS,
    INCONCLUSIVE,
    NOT_MEASURABLE,
    NOT_TESTABLE,
    SUPPORTED,
    interval_of,
)
from finegates.suite.claims.ledger import Claim
from finegates.suite.claims.measures import MEASURES
from finegates.suite.config.load import ConfigError
from finegates.suite.runs.predictions import predictions_path, write_predictions
from finegates.suite.runs.signed import write_signed
from support.planted_evidence import PARAMETERS, SINGLE, plant
from support.records import make_record
from theory.verdicts import PARTS

LEDGER = load_ledger()
TESTS = [(claim, test) for claim in LEDGER for test in claim.tests]

# Distance of planted values from the bound, and their spread.
MARGIN, SPREAD = 0.5, 0.01
CLAIM = {"id": "c", "statement": "s", "source": "s", "denominator": "d"}
TEST = {"label": "l", "measure": "half_open", "of": {"method": "a"}, "at_most": 5}


def verdict(claim, test, evidence) -> str:
    alone = claim.model_copy(update={"tests": [test.model_copy(update={"beside": False})]})
    (result,) = audit([alone], evidence)
    return result.verdict


@pytest.mark.parametrize(("claim", "test"), TESTS, ids=[f"{c.id}-{t.label}" for c, t in TESTS])
def test_evidence_on_either_side_of_a_bound_turns_the_verdict(tmp_path, claim, test):
    if test.measure == "theory_claim":
        cases = {SUPPORTED: [1.0], CONTRADICTED: [0.0], DEPENDS: [0.5]}
    else:
        least, most = test.bounds()
        bound, good = (least, 1) if math.isfinite(least) else (most, -1)
        size = abs(bound) if 0 < abs(bound) < 0.1 else 1.0
        cases = {
            outcome: [bound + size * (side + SPREAD * place) for place, side in enumerate(sides)]
            for outcome, sides in {
                SUPPORTED: [good * MARGIN] * 3,
                CONTRADICTED: [-good * MARGIN] * 3,
                INCONCLUSIVE: [good * MARGIN, -good * MARGIN, good * MARGIN],
            }.items()
        }
    for expected, values in cases.items():
        if expected == INCONCLUSIVE and test.measure in SINGLE:
            continue
        evidence = plant(tmp_path / expected, test.measure, test.of, values)
        found = verdict(claim, test, evidence)
        assert found == (INCONCLUSIVE if test.measure == "sparsity_gained" else expected)
    assert verdict(claim, test, Evidence(tmp_path / "empty")) == NOT_TESTABLE


def test_a_score_of_one_seed_has_the_interval_of_its_test_rows(tmp_path):
    """For accuracies on n rows each the half-width is z sqrt(sum of p (1 - p) / n).

    This holds to first order. For the mean over two tasks it is that of their sum, halved.
    """
    rows, scores = 400, {"sst2": (90.0, 80.0), "rte": (60.0, 70.0)}
    frame = pd.DataFrame(
        [
            {"task": t, "seed": 0, "method": m, "last_score": s, "validation_rows": rows}
            for t, both in scores.items()
            for m, s in zip("ab", both, strict=True)
        ]
    )
    (tmp_path / "tables").mkdir()
    frame.to_csv(tmp_path / "tables" / "runs.csv", index=False)
    measured = MEASURES["score_difference"](Evidence(tmp_path), method="a", against="b")
    interval, covers = interval_of(measured)
    assert covers == "test rows"
    variances = [s * (100 - s) / rows for both in scores.values() for s in both]
    expected = 1.96 * math.sqrt(sum(variances)) / 2
    assert interval.half_width == pytest.approx(expected, rel=0.02)
    assert (interval.low + interval.high) / 2 == pytest.approx(0.0)


def test_seeds_add_to_the_interval_of_test_rows(tmp_path):
    differences, rows = [1.0, 4.0, 7.0], 400
    frame = pd.DataFrame(
        [
            {"task": "sst2", "seed": n, "method": m, "last_score": s, "validation_rows": rows}
            for n, d in enumerate(differences)
            for m, s in (("a", 80.0 + d), ("b", 80.0))
        ]
    )
    (tmp_path / "tables").mkdir()
    frame.to_csv(tmp_path / "tables" / "runs.csv", index=False)
    measured = MEASURES["score_difference"](Evidence(tmp_path), method="a", against="b")
    interval, covers = interval_of(measured)
    assert covers == "seeds and test rows"
    seeds, drawn = 9.0 / 3, (80 * 20 + 84 * 16) / rows
    freedom = (seeds + drawn) ** 2 / (seeds**2 / 2)
    expected = stats.t.ppf(0.975, freedom) * math.sqrt(seeds + drawn)
    assert interval.half_width == pytest.approx(expected, rel=0.02)


def test_scores_with_predictions_are_compared_row_by_row(tmp_path):
    """Rows on which both models agree add nothing: two of 400 differ, one in each direction."""
    labels = numpy.arange(400) % 2
    one, other = labels.copy(), labels.copy()
    one[:100] = other[:100] = 1 - labels[:100]
    one[100], other[101] = 1 - labels[100], 1 - labels[101]
    rows = []
    for method, predicted in (("a", one), ("b", other)):
        record = tmp_path / f"runs/sst2/{method}/seed0.json"
        record.parent.mkdir(parents=True)
        logits = {"last": numpy.eye(2, dtype=numpy.float32)[predicted]}
        named = write_predictions(
            predictions_path(record), "sst2", numpy.arange(400), labels, logits
        )
        write_signed(make_record(task="sst2", method=method, predictions=named), record)
        score = 100 * float((predicted == labels).mean())
        row = {"task": "sst2", "seed": 0, "method": method, "last_score": score}
        rows.append(row | {"validation_rows": 400})
    (tmp_path / "tables").mkdir()
    pd.DataFrame(rows).to_csv(tmp_path / "tables" / "runs.csv", index=False)
    measured = MEASURES["score_difference"](Evidence(tmp_path), method="a", against="b")
    interval, covers = interval_of(measured)
    assert covers == "test rows, paired"
    assert interval.half_width == pytest.approx(1.96 * 100 * math.sqrt(2) / 400, rel=0.01)
    # As two independent samples of rows it would be nearly nine times as wide.
    (tmp_path / "runs/sst2/a/seed0.json").unlink()
    wide, covers = interval_of(
        MEASURES["score_difference"](Evidence(tmp_path), method="a", against="b")
    )
    assert covers == "test rows"
    assert wide.half_width > 8 * interval.half_width


def test_what_the_width_of_a_model_decides_is_not_tested_on_a_smaller_one(tmp_path):
    """The same numbers decide at the required size."""
    test = {**TEST, "parameters": 2 * PARAMETERS}
    claim = Claim(**CLAIM, tests=[test])
    evidence = plant(tmp_path, "score_difference", {"method": "a", "against": "b"}, [1.0] * 3)
    (result,) = audit([claim], evidence)
    assert result.verdict == NOT_TESTABLE
    assert "100000.0 M parameters instead of at least 200000 M" in result.tests[0].missing


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 0.2, 0.1], SUPPORTED),
        ([-0.5, -0.49, -0.5], SUPPORTED),
        ([2.0, 2.1, 2.0], CONTRADICTED),
        ([-2.0, -2.1, -2.0], CONTRADICTED),
        ([0.5, 1.6, 1.1], INCONCLUSIVE),
    ],
)
def test_as_good_as_is_an_equivalence_test(tmp_path, values, expected):
    """A difference in either direction counts against the claim."""
    of = {"method": "a", "against": "b"}
    test = {"label": "l", "measure": "score_difference", "of": of, "within": 1}
    (result,) = audit(
        [Claim(**CLAIM, tests=[test])], plant(tmp_path, "score_difference", of, values)
    )
    assert result.verdict == expected


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_a_measure_finds_what_was_planted(tmp_path, name):
    of = {
        "score_difference": {"method": "a", "against": "b", "epoch": "best"},
        "removed_share": {"method": "a", "of": "encoder"},
        "trainable_ratio": {"method": "a", "against": "b"},
        "gate_difference": {"method": "a", "against": "b", "kind": "open", "study": "s"},
        "macs_removed": {"method": "a", "study": "s"},
        "property_value": {"method": "a", "column": "zeros"},
        "time_saved": {"kept": 0.5, "model": "m"},
        "theory_claim": {"claim": "c"},
        "llama_removed": {"method": "a", "of": "gated"},
        "llama_score_difference": {"method": "a", "against": "b"},
        "pretraining_removed": {"method": "a", "of": "all"},
    }.get(name, {"method": "a"})
    values, expected = [3.0, 5.0, 4.0], [3.0, 5.0, 4.0]
    if name == "theory_claim":  # a verdict and no number
        measured = MEASURES[name](plant(tmp_path, name, of, [0.5]), **of)
        assert (measured.values, measured.verdict) == ({}, "depends")
        assert (measured.findings, measured.files) == ("a-claim of 3", ("theory/verdicts.csv",))
        return
    if name in SINGLE:
        expected = values[:1]
    measured = MEASURES[name](plant(tmp_path, name, of, values), **of)
    assert list(measured.values.values()) == pytest.approx(expected)
    assert measured.files


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["supported", "supported"], SUPPORTED),
        (["contradicted", "depends"], CONTRADICTED),
        (["contradicted", "supported"], CONTRADICTED),
        (["depends", "supported"], DEPENDS),
        (["depends", "inconclusive"], INCONCLUSIVE),
        (["depends"], DEPENDS),
    ],
)
def test_what_the_theory_decides_both_ways_is_not_inconclusive(tmp_path, parts, expected):
    path = tmp_path / "theory" / "verdicts.csv"
    path.parent.mkdir()
    rows = [
        {"claim": "c", "part": f"part {place}" if place else "", "verdict": v,
         "checks": "`c-claim` depends on rank, family"}
        for place, v in enumerate(parts)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(path, index=False)
    tests = [
        {"label": f"t{place}", "measure": "theory_claim", "of": {"claim": "c", "part": row["part"]}}
        for place, row in enumerate(rows)
    ]
    (result,) = results = audit([Claim(**CLAIM, tests=tests)], Evidence(tmp_path))
    assert result.verdict == expected
    assert shown(result) == expected  # a theorem holds at every scale
    table = evidence_table(results, "t")
    # Its checks are printed, and no number, interval or count.
    assert "| c-claim depends on rank, family " in table.markdown()
    assert "n = " not in table.markdown()
    assert table.numbers[["mean", "low", "high", "values"]].isna().all(axis=None)


def test_the_ledger_asks_for_the_parts_that_the_theory_judges():
    asked = [
        (test.of["claim"], test.of.get("part", ""))
        for _, test in TESTS
        if test.measure == "theory_claim"
    ]
    judged = [(claim, part) for claim, parts in PARTS.items() for part in parts]
    assert asked == [pair for pair in judged if pair[0] != "binary"]


def test_a_loss_that_is_never_reached_is_not_reached_sooner(tmp_path):
    path = tmp_path / "llama" / "tables" / "pretraining.csv"
    path.parent.mkdir(parents=True)
    path.write_text("name,method,tokens,tokens_to_dense_loss\n9m,a,100,\n20m,a,100,50\n")
    measured = MEASURES["pretraining_faster"](Evidence(tmp_path), method="a")
    assert measured.values == {("9m",): 0.0, ("20m",): 2.0}
    with pytest.raises(MissingEvidenceError, match="no row of b in llama/tables/pretraining.csv"):
        MEASURES["pretraining_faster"](Evidence(tmp_path), method="b")


@pytest.mark.parametrize(
    ("combine", "bounds", "missing", "expected"),
    [
        ("all", (5, 6), False, SUPPORTED),
        ("all", (5, 3), False, CONTRADICTED),
        ("all", (5,), True, INCONCLUSIVE),
        ("all", (3,), True, CONTRADICTED),
        ("any", (5, 3), False, SUPPORTED),
        ("any", (3, 2), False, CONTRADICTED),
        ("any", (5,), True, SUPPORTED),
        ("any", (3,), True, INCONCLUSIVE),
        ("all", (), True, NOT_TESTABLE),
        ("any", (), True, NOT_TESTABLE),
    ],
)
def test_one_failure_contradicts_a_conjunction_and_one_success_supports_up_to(
    tmp_path, combine, bounds, missing, expected
):
    test = {"measure": "half_open", "of": {"method": "a"}}
    tests = [{**test, "label": str(bound), "at_most": bound} for bound in bounds]
    tests.append({**test, "label": "beside", "at_most": 0, "beside": True})
    if missing:
        tests.append({**test, "label": "other", "at_most": 9, "of": {"method": "no"}})
    evidence = plant(tmp_path, "half_open", {"method": "a"}, [4.0, 4.0, 4.0])
    (result,) = audit([Claim(**CLAIM, tests=tests, combine=combine)], evidence)
    assert result.verdict == expected
    assert shown(result) == expected + " (at this scale)" * (expected == CONTRADICTED)
    if missing:
        assert result.tests[-1].missing == "no run of no"


def test_every_source_says_whose_it_is():
    for claim in LEDGER:
        for source in claim.source.split("; "):
            assert "of the paper" in source or "released code" in source, claim.id


def test_verdicts_of_synthetic_tiers_are_no_judgements():
    results = audit(LEDGER, Evidence("nowhere"))
    table = verdict_table(results, "smoke", "About.", synthetic=True)
    assert "no judgements of the paper" in table.title
    assert all(cells[1].startswith("(") for cells in table.cells)


def test_every_claim_is_in_the_tables_with_its_numbers(tmp_path):
    evidence = plant(tmp_path, "half_open", {"method": "reference-s0.2"}, [10.0, 20.0, 30.0])
    results = audit(LEDGER, evidence)
    verdicts = verdict_table(results, "t", "About.")
    assert "1 tests rest on intervals" in verdicts.caption
    assert verdicts.numbers["claim"].tolist() == [claim.id for claim in LEDGER]
    table = evidence_table(results, "t")
    row = table.numbers[table.numbers["test"] == "half open at s = 0.2"].iloc[0]
    assert (row["mean"], row["values"]) == (20.0, 3)
    half = stats.t.ppf(0.975, 2) * 10 / math.sqrt(3)
    assert f"20 [{20 - half:.3g}, {20 + half:.3g}] % of gates (n = 3)" in table.markdown()
    assert "not testable: no run of reference-s0.4" in table.markdown()
    assert "](runs/)" in table.markdown()
    again = evidence_table(audit(LEDGER, Evidence(tmp_path)), "t")
    assert again.csv() == table.csv()


def test_results_that_lack_a_case_are_not_judged(tmp_path):
    evidence = plant(tmp_path, "time_saved", {"kept": 0.8}, [1.0, 2.0, 3.0])
    with pytest.raises(MissingEvidenceError, match="no such case"):
        MEASURES["time_saved"](evidence, kept=0.7)
    with pytest.raises(MissingEvidenceError, match="no theory/verdicts.csv"):
        MEASURES["theory_claim"](evidence, claim="x")


@pytest.mark.parametrize(
    ("measure", "of", "file"),
    [
        ("time_saved", {"kept": 0.8}, "timing/inference.csv"),
        ("deployed_time_saved", {"method": "reference-s0.4"}, "timing/deployed.csv"),
    ],
)
@pytest.mark.parametrize(("ratio", "counts"), [(1.04, True), (1.06, False), (0.94, False)])
def test_times_count_where_the_dense_model_timed_twice_agrees_with_itself(
    tmp_path, measure, of, file, ratio, counts
):
    plant(tmp_path, measure, of, [30.0, 31.0, 32.0])
    frame = pd.read_csv(tmp_path / file)
    key = "contender" if "contender" in frame else "method"
    control = frame[frame[key] == "dense"].assign(**{key: "control", "ratio_to_dense": ratio})
    pd.concat([frame, control]).to_csv(tmp_path / file, index=False)
    test = {"label": "t", "measure": measure, "of": of, "at_least": 0}
    (result,) = audit([Claim(**CLAIM, tests=[test])], Evidence(tmp_path))
    assert result.verdict == (SUPPORTED if counts else NOT_MEASURABLE)
    if not counts:
        printed = evidence_table([result], "t").markdown()
        assert f"not measurable here: in {file} the dense model, timed twice, differs" in printed
        assert f"{100 * (ratio - 1):+.0f} %" in printed


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ([], "at least 1 item"),
        ([CLAIM], "give tests, or say in untested"),
        ([{**CLAIM, "tests": [TEST], "untested": "why"}], "give tests, or say in untested"),
        ([{**CLAIM, "tests": [TEST]}] * 2, "'c' appears twice"),
        ([{**CLAIM, "tests": [{**TEST, "measure": "half_opn"}]}], "did you mean 'half_open'"),
        ([{**CLAIM, "tests": [{**TEST, "of": {"metod": "a"}}]}], "did you mean 'method'"),
        ([{**CLAIM, "tests": [{**TEST, "of": {}}]}], "needs 'method'"),
        (
            [{**CLAIM, "tests": [{**TEST, "at_least": 1}]}],
            "exactly one of at_least, at_",
        ),
        (
            [{**CLAIM, "tests": [{**TEST, "measure": "theory_claim", "of": {"claim": "pl"}}]}],
            "no bound: checks judge themselves",
        ),
        ([{**CLAIM, "tests": [TEST], "verdict": "supported"}], "unknown key 'claims.0.verdict'"),
    ],
)
def test_a_ledger_that_cannot_be_judged_is_refused(tmp_path, claims, message):
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps({"claims": claims}))  # JSON is YAML
    with pytest.raises(ConfigError, match=message):
        load_ledger(path)
