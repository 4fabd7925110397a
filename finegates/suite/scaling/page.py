"""Writes ``docs/scaling.md``: cost model, its check, costs of all tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
from transformers import PretrainedConfig

from finegates.files import parse_json, write_text
from finegates.suite.config.load import CONFIG, load_tier
from finegates.suite.config.tier import Tier
from finegates.suite.runs.llama_trainer import KEPT_CHECKPOINTS
from finegates.suite.runs.machine import package_versions
from finegates.suite.runs.record import read_records
from finegates.suite.scaling.activations import activation_bytes
from finegates.suite.scaling.assumptions import DEVICE, DOCUMENT_TOKENS, TOKENS
from finegates.suite.scaling.costs import Cost, step_factor, tier_costs

ROOT = CONFIG.parent
PAGE = ROOT / "docs" / "scaling.md"
MEASURED = ROOT / "results" / "published" / "scaling" / "activations.json"
RUNS = ROOT / "results" / "published" / "local" / "runs"
INFERENCE = RUNS.parent / "timing" / "inference.csv"
TIERS = ("paper", "paper_large")
GIB, HOUR = 2**30, 3600


class Measured:
    """Activation bytes by shape, read from a file or measured and cached.

    Args:
        known: values from the file.
        measure: measure missing values instead of raising an error.
    """

    def __init__(self, known: dict[str, float], measure: bool) -> None:
        self.known = dict(known)
        self._measure = measure

    def __call__(
        self, config: PretrainedConfig, precision: str, trains_all: bool, gated: bool
    ) -> float:
        """Bytes per token and layer. Raises KeyError for unknown ones."""
        sizes = (config.hidden_size, config.intermediate_size, config.num_attention_heads)
        key = f"{config.model_type} {'x'.join(map(str, sizes))} {precision}"
        key += f"{' trained' if trains_all else ''}{' gated' if gated else ''}"
        if key not in self.known:
            if not self._measure:
                raise KeyError(f"{key!r} is not measured: finegates scaling --measure")
            found = activation_bytes(
                config, precision=precision, trains_all=trains_all, gated=gated
            )
            # Three digits, because further ones differ between kernel libraries.
            self.known[key] = float(f"{found:.3g}")
        return self.known[key]


TEMPLATE = """\
# What the paper tier costs

Written by `finegates scaling` from `config/paper.yaml` and `config/paper_large.yaml`; shapes of hub
models, lengths and rates are in `finegates/suite/scaling/assumptions.py`. Nothing here was run on a
GPU: hours are operations over an assumed rate.

**Operations.** A step takes 2 × MACs × (1 + b + c): the multiply-accumulates of linear layers,
attention products and language head (`finegates.budget`) over all its tokens; b = 2 for the
backward pass where weights are trained, 1 where they are frozen (gates, LoRA); c = 1 where
activations are recomputed. Evaluations are forward passes. Examples of GLUE count with their mean
length in tokens ({lengths}), held-out documents of C4 with {document_tokens} tokens (assumed).

**Hours.** Assumed: one {device}, {half} TFLOP/s in bfloat16 and {single} in float32 (its vendor's
data sheet; no TensorFloat-32) at {utilisation} of that, and at least {launch} ms for a layer's
forward pass, since kernels are launched one by one: this decides for batches of short texts.
Several devices divide the hours, at best. Start-up, downloads and tables are left out.

**Memory** is that of one device: weights, gradients and AdamW's moments in float32 (16 bytes a
trained weight, 4 a frozen one, 2 more under bfloat16 autocast), logits, and activations. These were
measured (`finegates.suite.timing.memory`): bytes that one layer of these proportions holds per
token, forward and backward; gated layers hold more. GLUE counts its longest possible batch.
Training here copies the model to each device and does not shard it: over {device_memory} GB, as
{large}, it needs a smaller micro-batch, another optimizer or a larger device.

**Disk**: when done, records of the mean size of the published ones and the models of pretraining;
while running, the checkpoints of the largest run, {checkpoints} at a time. Models and data of the
hub come on top.

{tables}
Inference times need no GPU; as published, they are {timing:.0f} minutes of measuring on two CPU
cores. The theory tables need none either.

## The formula against measured steps

The published records of tier `local` (a CPU, one thread, bfloat16 autocast). If the formula holds,
the rate is one number. Of LoRA it is {lora} GFLOP/s; of full fine-tuning {full}, less for short
texts: such a step also moves every weight of the embeddings, which is not a matmul.

{check}
"""


def table_of(costs: Sequence[Cost]) -> pd.DataFrame:
    """Costs by table and model, with longest and largest run, and a total."""
    rows: dict[tuple[str, str], list[Cost]] = {}
    for cost in costs:
        rows.setdefault((cost.table, cost.part), []).append(cost)
    found = [_row(table, part, runs) for (table, part), runs in rows.items()]
    found.append(_row("All", "", costs) | {"Steps a run": "", "Longest run (h)": ""})
    return pd.DataFrame(found)


def _row(table: str, part: str, runs: Sequence[Cost]) -> dict[str, Any]:
    steps = sorted({run.steps for run in runs if run.steps})
    memory = max(run.memory for run in runs) / GIB
    return {
        "Table": table,
        "Model": part,
        "Runs": len(runs),
        "Steps a run": "–".join(f"{s:,}" for s in dict.fromkeys((steps[0], steps[-1]))),
        "PFLOP": f"{sum(run.operations for run in runs) / 1e15:,.0f}",
        "GPU-hours": f"{sum(run.seconds for run in runs) / HOUR:,.1f}",
        "Longest run (h)": f"{max(run.seconds for run in runs) / HOUR:,.1f}",
        "Peak memory (GiB)": f"{memory:,.1f}",
        "Disk, done (GiB)": f"{sum(run.kept for run in runs) / GIB:.2g}",
        "Disk, running (GiB)": f"{max(run.held for run in runs) / GIB:.3g}",
    }


def check_table(local: Tier) -> pd.DataFrame:
    """Operations of a step by formula, next to published median step times."""
    records = read_records(sorted(RUNS.rglob("seed*.json")))
    rows = []
    for method, trains_all in (("full", True), ("lora", False)):
        for task in local.tasks:
            for record in records:
                if (record.task, record.method) != (task, method):
                    continue
                linear = record.budget.macs.dense / record.budget.macs_length
                batch = record.config.training.batch_size
                operations = 2 * linear * batch * TOKENS[task] * step_factor(trains_all)
                rows.append(
                    {
                        "Method": method,
                        "Task": task,
                        "Tokens": TOKENS[task],
                        "GFLOP a step": round(operations / 1e9, 1),
                        "Measured (ms)": round(record.timing["step_ms"], 1),
                        "GFLOP/s": round(operations / 1e6 / record.timing["step_ms"]),
                    }
                )
    return pd.DataFrame(rows)


def page(measure: bool = False) -> tuple[str, dict[str, float]]:
    """The page's text, and the measurements behind it."""
    known = {} if measure else parse_json(MEASURED.read_text(encoding="utf-8"))["bytes"]
    measured = Measured(known, measure)
    sizes = [path.stat().st_size for path in RUNS.rglob("seed*.json")]
    record_bytes = sum(sizes) / len(sizes)
    costs = {
        name: list(tier_costs(load_tier(CONFIG / f"{name}.yaml"), measured, record_bytes))
        for name in TIERS
    }
    return _text(costs, check_table(load_tier(CONFIG / "local.yaml"))), measured.known


def _text(costs: dict[str, list[Cost]], check: pd.DataFrame) -> str:
    sections = [
        f"## Tier `{name}`\n\n{table_of(runs).to_markdown(index=False, disable_numparse=True)}\n"
        for name, runs in costs.items()
    ]
    runs = [run for of_tier in costs.values() for run in of_tier]
    large = dict.fromkeys(run.part for run in runs if run.memory > DEVICE.memory)
    rates = {
        method: f"{rows.min():,} to {rows.max():,}"
        for method, rows in check.groupby("Method")["GFLOP/s"]
    }
    lengths = ", ".join(f"{task} {tokens:g}" for task, tokens in TOKENS.items())
    text = TEMPLATE.format(
        lengths=lengths,
        document_tokens=DOCUMENT_TOKENS,
        device=DEVICE.name,
        half=f"{DEVICE.peak['bfloat16'] / 1e12:g}",
        single=f"{DEVICE.peak['float32'] / 1e12:g}",
        utilisation=f"{DEVICE.utilisation:.0%}",
        launch=f"{DEVICE.launch_s * 1e3:g}",
        large=", ".join(large) or "none",
        device_memory=f"{DEVICE.memory / 1e9:g}",
        checkpoints=KEPT_CHECKPOINTS + 1,
        tables="\n".join(sections),
        full=rates["full"],
        lora=rates["lora"],
        check=check.to_markdown(index=False),
        timing=_timing_minutes(),
    )
    return text


def _timing_minutes() -> float:
    """Minutes of the inference benchmarks: published medians times repeats."""
    medians = pd.read_csv(INFERENCE).groupby("model")["median_ms"].sum()
    shapes = load_tier(CONFIG / "paper.yaml").inference_benchmarks
    return sum(float(medians[shape.name]) * shape.repeats for shape in shapes) / 60_000


def write(measure: bool = False) -> None:
    """Writes the page and, with ``measure``, the measurements behind it."""
    text, known = page(measure)
    if measure:
        made = {"versions": package_versions(), "bytes": known}
        write_text(MEASURED, json.dumps(made, indent=1) + "\n")
    write_text(PAGE, text)
