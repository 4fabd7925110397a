"""Tables of inference times: dense and compact, backends, scattered zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from finegates.suite.tables.render import BLANK, Column, Table, percent
from finegates.suite.timing.control import CONTROL, is_noisy, load_note

BACKEND_TITLES = {
    "eager": "eager",
    "onednn": "eager, oneDNN",
    "compile": "torch.compile",
    "onnx": "ONNX Runtime",
    "int8": "ONNX Runtime int8",
    "torchao": "torchao int8 weights",
}
KINDS = {
    "compact": "Removed (%)",
    "scattered": "Scattered, dense products (%)",
    "sparse": "Scattered, sparse rows (%)",
}


_CASE = (
    Column("Model", "model", text=True),
    Column("Gates", "gates"),
    Column("Batch", "batch"),
)


def _fixed(places: int) -> Callable[[float | None], str]:
    """Prints milliseconds and ratios, or a blank if nothing was measured."""
    return lambda value: BLANK if value is None or pd.isna(value) else f"{value:.{places}f}"


def inference_table(frame: pd.DataFrame, repeats: list[int], machine: dict[str, Any]) -> Table:
    """Eager times of compact models against the dense model.

    Args:
        frame: rows of one or more calls of ``finegates.suite.timing.inference.time_inference``.
        repeats: rounds of each shape, for the caption.
        machine: ``finegates.suite.runs.machine.hardware`` of the measurement.
    """
    controlled = bool((frame["contender"] == CONTROL).any())
    columns = (
        *_CASE,
        Column("MACs (%)", "macs_ratio", percent),
        Column("Dense (ms)", "dense", _fixed(1)),
        Column("Gated (ms)", "gated", _fixed(1)),
        Column("Compact (ms)", "compact", _fixed(1)),
        Column("To dense", _ratio("ratio_to_dense")),
        Column("To limit", _ratio("ratio_to_limit")),
        Column("Dense, oneDNN (ms)", "fast_dense", _fixed(1)),
        Column("Compact, oneDNN (ms)", "fast_compact", _fixed(1)),
        Column("To limit, compact oneDNN", "fast_to_limit", _fixed(3)),
        Column("To limit, both oneDNN", "fast_to_fast_limit", _fixed(3)),
        *([Column("Dense again, to dense", "control", _control)] if controlled else []),
        Column("Reach", "reach"),
    )
    rows = []
    for case, group in _cases(frame):
        times = group[group["backend"] == "eager"].set_index("contender")
        fast = group[group["backend"] == "onednn"].set_index("contender")
        small = times.loc["compact"]
        row = {
            **case,
            **{name: times.loc[name]["median_ms"] for name in ("dense", "gated", "compact")},
            **{name: small[name] for name in ("macs_ratio", "ratio_to_dense", "ratio_to_limit")},
            "control": times.loc[CONTROL]["ratio_to_dense"] if CONTROL in times.index else None,
            **dict.fromkeys(("fast_dense", "fast_compact", "fast_to_limit", "fast_to_fast_limit")),
            "reach": _reached(small),
        }
        if len(fast):
            best = fast.loc["compact"]
            dense, compact = (fast.loc[name]["median_ms"] for name in ("dense", "compact"))
            row |= {"fast_dense": dense, "fast_compact": compact}
            row["fast_to_limit"] = best["ratio_to_limit"]
            row["fast_to_fast_limit"] = compact / dense / best["macs_ratio"]
            if row["reach"] != BLANK:
                row["reach"] += f", with oneDNN {_reached(best).rsplit(' ', 1)[-1]}"
        rows.append(row)
    caption = (
        f"{_provenance(repeats, machine)} Eager. MACs are those of the compact model relative to "
        "the dense one, attention products included; sides whose removal would not pay, by prices "
        "measured on the spot, stay dense. "
        f"{_CONTROLLED if controlled else ''}The limit is the time of the dense model as "
        "transformers runs it, times that ratio. oneDNN: products by oneDNN instead of torch's "
        "default, where it measured faster on the spot; for both oneDNN the limit is that of the "
        "dense model with oneDNN."
    )
    title = "Inference time, dense against compact"
    return Table("inference", title, caption, frame, columns, rows)


# Limits for compaction and calibration: seconds, and multiples of the gated model's memory.
MOST_SECONDS, MOST_MEMORY = 10.0, 1.2


def joined_machine(machines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Joins the machine descriptions of several shapes for the captions.

    Args:
        machines: ``finegates.suite.runs.machine.hardware`` of each, with ``compaction`` and
            ``calibration``.

    Returns:
        a description of the same layout, with all CPUs and numbers of threads, all compactions, and
        the longest calibration.
    """
    return {
        "cpu": " / ".join(dict.fromkeys(str(machine["cpu"]) for machine in machines)),
        "threads": " / ".join(dict.fromkeys(str(machine["threads"]) for machine in machines)),
        "compaction": {k: v for machine in machines for k, v in machine["compaction"].items()},
        **_load(machines),
        "calibration": max((m["calibration"] for m in machines), key=lambda c: c["seconds"]),
    }


_CONTROLLED = (
    "The dense model is timed a second time in each round: where that is off by more than 5 %, the "
    "case is noisy, and none of its ratios counts. "
)


def _ratio(name: str) -> Callable[[dict[str, Any]], str]:
    """Prints a ratio of a case, marked as noisy if the control is off."""

    def printed(row: dict[str, Any]) -> str:
        noisy = row["control"] is not None and is_noisy(row["control"])
        return f"{_fixed(3)(row[name])}{' (noisy)' if noisy else ''}"

    return printed


def _control(ratio: float | None) -> str:
    """The control's median relative to that of the same model."""
    if ratio is None:
        return BLANK
    return f"{ratio:.3f} (noisy)" if is_noisy(ratio) else f"{ratio:.3f}"


def machine_notes(machine: dict[str, Any]) -> list[str]:
    """Sentences on the times of compaction and calibration, and their limits.

    Args:
        machine: as for :func:`inference_table`, with ``compaction`` (``seconds`` and
            ``peak_memory`` by model) and ``calibration``.
    """
    notes = [
        f"Compacting {name} in place took {cost['seconds']:.1f} s "
        f"({_within(cost['seconds'], MOST_SECONDS, ' s')}) and at its peak "
        f"{cost['peak_memory']:.2f} times the gated model's memory "
        f"({_within(cost['peak_memory'], MOST_MEMORY, '')}).\n"
        for name, cost in machine["compaction"].items()
    ]
    seconds = machine["calibration"]["seconds"]
    notes.append(f"Calibrating took {seconds:.1f} s ({_within(seconds, MOST_SECONDS, ' s')}).\n")
    return notes


def _within(value: float, most: float, unit: str) -> str:
    return f"at most {most:g}{unit}: {'reached' if value <= most else 'missed'}"


def _reached(row: Any) -> str:
    """The ratio that a compact model should reach, and whether it did."""
    if pd.isna(row["reach"]):
        return BLANK
    word = "reached" if row[f"ratio_to_{row['against']}"] <= row["reach"] else "missed"
    return f"{row['reach']:.2f} × {row['against']}: {word}"


def parts_table(frame: pd.DataFrame, _: list[int], machine: dict[str, Any]) -> Table:
    """Time by part of the forward pass, dense and compact.

    Arguments are those of :func:`inference_table`. The parts are measured in separate rounds.
    """
    titles = {
        "products_ms": "Products",
        "attention_ms": "Attention",
        "moving_ms": "Moving data",
        "rest_ms": "Rest",
    }
    columns = (
        *_CASE,
        Column("Products by", "backend"),
        Column("MACs (%)", "macs_ratio", percent),
        *(
            Column(f"{title}, {kind} (ms)", f"{kind}_{part}", _fixed(1))
            for part, title in titles.items()
            for kind in ("dense", "compact")
        ),
        Column("Products and attention, to limit", "to_limit", _fixed(3)),
    )
    rows = []
    for case, group in _cases(frame[frame["backend"].isin(["eager", "onednn"])]):
        for backend, times in group.groupby("backend", sort=False):
            dense, small = (times.set_index("contender").loc[k] for k in ("dense", "compact"))
            computed = [row["products_ms"] + row["attention_ms"] for row in (dense, small)]
            rows.append(
                {
                    **case,
                    "backend": "oneDNN" if backend == "onednn" else "torch",
                    "macs_ratio": small["macs_ratio"],
                    **{f"dense_{part}": dense[part] for part in titles},
                    **{f"compact_{part}": small[part] for part in titles},
                    "to_limit": computed[1] / computed[0] / small["macs_ratio"],
                }
            )
    caption = (
        f"The same models run eagerly on {machine['cpu']}, {machine['threads']} threads, a few "
        "further times each and one after another, under torch's profiler, which takes time "
        "itself; medians. Products are those of linear layers; attention holds its softmax, "
        "which grows with the number of heads and not with their width; moving data is selecting "
        "and copying; the rest is norms, activations, sums and embedding. Multiply-accumulates are "
        "in the first two alone; the last column compares their times, compact against dense by "
        "the same products, with the MACs."
    )
    title = "What the time of inference goes to"
    return Table("inference_parts", title, caption, frame, columns, rows)


def scattered_table(frame: pd.DataFrame, repeats: list[int], machine: dict[str, Any]) -> Table:
    """Times with the same number of zeros, structured and scattered.

    Arguments are those of :func:`inference_table`.
    """
    columns = (
        *_CASE,
        Column("Dense (ms)", "dense", _fixed(1)),
        *(Column(title, kind, percent) for kind, title in KINDS.items()),
    )
    rows = []
    for case, group in _cases(frame[frame["backend"] == "eager"]):
        times = group.set_index("contender")
        if "scattered" not in times.index:
            continue
        ratios = {kind: times.loc[kind]["ratio_to_dense"] for kind in KINDS}
        rows.append({**case, "dense": times.loc["dense"]["median_ms"], **ratios})
    caption = (
        f"{_provenance(repeats, machine)} Eager; times relative to the dense model, in per cent. "
        "All three have the same share of zero weights in the gated layers: in closed rows and "
        "columns, which are removed together with what else bears on nothing then, scattered at "
        "random under dense products, and scattered with the weights in compressed sparse rows "
        "(torch)."
    )
    title = "Time of structured and of scattered zeros"
    return Table("inference_scattered", title, caption, frame, columns, rows)


def backend_table(frame: pd.DataFrame, repeats: list[int], machine: dict[str, Any]) -> Table:
    """Dense and compact times by backend, as :func:`inference_table`."""
    backends = [b for b in BACKEND_TITLES if b in set(frame["backend"])]
    columns = (
        *_CASE,
        Column("Contender", "contender"),
        *(Column(f"{BACKEND_TITLES[backend]} (ms)", backend, _fixed(1)) for backend in backends),
    )
    rows = []
    for case, group in _cases(frame):
        if set(group["backend"]) <= {"eager", "onednn"}:
            continue
        for kind in ("dense", "gated", "compact"):
            times = group[group["contender"] == kind].set_index("backend")["median_ms"]
            rows.append({**case, "contender": kind, **{b: times.get(b) for b in backends}})
    caption = (
        f"{_provenance(repeats, machine)} Gated: the dense model multiplied by its gates, nothing "
        "removed. int8: weights quantised by ONNX Runtime (and inputs, dynamically) or by torchao "
        "(weights alone), which changes outputs. "
        f"{BLANK} marks what was not asked for, or what this machine could not run."
    )
    title = "Inference time by backend"
    return Table("inference_backends", title, caption, frame, columns, rows)


def _cases(frame: pd.DataFrame) -> Iterable[tuple[dict[str, Any], pd.DataFrame]]:
    """The printed model, gates and batch of each case, with its rows."""
    keys = ["model", "gates", "kept", "batch", "length", "decode"]
    for (model, gates, kept, batch, length, decode), group in frame.groupby(keys, sort=False):
        closed = "none closed" if kept == 1 else f"{gates}, {kept:g} kept"
        shape = f"{batch} × {length}" + (" + 1, cached" if bool(decode) else "")
        yield {"model": str(model), "gates": closed, "batch": shape}, group


def _load(machines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The smallest and largest load average, empty if none was recorded."""
    loads = [load for machine in machines for load in machine.get("load", ()) if load is not None]
    return {"load": [min(loads), max(loads)]} if loads else {}


def _provenance(repeats: list[int], machine: dict[str, Any]) -> str:
    rounds = " to ".join(str(number) for number in dict.fromkeys((min(repeats), max(repeats))))
    return (
        "Forward passes of classifiers with random weights of the named shape and random gates, "
        f"float32; medians of {rounds} interleaved rounds on {machine['cpu']}, "
        f"{machine['threads']} threads. {load_note(machine)}"
        "Random gates keep each row and column of each layer with the given probability, "
        "structured ones the given fraction of the MACs."
    )
