"""Inference times of real model shapes, against a limit by MACs.

The limit of a compact model is the dense time times MACs(compact) / MACs(dense), with attention
matmuls included. Norms, softmax, activations and data movement do not shrink in this proportion, so
the limit is a lower bound that cannot be reached.
"""

from __future__ import annotations

import bisect
import copy
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from finegates.adapters import adapter_for
from finegates.budget import macs
from finegates.clock import interleaved
from finegates.compaction import CostModel, calibrate, compact, use_products
from finegates.gates.attachment import attach, attach_fixed
from finegates.gates.config import GateConfig
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.monitor import realised_sparsity
from finegates.gates.penalty import sparsity_penalty
from finegates.modules.linear import linear_shape
from finegates.seeds import derive_seed
from finegates.suite.baselines.scattered import scatter_zeros, to_sparse
from finegates.suite.config.benchmarks import InferenceBenchmark, InferenceCase, ModelShape
from finegates.suite.timing.backends import Shape, runner
from finegates.suite.timing.control import CONTROL
from finegates.suite.timing.inference_parts import PARTS, parts_of_time

COLUMNS = (
    "model", "gates", "kept", "batch", "length", "decode", "contender", "backend", "median_ms",
    "q25_ms", "q75_ms", "macs_ratio", "ratio_to_dense", "ratio_to_limit", "against", "reach",
    *PARTS,
)  # fmt: skip
# Backends that change outputs; the gated model is not timed with them.
QUANTISED = ("int8", "torchao")
# Profiled runs after the timed ones, for the times of the parts.
_PROFILED = 3


@dataclass(frozen=True)
class _Contender:
    """A timed model, case and backend.

    Models are ``dense``, its ``control``, ``gated``, ``compact`` and, with unstructured zeros,
    ``scattered`` (dense matmuls) and ``sparse`` (compressed sparse rows). The case None means all
    cases. Backends are ``eager``, ``onednn`` (eager with oneDNN's matmul), and those of the
    configuration.
    """

    kind: str
    case: int | None
    backend: str


@dataclass(frozen=True)
class Prices:
    """Measured cost models of matmuls and data movement on this machine.

    Attributes:
        plain: cost model with torch's default matmul.
        fast: cost model with oneDNN's matmul where it is faster.
        seconds: time to measure ``fast``, which is the time of a user's calibration.
    """

    plain: CostModel
    fast: CostModel
    seconds: float


def measure_prices(threads: int) -> Prices:
    """Calibrates the cost models with a number of CPU threads."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    fast = calibrate()
    seconds = time.perf_counter() - start
    return Prices(calibrate(onednn=False), fast, seconds)


@torch.inference_mode()
def time_inference(
    benchmark: InferenceBenchmark, threads: int, prices: Prices | None = None
) -> pd.DataFrame:
    """Times dense, gated and compact models, interleaved for each batch shape.

    Args:
        benchmark: model shape, cases, rounds.
        threads: CPU threads.
        prices: cost models for compaction; None measures them.

    Returns:
        one row per contender, columns ``COLUMNS``. ``macs_ratio`` is MACs(contender) / MACs(dense).
        Ratios of times are to the eager dense model. ``reach`` and ``against`` of a case are in the
        row of its compact model. Contender ``control`` is the dense model a second time
        (:mod:`finegates.suite.timing.control`). Times are blank for a backend that this machine
        cannot run. ``onednn`` has rows only if its matmul is faster than torch's. Eager dense and
        compact models also have times by part, measured in further runs by
        :func:`finegates.suite.timing.inference_parts.parts_of_time`.
    """
    torch.set_num_threads(threads)
    prices = prices or measure_prices(threads)
    dense = random_model(benchmark)
    fast, plain = prices.fast, prices.plain
    eager = ("eager",) if fast.onednn_from is None else ("eager", "onednn")
    whole = {"eager": dense, "onednn": use_products(_sharing_copy(dense), fast)}
    gated: dict[tuple[str, float], nn.Module] = {}
    small: dict[tuple[str, float, str], nn.Module] = {}
    for case in benchmark.cases:
        key = (case.gates, case.kept)
        if key not in gated:
            gated[key] = gated_copy(dense, case)
            small[*key, "eager"] = compact(gated[key], cost=plain)
            if "onednn" in eager:
                small[*key, "onednn"] = use_products(compact(gated[key], cost=fast), fast)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for shape in dict.fromkeys(map(_shape, benchmark.cases)):
            cases = [case for case in benchmark.cases if _shape(case) == shape]
            wanted = dict.fromkeys(b for case in cases for b in case.backends)
            models: dict[_Contender, nn.Module] = {
                _Contender("dense", None, backend): whole.get(backend, dense)
                for backend in (*eager, *wanted)
            }
            for number, case in enumerate(cases):
                key = (case.gates, case.kept)
                for backend in ("eager", *(b for b in case.backends if b not in QUANTISED)):
                    models[_Contender("gated", number, backend)] = gated[key]
                for backend in (*eager, *case.backends):
                    model = small.get((*key, backend), small[*key, "eager"])
                    models[_Contender("compact", number, backend)] = model
                if case.scattered:
                    scattered = scattered_copy(dense, gated[key])
                    models[_Contender("scattered", number, "eager")] = scattered
                    sparse = to_sparse(copy.deepcopy(scattered))
                    models[_Contender("sparse", number, "eager")] = sparse
            runs = {
                contender: runner(model, shape, contender.backend, threads, Path(folder))
                for contender, model in models.items()
            }
            # Last, so that all other contenders run between the two.
            runs[_Contender(CONTROL, None, "eager")] = runs[_Contender("dense", None, "eager")]
            able = {str(c): run for c, run in runs.items() if run is not None}
            seconds = interleaved(able, benchmark.repeats)
            unit = float(np.median(seconds[str(_Contender("dense", None, "eager"))]))
            parts = {
                str(contender): parts_of_time(run, _PROFILED)
                for contender, run in runs.items()
                if run is not None
                and contender.kind in ("dense", "compact")
                and contender.backend in eager
            }
            for number, case in enumerate(cases):
                for contender in runs:
                    model = models.get(contender, dense)
                    if contender.case not in (None, number):
                        continue
                    if contender.backend not in (*eager, *case.backends):
                        continue
                    zeros = contender.kind in ("scattered", "sparse")  # shapes stay dense
                    fraction = 1.0 if zeros else _macs(model, shape) / _macs(dense, shape)
                    values = seconds.get(str(contender))
                    row = _row(benchmark, case, contender, values, fraction, unit)
                    rows.append(row | parts.get(str(contender), {}))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def measure_compaction(benchmark: InferenceBenchmark, threads: int) -> dict[str, float]:
    """Time and memory of compacting the model of the first case, in place.

    Returns:
        ``seconds``, and ``peak_memory``: the peak resident memory minus the memory that was
        resident before in addition to the model, as a multiple of the size of the gated model's
        parameters and buffers.
    """
    import gc

    import psutil

    torch.set_num_threads(threads)
    model = gated_copy(random_model(benchmark), benchmark.cases[0], take=True)
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    gc.collect()
    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    compact(model, inplace=True)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"seconds": seconds, "peak_memory": 1 + (peak - before) / size}


@torch.inference_mode(mode=False)
def random_model(benchmark: ModelShape) -> nn.Module:
    """A random classifier of the benchmark's shape, in evaluation mode."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(derive_seed("time_inference", benchmark.name))
    config = AutoConfig.for_model(benchmark.model_type, **benchmark.sizes)
    config.pad_token_id = 0
    model: nn.Module = AutoModelForSequenceClassification.from_config(config)
    return model.eval()


# Gates and the weights that they wrap must be trainable, so they are not made in inference mode.
@torch.inference_mode(mode=False)
@torch.no_grad()
def gated_copy(dense: nn.Module, case: InferenceCase, *, take: bool = False) -> nn.Module:
    """A copy of the model with a case's constant gates and shared weights.

    With ``take`` the model itself is gated.
    """
    model = dense if take else _sharing_copy(dense)
    seed = derive_seed("time_inference", case.gates, str(case.kept))
    generator = torch.Generator().manual_seed(seed)
    if case.gates == "structured":
        attach(model, GateConfig(preset="structured", target=1 - case.kept))
        penalty = sparsity_penalty(model)
        assert isinstance(penalty, MacsPenalty)
        gates = list(penalty.gates())
        for gate in gates:
            gate.latent.normal_(generator=generator)
        # Close the smallest latents globally until at most the target fraction is kept.
        order = torch.cat([gate.latent for gate in gates]).sort().values.tolist()
        closed = bisect.bisect_left(
            range(len(order) - 1), True, key=lambda n: penalty.realised(-order[n]) <= case.kept
        )
        for gate in gates:
            gate.latent.sub_(order[closed])
            gate.harden(1.0)
        return model.eval()
    sides: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {}
    for path in adapter_for(model).gated(model):
        columns, outputs = linear_shape(model.get_submodule(path))
        rows, cols = (
            (torch.rand(size, generator=generator) < case.kept).float()
            for size in (outputs, columns)
        )
        sides[path] = (rows, cols)
    return attach_fixed(model, sides).eval()


def _sharing_copy(model: nn.Module) -> nn.Module:
    """A copy of the model that shares parameters and buffers, to save memory."""
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def scattered_copy(dense: nn.Module, gated: nn.Module) -> nn.Module:
    """A copy of the dense model with unstructured zeros.

    Their fraction equals that of the gated model's closed rows and columns.
    """
    kept = 1 - realised_sparsity(gated)
    seed = derive_seed("time_inference", "scattered", str(kept))
    return scatter_zeros(copy.deepcopy(dense), kept, seed).eval()


def _shape(case: InferenceCase) -> Shape:
    return case.batch, case.length, case.decode


def _macs(model: nn.Module, shape: Shape) -> int:
    batch, length, decode = shape
    if not decode:
        return macs(model, batch, length).total
    token = macs(model, batch, 1)  # attention over one key, scaled to all cached keys below
    return token.linear + token.attention * (length + 1)


def _row(
    benchmark: InferenceBenchmark,
    case: InferenceCase,
    contender: _Contender,
    values: np.ndarray | None,
    fraction: float,
    eager: float,
) -> dict[str, Any]:
    low = median = high = float("nan")
    if values is not None:
        low, median, high = (float(v) for v in np.percentile(1e3 * values, [25, 50, 75]))
    ratio = median / (1e3 * eager)
    asked = contender.kind == "compact" and contender.backend in ("eager", "onednn")
    return {
        "model": benchmark.name,
        "gates": case.gates,
        "kept": case.kept,
        "batch": case.batch,
        "length": case.length,
        "decode": case.decode,
        "contender": contender.kind,
        "backend": contender.backend,
        "median_ms": median,
        "q25_ms": low,
        "q75_ms": high,
        "macs_ratio": fraction,
        "ratio_to_dense": ratio,
        "ratio_to_limit": ratio / fraction,
        "against": case.against if asked else None,
        "reach": case.reach if asked else None,
    }
