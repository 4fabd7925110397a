"""Results in which a measure of the claims has given values."""

import pandas as pd

from finegates.suite.claims import Evidence

PAIRS = [("cola", 0), ("cola", 1), ("rte", 0)]

# Measures with a single value, which is on one side.
SINGLE = ("deployed_time_saved", "property_value", "sparsity_gained", "theory_claim")

# Larger than every model that a test needs, and so many rows that sampling noise is negligible.
PARAMETERS, ROWS = 1e11, 10**10


def runs(method: str, **columns: list[float]) -> pd.DataFrame:
    names = {"task": [t for t, _ in PAIRS], "seed": [s for _, s in PAIRS], "method": method}
    return pd.DataFrame({**names, **columns})


def timed(row: dict, saved: list[float], dense: dict) -> pd.DataFrame:
    """Rows of a times table with given savings in per cent, and the dense model's rows."""
    ratios = [1 - value / 100 for value in saved]
    slow = pd.DataFrame({**dense, "ratio_to_dense": [1.0] * len(saved)})
    fast = pd.DataFrame({**row, "ratio_to_dense": ratios})
    frame = pd.concat([fast, slow])
    for quartile, factor in (("q25_ms", 0.9999), ("q75_ms", 1.0001)):
        frame[quartile] = 100 * factor * frame["ratio_to_dense"]
    return frame


def plant(folder, measure: str, of: dict, values: list[float]) -> Evidence:
    """Results in which a measure has the given values."""
    method, against = of.get("method", ""), of.get("against", "")
    tables = {}
    file = f"studies/runs/{of['study']}.csv" if "study" in of else "tables/runs.csv"
    if measure in ("score_difference", "gate_difference"):
        column, scale = f"{of.get('epoch', 'last')}_score", 1.0
        if measure == "gate_difference":
            column, scale = f"gates_{of['kind']}", 100.0
        rows = {"validation_rows": [ROWS] * 3, "parameters": [PARAMETERS] * 3}
        tables[file] = pd.concat(
            [
                runs(method, **{column: [(60 + value) / scale for value in values]}, **rows),
                runs(against, **{column: [60.0 / scale] * 3}, **rows),
            ]
        )
    elif measure in ("shared_encoder_change", "task_storage"):
        sizes = {"stored_bytes": [10 * value for value in values], "dense_bytes": 1000}
        scores = {"shared_score": [60 + value for value in values], "run_score": 60.0}
        names = {"task": ["cola", "rte", "sst2"], "method": method}
        tables["studies/shared_encoder.csv"] = pd.DataFrame({**names, **sizes, **scores})
    elif measure == "deployed_time_saved":
        tables["timing/deployed.csv"] = timed({"method": method}, values[:1], {"method": "dense"})
    elif measure == "property_value":
        row = {"method": method, of["column"]: values[0] / of.get("scale", 100.0)}
        tables["timing/properties.csv"] = pd.DataFrame([row])
    elif measure == "sparsity_gained":
        row = {"method": method, "first_epoch": 0.1, "last_epoch": 0.1 + values[0] / 100}
        tables["timing/properties.csv"] = pd.DataFrame([row])
    elif measure == "removed_share":
        column = {"gated": "gated_parameters", "encoder": "encoder_parameters", "all": "parameters"}
        whole = {"parameters": [PARAMETERS] * 3, column[of["of"]]: [PARAMETERS] * 3}
        removed = [PARAMETERS * value / 100 for value in values]
        tables["tables/runs.csv"] = runs(method, removed_weights=removed, **whole)
    elif measure == "macs_removed":
        kept = [1 - value / 100 for value in values]
        tables[file] = runs(method, macs_kept_fraction=kept)
    elif measure in ("trainable_share", "trainable_ratio"):
        head = 7.0
        extra = 0.0 if of.get("head") else head
        times = of.get("times", 1)
        share, ratio = (
            [f(v) for v in values]
            for f in (lambda v: PARAMETERS * v / 100, lambda v: 100 * times / v)
        )
        few = share if measure == "trainable_share" else ratio
        counts = {"head_parameters": [head] * 3, "parameters": [PARAMETERS] * 3}
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
        case = {
            "model": of.get("model", "m"),
            "gates": of.get("gates", "random"),
            "kept": of.get("kept", 0.5),
            "batch": [1, 2, 3],
            "length": 8,
            "decode": False,
            "backend": "eager",
        }
        contender = {"contender": of.get("contender", "compact")}
        tables["timing/inference.csv"] = timed(
            {**case, **contender}, values, {**case, "contender": "dense"}
        )
    elif measure == "theory_claim":
        names = {1.0: "supported", 0.5: "depends", 0.0: "contradicted"}
        (value,) = values
        row = {"claim": of["claim"], "part": of.get("part", ""), "verdict": names[value]}
        tables["theory/verdicts.csv"] = pd.DataFrame([{**row, "checks": "`a-claim` of 3"}])
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
        ).assign(all=PARAMETERS)
    elif measure.startswith("pretraining_"):
        tables["llama/tables/pretraining.csv"] = pd.DataFrame(
            {
                "name": ["9m", "20m", "35m"],
                "method": method,
                f"removed_of_{of.get('of')}": [value / 100 for value in values],
                "extra_parameters_fraction": [value / 100 for value in values],
                "tokens": [1000 * value for value in values],
                "tokens_to_dense_loss": 1000,
                "all": PARAMETERS,
            }
        )
    for name, frame in tables.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(path, index=False)
    return Evidence(folder)
