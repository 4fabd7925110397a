"""Inference times of true shapes with random weights, against what the arithmetic allows.

The limit of a compact model is the dense time times MACs(compact) / MACs(dense), attention products
included: what it would take if everything shrank with the products. Norms, softmax, activations and
the moving of data do not, so the limit lies below what can be reached.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from finegates.adapters import adapter_for
from finegates.attachment import GateConfig, attach, attach_fixed, sparsity_penalty
from finegates.budget import macs
from finegates.compaction import calibrate, compact
from finegates.config import InferenceBenchmark, InferenceCase
from finegates.layers import linear_shape
from finegates.seeds import derive_seed
from finegates.structured import MacsPenalty
from finegates.tables.render import BLANK, Table
from finegates.timing import interleaved

COLUMNS = (
    "model", "gates", "kept", "batch", "length", "contender", "median_ms", "q25_ms", "q75_ms",
    "macs_ratio", "ratio_to_dense", "ratio_to_limit", "against", "reach",
)  # fmt: skip


@torch.inference_mode()
def time_inference(benchmark: InferenceBenchmark, threads: int) -> pd.DataFrame:
    """Times dense, gated and compact models, interleaved for each shape of batch.

    Args:
        benchmark: model shape, cases, rounds.
        threads: CPU threads.

    Returns:
        a row a contender, columns ``COLUMNS``; ``macs_ratio`` is MACs(contender) / MACs(dense), and
        ``reach`` and ``against`` are the case's, at the compact model.
    """
    torch.set_num_threads(threads)
    dense = random_model(benchmark)
    made: dict[tuple[str, float], tuple[nn.Module, nn.Module]] = {}
    cost = calibrate()
    for case in benchmark.cases:
        key = (case.gates, case.kept)
        if key not in made:
            gated = gated_copy(dense, case)
            made[key] = (gated, compact(gated, cost=cost))
    rows = []
    shapes = dict.fromkeys((case.batch, case.length) for case in benchmark.cases)
    for batch, length in shapes:
        cases = [case for case in benchmark.cases if (case.batch, case.length) == (batch, length)]
        contenders = {"dense": _forward(dense, batch, length)}
        for number, case in enumerate(cases):
            gated, small = made[case.gates, case.kept]
            contenders[f"gated {number}"] = _forward(gated, batch, length)
            contenders[f"compact {number}"] = _forward(small, batch, length)
        seconds = interleaved(contenders, benchmark.repeats)
        dense_macs = macs(dense, batch, length).total
        for number, case in enumerate(cases):
            small_macs = macs(made[case.gates, case.kept][1], batch, length).total
            for contender, fraction in (
                ("dense", 1.0),
                ("gated", 1.0),
                ("compact", small_macs / dense_macs),
            ):
                name = contender if contender == "dense" else f"{contender} {number}"
                rows.append(_row(benchmark, case, contender, seconds[name], fraction, seconds))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def random_model(benchmark: InferenceBenchmark) -> nn.Module:
    """A classifier of the benchmark's shape with random weights, in evaluation mode."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(derive_seed("time_inference", benchmark.name))
    config = AutoConfig.for_model(benchmark.model_type, **benchmark.sizes)
    config.pad_token_id = 0
    model: nn.Module = AutoModelForSequenceClassification.from_config(config)
    return model.eval()


@torch.no_grad()
def gated_copy(dense: nn.Module, case: InferenceCase) -> nn.Module:
    """A copy of the model with the case's gates, constant."""
    model = copy.deepcopy(dense)
    seed = derive_seed("time_inference", case.gates, str(case.kept))
    generator = torch.Generator().manual_seed(seed)
    if case.gates == "structured":
        attach(model, GateConfig(preset="structured", target=1 - case.kept))
        penalty = sparsity_penalty(model)
        assert isinstance(penalty, MacsPenalty)
        for gate in penalty.gates():
            gate.latent.normal_(generator=generator)
        penalty.settle()
        for gate in penalty.gates():
            gate.harden(1.0)
        return model.eval()
    gates: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {}
    for path in adapter_for(model).gated(model):
        columns, outputs = linear_shape(model.get_submodule(path))
        rows, cols = (
            (torch.rand(size, generator=generator) < case.kept).float()
            for size in (outputs, columns)
        )
        gates[path] = (rows, cols)
    return attach_fixed(model, gates).eval()


def inference_table(frame: pd.DataFrame, repeats: int, machine: dict[str, Any]) -> Table:
    """The measured times as a table of compact models.

    Args:
        frame: of one or more calls of :func:`time_inference`.
        repeats: rounds, for the caption.
        machine: ``finegates.record.hardware`` of the measurement.
    """
    header = (
        "Model", "Gates", "Batch", "MACs (%)", "Dense (ms)", "Gated (ms)", "Compact (ms)",
        "To dense", "To limit", "Reach",
    )  # fmt: skip
    keys = ["model", "gates", "kept", "batch", "length"]
    cells: list[tuple[str, ...]] = []
    for values, group in frame.groupby(keys, sort=False):
        model, gates, kept, batch, length = values
        times = group.set_index("contender")
        small = times.loc["compact"]
        reach = BLANK
        if not pd.isna(small["reach"]):
            ratio = small[f"ratio_to_{small['against']}"]
            word = "reached" if ratio <= small["reach"] else "missed"
            reach = f"{small['reach']:.2f} × {small['against']}: {word}"
        cells.append(
            (
                str(model),
                "none closed" if kept == 1 else f"{gates}, {kept:g} kept",
                f"{batch} × {length}",
                f"{100 * small['macs_ratio']:.1f}",
                *(f"{times.loc[name]['median_ms']:.1f}" for name in ("dense", "gated", "compact")),
                f"{small['ratio_to_dense']:.3f}",
                f"{small['ratio_to_limit']:.3f}",
                reach,
            )
        )
    caption = (
        "Forward passes of classifiers with random weights of the named shape and random gates, "
        f"float32, eager; medians of {repeats} interleaved rounds on {machine['cpu']}, "
        f"{machine['threads']} threads. MACs are those of the compact model relative to the dense "
        "one, attention products included; sides whose removal would not pay, by prices measured "
        "on the spot, stay dense. The limit is the dense time times that ratio. Gates: random ones "
        "keep each row and column of each layer with the given probability, structured ones the "
        "given fraction of the MACs."
    )
    title = "Inference time, dense against compact"
    return Table("inference", title, caption, frame, header, tuple(cells))


def _forward(model: nn.Module, batch: int, length: int) -> Callable[[], object]:
    vocabulary: int = model.config.vocab_size  # type: ignore[union-attr, assignment]
    inputs = {
        "input_ids": torch.randint(5, vocabulary, (batch, length)),
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
    }
    return lambda: model(**inputs)


def _row(
    benchmark: InferenceBenchmark,
    case: InferenceCase,
    contender: str,
    values: np.ndarray,
    fraction: float,
    seconds: dict[str, np.ndarray],
) -> dict[str, Any]:
    low, median, high = np.percentile(1e3 * values, [25, 50, 75])
    ratio = median / np.median(1e3 * seconds["dense"])
    return {
        "model": benchmark.name,
        "gates": case.gates,
        "kept": case.kept,
        "batch": case.batch,
        "length": case.length,
        "contender": contender,
        "median_ms": median,
        "q25_ms": low,
        "q75_ms": high,
        "macs_ratio": fraction,
        "ratio_to_dense": ratio,
        "ratio_to_limit": ratio / fraction,
        "against": case.against if contender == "compact" else None,
        "reach": case.reach if contender == "compact" else None,
    }
