"""Tables of inference times: dense against compact, by backend, structured and scattered zeros."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from finegates.suite.tables.render import BLANK, Table

BACKEND_TITLES = {
    "eager": "eager",
    "onednn": "eager, oneDNN",
    "compile": "torch.compile",
    "onnx": "ONNX Runtime",
    "int8": "ONNX Runtime int8",
}
KINDS = {
    "compact": "Removed (%)",
    "scattered": "Scattered, dense products (%)",
    "sparse": "Scattered, sparse rows (%)",
}


def inference_table(frame: pd.DataFrame, repeats: list[int], machine: dict[str, Any]) -> Table:
    """The measured times of eager models as a table of compact models.

    Args:
        frame: of one or more calls of ``finegates.suite.timing.inference.time_inference``.
        repeats: rounds of the shapes, for the caption.
        machine: ``finegates.suite.runs.machine.hardware`` of the measurement.
    """
    header = (
        "Model", "Gates", "Batch", "MACs (%)", "Dense (ms)", "Gated (ms)", "Compact (ms)",
        "To dense", "To limit", "Dense, oneDNN (ms)", "Compact, oneDNN (ms)",
        "To limit, compact oneDNN", "To limit, both oneDNN", "Reach",
    )  # fmt: skip
    cells: list[tuple[str, ...]] = []
    for names, group in _cases(frame):
        times = group[group["backend"] == "eager"].set_index("contender")
        fast = group[group["backend"] == "onednn"].set_index("contender")
        small = times.loc["compact"]
        faster = [BLANK] * 4
        reached = _reached(small)
        if len(fast):
            best = fast.loc["compact"]
            milliseconds = [fast.loc[name]["median_ms"] for name in ("dense", "compact")]
            alike = milliseconds[1] / milliseconds[0] / best["macs_ratio"]
            faster = [*(f"{ms:.1f}" for ms in milliseconds), f"{best['ratio_to_limit']:.3f}"]
            faster.append(f"{alike:.3f}")
            if reached != BLANK:
                reached += f", with oneDNN {_reached(best).rsplit(' ', 1)[-1]}"
        cells.append(
            (
                *names,
                f"{100 * small['macs_ratio']:.1f}",
                *(f"{times.loc[name]['median_ms']:.1f}" for name in ("dense", "gated", "compact")),
                f"{small['ratio_to_dense']:.3f}",
                f"{small['ratio_to_limit']:.3f}",
                *faster,
                reached,
            )
        )
    caption = (
        f"{_provenance(repeats, machine)} Eager. MACs are those of the compact model relative to "
        "the dense one, attention products included; sides whose removal would not pay, by prices "
        "measured on the spot, stay dense. The limit is the time of the dense model as "
        "transformers runs it, times that ratio. oneDNN: products by oneDNN instead of torch's "
        "default, where it measured faster on the spot; for both oneDNN the limit is that of the "
        "dense model with oneDNN."
    )
    title = "Inference time, dense against compact"
    return Table("inference", title, caption, frame, header, tuple(cells))


# What compacting and calibrating may take: seconds, and multiples of the gated model's memory.
MOST_SECONDS, MOST_MEMORY = 10.0, 1.2


def joined_machine(machines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the captions say of the machine, from the measurements of several shapes.

    Args:
        machines: ``finegates.suite.runs.machine.hardware`` of each, with ``compaction`` and
        ``calibration``.

    Returns:
        the same of all: one CPU or several, joined, the numbers of threads, the compactions of all,
        and the longest calibration.
    """
    return {
        "cpu": " / ".join(dict.fromkeys(str(machine["cpu"]) for machine in machines)),
        "threads": " / ".join(dict.fromkeys(str(machine["threads"]) for machine in machines)),
        "compaction": {k: v for machine in machines for k, v in machine["compaction"].items()},
        "calibration": max((m["calibration"] for m in machines), key=lambda c: c["seconds"]),
    }


def machine_notes(machine: dict[str, Any]) -> list[str]:
    """Sentences on what compacting and calibrating took, beside what they may take.

    Args:
        machine: as of :func:`inference_table`, with ``compaction`` (by model ``seconds`` and
            ``peak_memory``) and ``calibration``.
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
    """What a compact model was to reach, and whether it did."""
    if pd.isna(row["reach"]):
        return BLANK
    word = "reached" if row[f"ratio_to_{row['against']}"] <= row["reach"] else "missed"
    return f"{row['reach']:.2f} × {row['against']}: {word}"


def parts_table(frame: pd.DataFrame, _: list[int], machine: dict[str, Any]) -> Table:
    """What the time goes to, dense and compact; arguments as :func:`inference_table`, whose
    rounds these are not."""
    titles = {
        "products_ms": "Products",
        "attention_ms": "Attention",
        "moving_ms": "Moving data",
        "rest_ms": "Rest",
    }
    header = (
        "Model", "Gates", "Batch", "Products by", "MACs (%)",
        *(f"{title}, {kind} (ms)" for title in titles.values() for kind in ("dense", "compact")),
        "Products and attention, to limit",
    )  # fmt: skip
    cells: list[tuple[str, ...]] = []
    for names, group in _cases(frame[frame["backend"].isin(["eager", "onednn"])]):
        for backend, times in group.groupby("backend", sort=False):
            dense, small = (times.set_index("contender").loc[k] for k in ("dense", "compact"))
            computed = [row["products_ms"] + row["attention_ms"] for row in (dense, small)]
            cells.append(
                (
                    *names,
                    "oneDNN" if backend == "onednn" else "torch",
                    f"{100 * small['macs_ratio']:.1f}",
                    *(f"{row[part]:.1f}" for part in titles for row in (dense, small)),
                    f"{computed[1] / computed[0] / small['macs_ratio']:.3f}",
                )
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
    return Table("inference_parts", title, caption, frame, header, tuple(cells))


def scattered_table(frame: pd.DataFrame, repeats: list[int], machine: dict[str, Any]) -> Table:
    """As many zeros in whole rows and columns and scattered; arguments as
    :func:`inference_table`."""
    header = ("Model", "Gates", "Batch", "Dense (ms)", *KINDS.values())
    cells: list[tuple[str, ...]] = []
    for names, group in _cases(frame[frame["backend"] == "eager"]):
        times = group.set_index("contender")
        if "scattered" not in times.index:
            continue
        ratios = (100 * times.loc[kind]["ratio_to_dense"] for kind in KINDS)
        dense = f"{times.loc['dense']['median_ms']:.1f}"
        cells.append((*names, dense, *(f"{ratio:.1f}" for ratio in ratios)))
    caption = (
        f"{_provenance(repeats, machine)} Eager; times relative to the dense model, in per cent. "
        "All three have the same share of zero weights in the gated layers: in closed rows and "
        "columns, which are removed together with what else bears on nothing then, scattered at "
        "random under dense products, and scattered with the weights in compressed sparse rows "
        "(torch)."
    )
    title = "Time of structured and of scattered zeros"
    return Table("inference_scattered", title, caption, frame, header, tuple(cells))


def backend_table(frame: pd.DataFrame, repeats: list[int], machine: dict[str, Any]) -> Table:
    """Dense and compact by every backend that was timed; arguments as :func:`inference_table`."""
    backends = [b for b in BACKEND_TITLES if b in set(frame["backend"])]
    titles = (f"{BACKEND_TITLES[backend]} (ms)" for backend in backends)
    header = ("Model", "Gates", "Batch", "Contender", *titles)
    cells: list[tuple[str, ...]] = []
    for names, group in _cases(frame):
        if set(group["backend"]) <= {"eager", "onednn"}:
            continue
        for kind in ("dense", "gated", "compact"):
            times = group[group["contender"] == kind].set_index("backend")["median_ms"]
            shown = (times.get(backend, float("nan")) for backend in backends)
            printed = (BLANK if pd.isna(ms) else f"{ms:.1f}" for ms in shown)
            cells.append((*names, kind, *printed))
    caption = (
        f"{_provenance(repeats, machine)} Gated: the dense model multiplied by its gates, nothing "
        "removed. int8: weights quantised dynamically by ONNX Runtime, which changes outputs. "
        f"{BLANK} marks what was not asked for, or what this machine could not run."
    )
    title = "Inference time by backend"
    return Table("inference_backends", title, caption, frame, header, tuple(cells))


def _cases(frame: pd.DataFrame) -> Iterable[tuple[tuple[str, str, str], pd.DataFrame]]:
    """Printed model, gates and batch of every case, and its rows."""
    keys = ["model", "gates", "kept", "batch", "length", "decode"]
    for (model, gates, kept, batch, length, decode), group in frame.groupby(keys, sort=False):
        closed = "none closed" if kept == 1 else f"{gates}, {kept:g} kept"
        shape = f"{batch} × {length}" + (" + 1, cached" if bool(decode) else "")
        yield (str(model), closed, shape), group


def _provenance(repeats: list[int], machine: dict[str, Any]) -> str:
    rounds = " to ".join(str(number) for number in dict.fromkeys((min(repeats), max(repeats))))
    return (
        "Forward passes of classifiers with random weights of the named shape and random gates, "
        f"float32; medians of {rounds} interleaved rounds on {machine['cpu']}, "
        f"{machine['threads']} threads. Random gates keep each row and column of each layer with "
        "the given probability, structured ones the given fraction of the MACs."
    )
