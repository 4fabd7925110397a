"""Costs: when is a smaller matmul worth the gather and scatter around it?

A closed input column is removed by gathering the other columns first, a closed output row by
scattering the other rows between zeros. Moving a number costs as much as some tens of
multiply-accumulates. If that is more than the smaller matmul saves, the side stays dense, with
zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from finegates.arguments import check_number
from finegates.gates.prices import Prices

_WHOLE = ("onednn_from", "head_multiple", "length")
_NAMES = ("dtype", "device")
REQUIRED = ("product", "gather", "scatter", "onednn_from", "head_multiple")


@dataclass(frozen=True)
class Costs:
    """Seconds per token, linear in the amounts of work and moved values.

    The defaults were measured on two cores of an x86 server CPU in float32; only their ratios
    matter for decisions. Those of 0 or None are unknown.

    Attributes:
        product: seconds per multiply-accumulate of a linear layer.
        gather: seconds per gathered value.
        scatter: seconds per output of a scatter, kept or zero.
        onednn_from: number of tokens from which oneDNN's float32 matmul is faster than torch's
            default, and is used (:func:`finegates.compaction.use_products`); None means never.
        head_multiple: heads are padded with zeros to the next multiple of it, for machines on which
            attention over full vectors is faster; 1 means no padding.
        output: seconds per output of a linear layer, in addition to its products: narrow matmuls
            take longer than their multiply-accumulates.
        input: seconds per input of a linear layer, likewise; fused layers read theirs once.
        layer: seconds per linear layer, likewise.
        gather_call: seconds per gather, in addition to those of its values.
        scatter_call: seconds per scatter, likewise.
        attention: seconds per multiply-accumulate in the matmuls of attention; None: as
            ``product``.
        score: seconds per token that one head attends to, for softmax and mask.
        activation: seconds per intermediate value of a feed-forward part.
        rest: seconds of everything that compaction leaves as it is: norms, sums, embeddings, head.
        length: tokens of the sequences at which it was measured.
        dtype: of the measured model, such as ``"float32"``.
        device: type of the measured device, such as ``"cpu"``.

    Raises:
        ValueError: a number is out of its range; a count is not a positive integer; a name is not
            a string.
        TypeError: a price is not a number.
    """

    product: float = 1.1e-11
    gather: float = 2.0e-10
    scatter: float = 2.0e-10
    onednn_from: int | None = None
    head_multiple: int = 8
    output: float = 0.0
    input: float = 0.0
    layer: float = 0.0
    gather_call: float = 0.0
    scatter_call: float = 0.0
    attention: float | None = None
    score: float = 0.0
    activation: float = 0.0
    rest: float = 0.0
    length: int | None = None
    dtype: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if name in _WHOLE:
                if type(value) is not int or value < 1:
                    raise ValueError(f"{name} must be a positive integer, got {value!r}")
            elif name in _NAMES:
                if not isinstance(value, str):
                    raise ValueError(f"{name} must be a name, got {value!r}")
            else:
                check_number(name, value)
                may_be_zero = field.default == 0.0
                if not (0 if may_be_zero else 1e-300) <= value < float("inf"):
                    least = "at least 0" if may_be_zero else "positive"
                    raise ValueError(f"{name} must be {least} and finite, got {value}")

    def seconds(
        self,
        outputs: int,
        inputs: int,
        *,
        gathers: bool,
        scatters_to: int | None,
        joined: bool = False,
    ) -> float:
        """Predicted time of one token in a linear layer.

        Args:
            outputs: rows of the weight.
            inputs: columns of the weight.
            gathers: whether the inputs are gathered.
            scatters_to: size of the scattered output; None without a scatter.
            joined: whether the layer is fused with another one, whose inputs it reads.
        """
        read = 0.0 if joined else self.input * inputs + self.layer
        moved = self.gather * inputs + self.gather_call if gathers else 0.0
        if scatters_to is not None:
            moved += self.scatter * scatters_to
            moved += 0.0 if joined else self.scatter_call
        return self.product * outputs * inputs + self.output * outputs + read + moved

    def prices(self) -> Prices:
        """Prices in seconds, without the movement of data."""
        attention = self.product if self.attention is None else self.attention
        return Prices(self.product, attention, self.score, self.output, self.activation)

    def check_model(self, model: nn.Module) -> None:
        """Raises ValueError if the model has another dtype or device."""
        weight = next((p for p in model.parameters() if p.is_floating_point()), None)
        if weight is None or weight.is_meta:
            return
        found = {"dtype": str(weight.dtype).removeprefix("torch."), "device": weight.device.type}
        for name, value in found.items():
            measured = getattr(self, name)
            if measured is not None and measured != value:
                raise ValueError(
                    f"the cost model was measured on {name} {measured!r}, and the model has "
                    f"{value!r}, whose times differ; measure with the model that will be used: "
                    "finegates.calibrate(model)"
                )

    def as_dict(self) -> dict[str, Any]:
        """Returns the numbers without those that are unknown."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name in REQUIRED or getattr(self, field.name) != field.default
        }
