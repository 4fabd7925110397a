"""Loss, gradient and Gauss–Newton spectrum of a classifier, from the tangents of its rows.

With z_i the outputs of row i that the loss sees, k numbers, and J_i their Jacobian in the
parameters (the *tangents*),

    ∇L = (1/n) Σ J_iᵀ ℓ'(z_i),        Gauss–Newton = (1/n) Σ J_iᵀ ℓ''(z_i) J_i.

The second has rank at most nk. So its whole non-zero spectrum is that of an nk × nk matrix, and one
backward pass for each of the k outputs gives it exactly. For a loss L ≥ 0, ‖∇L‖²/2L is at most
‖∇L‖²/2(L − L*): a lower estimate of the PL ratio that needs no L*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from finegates.gates.gated_linear import gated_layers
from theory.free_gates import FreeGate
from theory.problems import Array

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class OutputLoss:
    """The loss as a function of the outputs of single rows.

    Attributes:
        value: ℓ, shape (n,).
        slope: ℓ', shape (n, k).
        curvature: ℓ'', shape (n, k, k).
        most: an upper bound of ℓ'' for all outputs, shape (k, k).
    """

    value: Array
    slope: Array
    curvature: Array
    most: Array


def seen_outputs(logits: Tensor) -> Tensor:
    """The outputs that the loss sees, (n, k): differences to the first logit, or one prediction.

    Args:
        logits: (n, classes); one column for regression.
    """
    return logits if logits.shape[1] == 1 else logits[:, 1:] - logits[:, :1]


def output_loss(outputs: Array, labels: Array) -> OutputLoss:
    """Cross-entropy, or the squared error for labels that are not integers.

    The curvature of cross-entropy is Diag(p) − ppᵀ without the first class, at most
    ½(I − 11ᵀ/classes) (Böhning 1992): ¼ for two classes. For more classes no p attains it.

    Args:
        outputs: of :func:`seen_outputs`, (n, k).
        labels: (n,).

    Raises:
        ValueError: the loss is not finite.
    """
    count, size = outputs.shape
    if not np.issubdtype(labels.dtype, np.integer):
        error = outputs - labels[:, None]
        found = OutputLoss(
            np.square(error).sum(axis=1), 2 * error, np.full((count, 1, 1), 2.0), 2.0 * np.eye(1)
        )
    else:
        padded = np.concatenate([np.zeros((count, 1)), outputs], axis=1)
        top = padded.max(axis=1, keepdims=True)
        logs = padded - top - np.log(np.exp(padded - top).sum(axis=1, keepdims=True))
        shares = np.exp(logs[:, 1:])
        wanted = np.eye(size + 1)[labels][:, 1:]
        found = OutputLoss(
            -logs[np.arange(count), labels],
            shares - wanted,
            shares[:, :, None] * np.eye(size) - shares[:, :, None] * shares[:, None, :],
            (np.eye(size) - 1 / (size + 1)) / 2,
        )
    if not np.isfinite(found.value).all():
        raise ValueError(f"the loss is {found.value.mean()}: there is no landscape to look at")
    return found


@dataclass(frozen=True)
class Tangents:
    """The linearisation of a classifier in some parameters, on n rows.

    Attributes:
        loss: at the outputs.
        jacobian: of the outputs, shape (n, k, parameters).
    """

    loss: OutputLoss
    jacobian: Array

    @property
    def mean(self) -> float:
        """L."""
        return float(self.loss.value.mean())

    @property
    def gradient(self) -> Array:
        """∇L, shape (parameters,)."""
        return np.asarray(np.einsum("nk,nkp->p", self.loss.slope, self.jacobian)) / self._rows

    def row_gradients(self) -> Array:
        """∇ℓ_i of every row, shape (n, parameters)."""
        return np.asarray(np.einsum("nk,nkp->np", self.loss.slope, self.jacobian))

    def scaled(self, slopes: Array) -> Tangents:
        """The same in other parameters, of which each of these is a function with this slope."""
        return Tangents(self.loss, self.jacobian * slopes)

    def root(self, *, most: bool = False) -> Array:
        """B, shape (nk, parameters), with Gauss–Newton = BᵀB.

        Args:
            most: with the upper bound of the loss's curvature.
        """
        curvature = np.broadcast_to(self.loss.most, self.loss.curvature.shape)
        values, vectors = np.linalg.eigh(curvature if most else self.loss.curvature)
        half = np.sqrt(np.maximum(values, 0.0))[:, :, None] * vectors.swapaxes(1, 2)
        rows = (half @ self.jacobian).reshape(-1, self.jacobian.shape[2])
        return np.asarray(rows / np.sqrt(self._rows))

    @property
    def _rows(self) -> int:
        return len(self.jacobian)


@dataclass(frozen=True)
class Local:
    """Loss, gradient and curvature at one point.

    Attributes:
        loss: L.
        squared_gradient: ‖∇L‖².
        ratio: ‖∇L‖²/2L.
        largest: eigenvalue of the Gauss–Newton matrix.
        smallest: the last of its min(nk, parameters) largest eigenvalues, at least 0.
        size: number of parameters.
    """

    loss: float
    squared_gradient: float
    ratio: float
    largest: float
    smallest: float
    size: int


def local_landscape(tangents: Tangents) -> Local:
    """Loss, gradient and extreme eigenvalues of the Gauss–Newton matrix."""
    gradient, root = tangents.gradient, tangents.root()
    squared, height = float(gradient @ gradient), tangents.mean
    values = np.linalg.eigvalsh(root @ root.T if len(root) <= root.shape[1] else root.T @ root)
    low, high = (max(float(value), 0.0) for value in (values[0], values[-1]))
    return Local(height, squared, squared / (2 * height), high, low, root.shape[1])


def tangents_of(
    model: nn.Module, leaves: Sequence[nn.Module], batches: Sequence[Batch]
) -> Tangents:
    """The tangents of a classifier in evaluation mode.

    Args:
        model: returns ``logits``; its layers map (batch, tokens, features).
        leaves: the modules whose parameters move: free gates, or linear layers without biases,
            such as LoRA's factors.
        batches: inputs with ``labels``; padding must not change the logits.

    Raises:
        ValueError: there are no leaves, or the loss is not finite.
        TypeError: a leaf is neither a free gate nor a linear layer.
    """
    if not leaves:
        raise ValueError("there are no parameters to look at")
    parts, outputs, labels = [], [], []
    for batch in batches:
        with _watched(model, leaves, len(batch["labels"])) as calls:
            found = seen_outputs(model(**batch).logits)
            seen = [call.tensor for leaf in leaves for call in calls[leaf]]
            slopes = [
                torch.autograd.grad(
                    column.sum(), seen, retain_graph=True, materialize_grads=True, allow_unused=True
                )
                for column in found.T
            ]
        rows = [_row_gradients(leaves, calls, part) for part in slopes]
        parts.append(torch.stack(rows, dim=1).numpy())  # (batch, k, parameters)
        outputs.append(found.detach().numpy())
        labels.append(batch["labels"].numpy())
    return Tangents(
        output_loss(np.concatenate(outputs), np.concatenate(labels)), np.concatenate(parts)
    )


@dataclass(frozen=True)
class _Call:
    """A tensor of the forward pass, and how its gradient gives those of single rows."""

    tensor: Tensor
    row_gradients: Callable[[Tensor], Tensor]


def _row_gradients(
    leaves: Sequence[nn.Module], calls: Mapping[nn.Module, list[_Call]], slopes: Sequence[Tensor]
) -> Tensor:
    """Gradients of rows in all leaves, (batch, parameters); a leaf sums over its calls."""
    left = iter(slopes)
    return torch.cat(
        [torch.stack([call.row_gradients(next(left)) for call in calls[leaf]]).sum(0)
         for leaf in leaves],
        dim=1,
    )  # fmt: skip


@contextmanager
def _watched(
    model: nn.Module, leaves: Sequence[nn.Module], count: int
) -> Iterator[dict[nn.Module, list[_Call]]]:
    """Within the block, the forward pass fills the calls of each leaf."""
    calls: dict[nn.Module, list[_Call]] = {leaf: [] for leaf in leaves}

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].detach()
        calls[layer].append(
            _Call(output, lambda slope: torch.einsum("bto,bti->boi", slope, x).flatten(1))
        )

    def check(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].ndim != 3:
            raise ValueError(
                "gradients of rows need inputs (batch, tokens, features), got "
                f"{tuple(inputs[0].shape)}; exclude the layer"
            )

    handles = [layer.register_forward_pre_hook(check) for layer in gated_layers(model).values()]
    try:
        for leaf in leaves:
            if isinstance(leaf, FreeGate):
                # One copy of the gate for each row, so that a row has a gradient of its own.
                values = leaf.values.detach()
                leaf.copies = values.expand(count, 1, -1).clone().requires_grad_()
                calls[leaf].append(_Call(leaf.copies, lambda slope: slope.flatten(1)))
            elif isinstance(leaf, nn.Linear) and leaf.bias is None:
                handles.append(leaf.register_forward_pre_hook(check))
                handles.append(leaf.register_forward_hook(keep))
            else:
                raise TypeError(
                    f"{type(leaf).__name__} is neither a free gate nor a linear layer without "
                    "a bias"
                )
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        for leaf in leaves:
            if isinstance(leaf, FreeGate):
                leaf.copies = None
