"""Time of a forward pass by part: matmuls, attention, data movement."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch.profiler import ProfilerActivity, profile

PRODUCTS = ("mm", "addmm", "_linear_pointwise")
ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu", "bmm", "baddbmm", "_softmax",
)  # fmt: skip
MOVING = ("gather", "index_select", "index_copy_", "copy_", "cat", "fill_", "zero_")
PARTS = ("products_ms", "attention_ms", "moving_ms", "rest_ms")


def parts_of_time(run: Callable[[], object], rounds: int) -> dict[str, float]:
    """Profiles a forward pass by part. The caller has warmed it up.

    Args:
        run: an eager forward pass on the CPU.
        rounds: profiled runs, at least 1.

    Returns:
        median milliseconds by name in ``PARTS``: matmuls of linear layers; matmuls and softmax of
        attention; operators that only select or copy data; norms, activations, sums and all others.
    """
    found = np.empty((rounds, len(PARTS)))
    for number in range(rounds):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            run()
        spent = dict.fromkeys(PARTS, 0.0)
        for operator in profiler.key_averages():
            spent[_part(operator.key)] += operator.self_cpu_time_total / 1e3
        found[number] = [spent[part] for part in PARTS]
    return dict(zip(PARTS, map(float, np.median(found, axis=0)), strict=True))


def _part(operator: str) -> str:
    name = operator.rsplit("::", 1)[-1]
    for part, names in zip(PARTS, (PRODUCTS, ATTENTION, MOVING), strict=False):
        if name in names:
            return part
    return PARTS[-1]
