"""The linear layer of a compact model: a small matmul between gather and scatter.

The matmul is an inner ``nn.Linear``, so that tools which look for such layers find it: low-rank
adapters, quantisation, hooks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from finegates.modules.kernels import is_plain_tensor, onednn_linear, runs_plainly, select_columns
from finegates.modules.kinds import CompactLayer
from finegates.modules.linear import is_conv1d, multiply
from finegates.modules.stock_methods import adapt_stock_methods

# Matmuls write full vectors: into rows aligned to this many float32 numbers they are up to a fifth
# faster than into rows of an odd size.
_ALIGNED = 16


_TENSORS = ("weight", "bias")


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Makes an ``nn.Linear`` from tensors, without random initialisation."""
    linear = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(linear)
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight)
    linear.register_parameter("bias", None if bias is None else nn.Parameter(bias))
    return linear


def _is_bare(layer: nn.Module) -> bool:
    """Whether a layer is a plain nn.Linear without hooks."""
    return type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)


class CompactLinear(CompactLayer):
    """A linear layer whose removed rows and columns are not stored.

    With kept columns C and kept rows R,

        y[..., R] = x[..., C] W^T + b,    y = 0 elsewhere.

    Without ``cols`` the input is not gathered, without ``rows`` the output is not scattered. This
    is the case if nothing is removed on that side, or if the neighbouring layer is narrowed, too.

    Args:
        weight: (kept out, kept in).
        bias: (kept out,) or None.
        in_features: size of the last dimension of the input; defaults to kept in.
        out_features: size of the last dimension of the output; defaults to kept out.
        cols: int64 (kept in,), increasing, positions of the kept columns; None reads all.
        rows: int64 (kept out,), increasing, positions of the kept rows; None writes all.
        dense_shape: (out, in) of the layer that this one replaces, for budgets; defaults to
            (out_features, in_features).

    Attributes:
        linear: the matmul from kept inputs to kept outputs: an ``nn.Linear``, or an adapter around
            it. In state dicts its weight and bias have this layer's name.
        onednn_from: number of input rows from which oneDNN's matmul is used
            (:func:`finegates.compaction.use_products`); None means never.
        slots: int64 (out_features,), position of each output in those of ``linear``; an output that
            is zero has the position after the last. Derived from ``rows``, and None without.
        keeps_stock_layout: whether weight and bias are those of a stock ``nn.Linear``, so that a
            stock checkpoint can contain them.

    Raises:
        ValueError: the sizes are inconsistent, or an index does not increase strictly within its
            range.
    """

    onednn_from: int | None = None
    keeps_stock_layout: bool = False
    linear: nn.Module
    cols: Tensor | None
    rows: Tensor | None
    slots: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        in_features: int | None = None,
        out_features: int | None = None,
        cols: Tensor | None = None,
        rows: Tensor | None = None,
        dense_shape: tuple[int, int] | None = None,
    ) -> None:
        if weight.ndim != 2:
            raise ValueError(f"the weight must have two dimensions, got {tuple(weight.shape)}")
        kept_out, kept_in = weight.shape
        if bias is not None and bias.shape != (kept_out,):
            raise ValueError(f"the bias must have shape ({kept_out},), got {tuple(bias.shape)}")
        self._place(
            _linear(weight, bias), kept_out, kept_in, in_features, out_features, cols, rows,
            dense_shape,
        )  # fmt: skip

    @classmethod
    def around(
        cls,
        linear: nn.Module,
        kept: tuple[int, int],
        *,
        in_features: int | None = None,
        out_features: int | None = None,
        cols: Tensor | None = None,
        rows: Tensor | None = None,
        dense_shape: tuple[int, int] | None = None,
    ) -> CompactLinear:
        """Makes a compact layer around the layer that multiplies, which stays the same object.

        Args:
            linear: from kept inputs to kept outputs, such as a gated layer.
            kept: (kept out, kept in).
            in_features: as for the class; so are the others.
            out_features: see there.
            cols: see there.
            rows: see there.
            dense_shape: see there.

        Raises:
            ValueError: as for the class.
        """
        made = cls.__new__(cls)
        made._place(linear, *kept, in_features, out_features, cols, rows, dense_shape)
        return made

    def _place(
        self,
        linear: nn.Module,
        kept_out: int,
        kept_in: int,
        in_features: int | None,
        out_features: int | None,
        cols: Tensor | None,
        rows: Tensor | None,
        dense_shape: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self.in_features = kept_in if in_features is None else in_features
        self.out_features = kept_out if out_features is None else out_features
        self.dense_shape = dense_shape or (self.out_features, self.in_features)
        for side, index, kept, size in (
            ("cols", cols, kept_in, self.in_features),
            ("rows", rows, kept_out, self.out_features),
        ):
            if index is None and kept != size:
                raise ValueError(f"{side}: {kept} are kept of {size}, so an index is needed")
            if index is not None and (index.shape != (kept,) or index.dtype != torch.int64):
                raise ValueError(
                    f"{side}: the index must be int64 of shape ({kept},), "
                    f"got {index.dtype} of shape {tuple(index.shape)}"
                )
            if kept > size:
                raise ValueError(f"{side}: {kept} are kept of only {size}")
        self.linear = linear
        self.register_buffer("cols", cols)
        self.register_buffer("rows", rows)
        self.place_outputs()

    @property
    def weight(self) -> Tensor:
        """The inner weight (kept out, kept in)."""
        return self.linear.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The inner bias (kept out,), or None."""
        return self.linear.bias  # type: ignore[return-value]

    def __setattr__(self, name: str, value: Any) -> None:
        # transformers ties an output layer to the embeddings by setting its weight.
        if name in _TENSORS:
            setattr(self.linear, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def kept(self) -> tuple[int, int]:
        """(kept out, kept in)."""
        linear: Any = self.linear
        if is_conv1d(linear):  # in training: of a finished compact model it is nn.Linear
            return linear.nf, linear.nx
        return linear.out_features, linear.in_features

    def check_plain(self, path: str) -> None:
        """Raises ValueError, naming the layer, unless the inner layer is a plain ``nn.Linear``."""
        if ".quantized" in type(self.linear).__module__:  # of torch.ao
            raise ValueError(
                f"layer {path}: its inner layer is quantised ({type(self.linear).__module__}."
                f"{type(self.linear).__name__}); use the model from before it was quantised"
            )
        if type(self.linear) is not nn.Linear:
            raise ValueError(
                f"layer {path}: its inner layer is {type(self.linear).__module__}."
                f"{type(self.linear).__name__}, not nn.Linear; merge adapters first "
                "(merge_and_unload of peft)"
            )
        if not is_plain_tensor(self.linear.weight):
            raise ValueError(
                f"layer {path}: its weight is of {type(self.linear.weight).__name__}, not a plain "
                "tensor; use the model from before it was quantised"
            )

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        if torch.onnx.is_in_onnx_export() and 0 in self.kept:
            return self._without_product(x)
        # Indexing a matrix is several times as fast as indexing the last of three dimensions.
        flat = x.reshape(math.prod(x.shape[:-1]), self.in_features)
        linear = self.linear
        plainly = _is_bare(linear) and runs_plainly(x, linear.weight)  # type: ignore[arg-type]
        if self.cols is not None:
            flat = select_columns(flat, self.cols, plainly)
        if plainly:
            y = self._product(flat, linear)  # type: ignore[arg-type]
        elif flat.shape[-1] == 0 and callable(linear.bias):
            # torch's int8 matmul without inputs returns uninitialised memory.
            y = flat.new_zeros(flat.shape[0], linear.out_features)
            bias = linear.bias()
            y = y if bias is None else y + bias
        else:
            y = multiply(linear, flat)
        if self.slots is not None:
            y = self._placed(y, plainly)
        return y.view(*x.shape[:-1], self.out_features)

    def _without_product(self, x: Tensor) -> Tensor:
        """The outputs of a layer that keeps no columns, or no rows, for ONNX.

        ONNX can neither infer shapes from a size of 0 nor reshape to it.
        """
        bias = self.bias
        shape = (*x.shape[:-1], self.out_features)
        if bias is None or bias.numel() == 0:
            return x.new_zeros(shape)
        if self.rows is not None:
            bias = bias.new_zeros(self.out_features).index_copy(0, self.rows, bias)
        return bias.expand(shape)

    def _placed(self, y: Tensor, plainly: bool) -> Tensor:
        """Scatters the kept outputs between zeros, (n, out_features).

        Gathering every output, with the zeros from one further column, takes half the time of
        writing the kept ones into zeros. Compiled code is faster at writing.
        """
        assert self.rows is not None
        assert self.slots is not None
        if plainly:
            return select_columns(y, self.slots, plainly)
        if torch.onnx.is_in_onnx_export():
            return select_columns(functional.pad(y, (0, 1)), self.slots)
        zeros = y.new_zeros(y.shape[0], self.out_features)
        return zeros.index_copy(1, self.rows, y)

    def _product(self, x: Tensor, linear: nn.Linear) -> Tensor:
        """x W^T + b in inference, (n, kept out); with ``slots`` padded with zeros."""
        weight, bias, padded = linear.weight, linear.bias, self.slots is not None
        kept = weight.shape[0]
        onednn = self.onednn_from is not None and x.numel() >= self.onednn_from * x.shape[-1] > 0
        if onednn and not padded:
            return onednn_linear(x, weight, bias)
        # The reader of a narrow output accepts strides; others may need contiguous memory.
        narrowed = self.out_features < self.dense_shape[0]
        if not padded and (kept % _ALIGNED == 0 or not narrowed):
            return functional.linear(x, weight, bias)
        columns = kept + padded
        room = x.new_empty(x.shape[0], -(-columns // _ALIGNED) * _ALIGNED)
        y = room[:, :kept]
        if onednn:
            y.copy_(onednn_linear(x, weight, bias))
        elif bias is None:
            torch.mm(x, weight.t(), out=y)
        else:
            torch.addmm(bias, x, weight.t(), out=y)
        if not padded:
            return y
        room[:, kept] = 0
        return room

    @classmethod
    def stacked(cls, layers: Sequence[CompactLinear]) -> CompactLinear:
        """Makes one layer with the concatenated outputs of several.

        Args:
            layers: at least one; all read the same columns, and all or none have a bias.

        Raises:
            ValueError: columns or biases differ.
        """
        first = layers[0]
        same_cols = all(
            layer.cols is first.cols
            or (
                (layer.cols is not None and first.cols is not None)
                and torch.equal(layer.cols, first.cols)
            )
            for layer in layers
        )
        if not same_cols or len({layer.in_features for layer in layers}) > 1:
            raise ValueError("layers that read different columns cannot be fused")
        if len({layer.bias is None for layer in layers}) > 1:
            raise ValueError("layers with and without bias cannot be fused")
        written, offset = [], 0
        for layer in layers:
            kept = layer.weight.shape[0]
            rows = torch.arange(kept, device=layer.weight.device)
            written.append(offset + (rows if layer.rows is None else layer.rows))
            offset += layer.out_features
        rows = torch.cat(written)
        biases = [layer.bias for layer in layers if layer.bias is not None]
        return cls(
            torch.cat([layer.weight.detach() for layer in layers]),
            torch.cat([bias.detach() for bias in biases]) if biases else None,
            in_features=first.in_features,
            out_features=offset,
            cols=first.cols,
            rows=None if rows.numel() == offset else rows,
            dense_shape=(sum(layer.dense_shape[0] for layer in layers), first.dense_shape[1]),
        )

    def place_outputs(self) -> None:
        """Rebuilds :attr:`slots`, after the values of ``rows`` changed in place.

        Raises:
            ValueError: the indices do not increase strictly within their ranges.
        """
        self.check_indices()
        # None is not registered as a buffer: tools that move buffers expect tensors.
        for where in (self.__dict__, self._buffers):
            where.pop("slots", None)
        if self.rows is None:
            self.slots = None
            return
        kept = self.rows.numel()
        slots = self.rows.new_full((self.out_features,), kept)
        if not self.rows.is_meta:
            slots[self.rows] = torch.arange(kept, device=self.rows.device)
        self.register_buffer("slots", slots, persistent=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        adapt_stock_methods()  # a pickled model may be the first of its process

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Overrides ``nn.Module``; the inner weight and bias get this layer's name."""
        before = kwargs.get("destination")
        prefix = kwargs.get("prefix", "")
        state = super().state_dict(*args, **kwargs)
        assert before is None or state is before
        for name in _TENSORS:
            if f"{prefix}linear.{name}" in state:
                state[f"{prefix}{name}"] = state.pop(f"{prefix}linear.{name}")
        return state

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in _TENSORS:
            if f"{prefix}{name}" in state_dict:
                state_dict[f"{prefix}linear.{name}"] = state_dict.pop(f"{prefix}{name}")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.place_outputs()

    def check_indices(self) -> None:
        """Raises ValueError unless the indices increase strictly within their ranges."""
        for side, index, size in (
            ("cols", self.cols, self.in_features),
            ("rows", self.rows, self.out_features),
        ):
            if index is None or index.numel() == 0 or index.is_meta:
                continue
            if bool((index.diff() <= 0).any()) or int(index[0]) < 0 or int(index[-1]) >= size:
                raise ValueError(
                    f"the {side} index does not increase strictly within 0..{size - 1}"
                )

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        kept_out, kept_in = self.kept
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"kept={kept_out}x{kept_in} of {self.dense_shape[0]}x{self.dense_shape[1]}, "
            f"gather={self.cols is not None}, scatter={self.rows is not None}"
        )
