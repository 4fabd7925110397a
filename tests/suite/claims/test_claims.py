"""Verdicts follow from evidence: planted on either side of every bound, it turns them."""

import json

import pandas as pd
import pytest

from finegates.suite.claims import (
    Evidence,
    MissingEvidenceError,
    audit,
    evidence_table,
    load_ledger,
    verdict_table,
)
from finegates.suite.claims.audit import CONTRADICTED, NOT_TESTED, PARTLY, SUPPORTED
from finegates.suite.claims.ledger import Claim
from finegates.suite.claims.measures import MEASURES
from finegates.suite.config.load import ConfigError

LEDGER = load_ledger()
TESTS = [(claim, test) for claim in LEDGER for test in claim.tests]
PAIRS = [("cola", 0), ("cola", 1), ("rte", 0)]

# By how much a planted value lies off the bound, and what the values spread by within it.
MARGIN, SPREAD = 0.5, 0.01

# Measures of one number, which lies on one side.
SINGLE = ("deployed_time_saved", "property_value", "sparsity_gained")


def runs(method: str, **columns: list[float]) -> pd.DataFrame:
    names = {"task": [t for t, _ in PAIRS], "seed": [s for _, s in PAIRS], "method": method}
    return pd.DataFrame({**names, **columns})


def plant(folder, measure: str, of: dict, values: list[float]) -> Evidence:
    """Results in which a measure finds these values."""
    method, against = of.get("method", ""), of.get("against", "")
    tables = {}
    file = f"studies/runs/{of['study']}.csv" if "study" in of else "tables/runs.csv"
    if measure in ("score_difference", "gate_difference"):
        column, scale = f"{of.get('epoch', 'last')}_score", 1.0
        if measure == "gate_difference":
            column, scale = f"gates_{of['kind']}", 100.0
        tables[file] = pd.concat(
            [
                runs(method, **{column: [(60 + value) / scale for value in values]}),
                runs(against, **{column: [60.0 / scale] * 3}),
            ]
        )
    elif measure in ("shared_encoder_change", "task_storage"):
        sizes = {"stored_bytes": [10 * value for value in values], "dense_bytes": 1000}
        scores = {"shared_score": [60 + value for value in values], "run_score": 60.0}
        names = {"task": ["cola", "rte", "sst2"], "method": method}
        tables["studies/shared_encoder.csv"] = pd.DataFrame({**names, **sizes, **scores})
    elif measure == "deployed_time_saved":
        row = {"method": method, "ratio_to_dense": 1 - values[0] / 100}
        tables["timing/deployed.csv"] = pd.DataFrame([row])
    elif measure == "property_value":
        row = {"method": method, of["column"]: values[0] / of.get("scale", 100.0)}
        tables["timing/properties.csv"] = pd.DataFrame([row])
    elif measure == "sparsity_gained":
        row = {"method": method, "first_epoch": 0.1, "last_epoch": 0.1 + values[0] / 100}
        tables["timing/properties.csv"] = pd.DataFrame([row])
    elif measure == "removed_share":
        column = {"gated": "gated_parameters", "encoder": "encoder_parameters", "all": "parameters"}
        whole = {column[of["of"]]: [1000.0] * 3}
        tables["tables/runs.csv"] = runs(method, removed_weights=[10 * v for v in values], **whole)
    elif measure == "macs_removed":
        kept = [1 - value / 100 for value in values]
        tables[file] = runs(method, macs_kept_fraction=kept)
    elif measure in ("trainable_share", "trainable_ratio"):
        head = 7.0
        extra = 0.0 if of.get("head") else head
        few = [10 * v if measure == "trainable_share" else 100 / v for v in values]
        counts = {"head_parameters": [head] * 3, "parameters": [1000.0] * 3}
        tables["tables/runs.csv"] = pd.concat(
            [
                runs(method, trainable_parameters=[v + extra for v in few], **counts),
                runs(against, trainable_parameters=[100.0 + extra] * 3, **counts),
            ]
        )
    elif measure == "half_open":
        shares = [value / 100 for value in values]
        tables["tables/runs.csv"] = runs(method, gates_half_open=shares)
    elif measure == "compaction_difference":
        tables["tables/runs.csv"] = runs(method, compact_max_abs_logit_difference=values)
    elif measure == "time_saved":
        tables["timing/inference.csv"] = pd.DataFrame(
            {
                "model": of.get("model", "m"),
                "gates": of.get("gates", "random"),
                "kept": of.get("kept", 0.5),
                "batch": [1, 2, 3],
                "length": 8,
                "decode": False,
                "contender": of.get("contender", "compact"),
                "backend": "eager",
                "ratio_to_dense": [1 - value / 100 for value in values],
            }
        )
    elif measure == "theory_claim":
        names = {1.0: "supported", 0.5: "partly", 0.0: "contradicted"}
        verdicts = [names[min(names, key=lambda mark: abs(mark - v))] for v in values]
        tables["theory/checks.csv"] = pd.DataFrame(
            {"id": ["a", "b", "c"], "claim": of["claim"], "kind": "claim", "verdict": verdicts}
        )
    elif measure in ("llama_removed", "llama_score_difference"):
        rows = {"task": ["cola", "rte", "sst2"]}
        shares = {f"removed_of_{of.get('of')}": [value / 100 for value in values]}
        tables["llama/tables/task.csv"] = pd.concat(
            [
                pd.DataFrame(
                    {**rows, "method": method, "score": [60 + v for v in values]} | shares
                ),
                pd.DataFrame({**rows, "method": against, "score": 60.0}),
            ]
        )
    elif measure.startswith("pretraining_"):
        tables["llama/tables/pretraining.csv"] = pd.DataFrame(
            {
                "name": ["9m", "20m", "35m"],
                "method": method,
                f"removed_of_{of.get('of')}": [value / 100 for value in values],
                "extra_parameters_fraction": [value / 100 for value in values],
                "tokens": [1000 * value for value in values],
                "tokens_to_dense_loss": 1000,
            }
        )
    for name, frame in tables.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(path, index=False)
    return Evidence(folder)


def verdict(claim, test, evidence) -> str:
    alone = claim.model_copy(update={"tests": [test.model_copy(update={"beside": False})]})
    (result,) = audit([alone], evidence)
    return result.verdict


@pytest.mark.parametrize(("claim", "test"), TESTS, ids=[f"{c.id}-{t.label}" for c, t in TESTS])
def test_evidence_on_either_side_of_a_bound_turns_the_verdict(tmp_path, claim, test):
    bound = test.at_least if test.at_least is not None else test.at_most
    good = 1 if test.at_least is not None else -1
    size = abs(bound) if 0 < abs(bound) < 0.1 else 1.0
    above, below, astride = (
        [bound + size * (side + SPREAD * place) for place, side in enumerate(sides)]
        for sides in (
            [good * MARGIN] * 3,
            [-good * MARGIN] * 3,
            [good * MARGIN, -good * MARGIN, good * MARGIN],
        )
    )
    for name, values, expected in (
        ("kept", above, SUPPORTED),
        ("broken", below, CONTRADICTED),
        ("astride", astride, PARTLY),
    ):
        if name == "astride" and test.measure in SINGLE:
            continue
        evidence = plant(tmp_path / name, test.measure, test.of, values)
        assert verdict(claim, test, evidence) == expected
    assert verdict(claim, test, Evidence(tmp_path / "empty")) == NOT_TESTED


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
    if name == "theory_claim":
        values, expected = [1.0, 0.5, 1.0], [0.0, 1.0]  # partly: the worst and the best differ
    if name in SINGLE:
        expected = values[:1]
    measured = MEASURES[name](plant(tmp_path, name, of, values), **of)
    assert list(measured.values.values()) == pytest.approx(expected)
    assert measured.files


def test_a_loss_that_is_never_reached_is_not_reached_sooner(tmp_path):
    path = tmp_path / "llama" / "tables" / "pretraining.csv"
    path.parent.mkdir(parents=True)
    path.write_text("name,method,tokens,tokens_to_dense_loss\n9m,a,100,\n20m,a,100,50\n")
    measured = MEASURES["pretraining_faster"](Evidence(tmp_path), method="a")
    assert measured.values == {("9m",): 0.0, ("20m",): 2.0}
    with pytest.raises(MissingEvidenceError, match="no row of b in llama/tables/pretraining.csv"):
        MEASURES["pretraining_faster"](Evidence(tmp_path), method="b")


def test_a_claim_holds_only_if_all_of_its_tests_do(tmp_path):
    def claim(*bounds: float, beside: bool = False) -> Claim:
        test = {"measure": "half_open", "of": {"method": "a"}}
        tests = [{**test, "label": str(bound), "at_most": bound} for bound in bounds]
        extra = {**test, "label": "beside", "at_most": 0, "beside": True}
        missing = {**test, "label": "other", "at_most": 9, "of": {"method": "no"}}
        return Claim(
            id="c",
            statement="s",
            source="s",
            denominator="d",
            tests=[*tests, extra, *([missing] if beside else [])],
        )

    evidence = plant(tmp_path, "half_open", {"method": "a"}, [4.0, 4.0, 4.0])
    expected = {(5, 6): SUPPORTED, (5, 3): PARTLY, (3, 2): CONTRADICTED}
    for bounds, outcome in expected.items():
        (result,) = audit([claim(*bounds)], evidence)
        assert result.verdict == outcome
    (result,) = audit([claim(5, beside=True)], evidence)
    assert result.verdict == PARTLY, "one of its tests could not be carried out"
    assert result.tests[-1].missing == "no run of no"


def test_every_claim_is_in_the_tables_with_its_numbers(tmp_path):
    evidence = plant(tmp_path, "half_open", {"method": "reference-s0.2"}, [10.0, 20.0, 30.0])
    results = audit(LEDGER, evidence)
    verdicts = verdict_table(results, "t", "About.")
    assert verdicts.numbers["claim"].tolist() == [claim.id for claim in LEDGER]
    table = evidence_table(results, "t")
    row = table.numbers[table.numbers["test"] == "half open at s = 0.2"].iloc[0]
    assert (row["mean"], row["values"]) == (20.0, 3)
    assert "20 [10, 30] % of gates (n = 3)" in table.markdown()
    assert "not tested: no run of reference-s0.4" in table.markdown()
    assert "](runs/)" in table.markdown()
    again = evidence_table(audit(LEDGER, Evidence(tmp_path)), "t")
    assert again.csv() == table.csv()


def test_results_that_lack_a_case_are_not_judged(tmp_path):
    evidence = plant(tmp_path, "time_saved", {"kept": 0.8}, [1.0, 2.0, 3.0])
    with pytest.raises(MissingEvidenceError, match="no such case"):
        MEASURES["time_saved"](evidence, kept=0.7)
    with pytest.raises(MissingEvidenceError, match="no theory/checks.csv"):
        MEASURES["theory_claim"](evidence, claim="x")


CLAIM = {"id": "c", "statement": "s", "source": "s", "denominator": "d"}
TEST = {"label": "l", "measure": "half_open", "of": {"method": "a"}, "at_most": 5}


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ([], "at least 1 item"),
        ([CLAIM], "give tests, or say in untested"),
        ([{**CLAIM, "tests": [TEST], "untested": "why"}], "give tests, or say in untested"),
        ([{**CLAIM, "tests": [TEST]}] * 2, "'c' stands twice"),
        ([{**CLAIM, "tests": [{**TEST, "measure": "half_opn"}]}], "did you mean 'half_open'"),
        ([{**CLAIM, "tests": [{**TEST, "of": {"metod": "a"}}]}], "did you mean 'method'"),
        ([{**CLAIM, "tests": [{**TEST, "of": {}}]}], "needs 'method'"),
        ([{**CLAIM, "tests": [{**TEST, "at_least": 1}]}], "exactly one of at_least, at_most"),
        ([{**CLAIM, "tests": [TEST], "verdict": "supported"}], "unknown key 'claims.0.verdict'"),
    ],
)
def test_a_ledger_that_cannot_be_judged_is_refused(tmp_path, claims, message):
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps({"claims": claims}))  # JSON is YAML
    with pytest.raises(ConfigError, match=message):
        load_ledger(path)
