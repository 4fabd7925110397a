"""Cost model: when is a smaller matmul worth the gather and scatter around it?

A closed input column is removed by gathering the other columns first, a closed output row by
scattering the other rows between zeros. Moving a number costs as much as some tens of
multiply-accumulates. If that is more than the smaller matmul saves, the side stays dense, with
zeros.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finegates.files import parse_json, write_text
from finegates.modules.kernels import has_onednn, onednn_linear, select_columns


@dataclass(frozen=True)
class CostModel:
    """Seconds per token, linear in the numbers of MACs and moved values.

    The defaults were measured on two cores of an x86 server CPU in float32; only their ratios
    matter for decisions. :func:`calibrate` measures this machine.

    Attributes:
        product: seconds per multiply-accumulate.
        gather: seconds per gathered value.
        scatter: seconds per output of a scatter, kept or zero.
        onednn_from: number of tokens from which oneDNN's float32 matmul is faster than torch's
            default, and is used (:func:`finegates.compaction.use_products`); None means never.
        head_multiple: heads are padded with zeros to the next multiple of it, for machines on which
            attention over full vectors is faster; 1 means no padding.
    """

    product: float = 1.1e-11
    gather: float = 2.0e-10
    scatter: float = 2.0e-10
    onednn_from: int | None = None
    head_multiple: int = 8

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("onednn_from", "head_multiple"):
                missing = field.name == "onednn_from" and value is None
                if not missing and (type(value) is not int or value < 1):
                    raise ValueError(f"{field.name} must be a positive integer, got {value!r}")
            elif not 0 < value < float("inf"):
                raise ValueError(f"{field.name} must be positive and finite, got {value}")

    def seconds(
        self, outputs: int, inputs: int, *, gathers: bool, scatters_to: int | None
    ) -> float:
        """Predicted time of one token.

        Args:
            outputs: rows of the weight.
            inputs: columns of the weight.
            gathers: whether the inputs are gathered.
            scatters_to: size of the scattered output; None without a scatter.
        """
        moved = self.gather * inputs if gathers else 0.0
        if scatters_to is not None:
            moved += self.scatter * scatters_to
        return self.product * outputs * inputs + moved

    def save(self, path: str | Path) -> None:
        """Writes the numbers as JSON, atomically."""
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> CostModel:
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: the file is not a cost model; the message names it.
        """
        try:
            values = parse_json(Path(path).read_text(encoding="utf-8"))
            whole = ("onednn_from", "head_multiple")
            missing = [field.name for field in fields(cls) if field.name not in values]
            if missing:
                raise ValueError(f"{missing[0]} is missing")
            numbers: dict[str, Any] = {
                name: value if name in whole else float(value) for name, value in values.items()
            }
            return cls(**numbers)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is not a cost model: {error}") from error


def calibrate(
    *,
    width: int = 768,
    tokens: int = 1024,
    repeats: int = 30,
    dtype: torch.dtype = torch.float32,
    onednn: bool = True,
) -> CostModel:
    """Measures this machine's costs with torch's current number of threads.

    It takes about a second.

    Args:
        width: inputs and outputs of the measured layer.
        tokens: rows of its input.
        repeats: rounds, of which the medians are used.
        dtype: of the layer.
        onednn: also try oneDNN's matmul in float32; otherwise torch's default is always used.
    """
    half = width // 2
    here: dict[str, Any] = {"dtype": dtype, "device": "cpu"}
    x, weight = torch.randn(tokens, width, **here), torch.randn(width, width, **here)
    kept = torch.arange(0, width, 2, device="cpu")[:half]
    slots = torch.full((width,), half, dtype=torch.int64, device="cpu").index_copy_(
        0, kept, torch.arange(half, device="cpu")
    )
    with torch.inference_mode():
        y = x[:, :half].contiguous()
        room = torch.zeros(tokens, half + 1, **here)
        product = _median(lambda: torch.nn.functional.linear(x, weight), repeats)
        onednn_from = None
        if onednn and dtype == torch.float32 and has_onednn():
            onednn_from = _onednn_from(x, weight, repeats)
        gather = _median(lambda: select_columns(x, kept), repeats)
        scatter = _median(lambda: select_columns(room, slots), repeats)
        if onednn_from is not None:
            product = _median(lambda: onednn_linear(x, weight, None), repeats)
            scatter += _median(lambda: room[:, :half].copy_(y), repeats)
    least = 1e-15
    return CostModel(
        product=max(least, product / (tokens * width * width)),
        gather=max(least, gather / (tokens * half)),
        scatter=max(least, scatter / (tokens * width)),
        onednn_from=onednn_from,
        head_multiple=_head_multiple(tokens, repeats, dtype),
    )


def _head_multiple(tokens: int, repeats: int, dtype: torch.dtype) -> int:
    """8, the size of a vector, if attention is faster with heads of 48 than of 45."""
    heads, length = 12, min(tokens, 128)

    def attend(width: int) -> float:
        shape = (max(tokens // length, 1), length, heads, width)
        q, k, v = (torch.randn(shape, dtype=dtype, device="cpu").transpose(1, 2) for _ in range(3))
        attention = torch.nn.functional.scaled_dot_product_attention
        return _median(lambda: attention(q, k, v), repeats)

    with torch.inference_mode():
        return 8 if attend(48) < attend(45) else 1


def _onednn_from(x: torch.Tensor, weight: torch.Tensor, repeats: int) -> int | None:
    """The smallest power of four of rows from which oneDNN is always faster."""
    first, rows = None, x.shape[0]
    while rows >= 1:
        part = x[:rows]
        default = _median(lambda: torch.nn.functional.linear(part, weight), repeats)  # noqa: B023
        other = _median(lambda: onednn_linear(part, weight, None), repeats)  # noqa: B023
        if other > 0.95 * default:
            break
        first, rows = rows, rows // 4
    return first


def _median(run: Callable[[], object], repeats: int) -> float:
    seconds = []
    for turn in range(-3, repeats):
        start = time.perf_counter()
        run()
        if turn >= 0:
            seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
