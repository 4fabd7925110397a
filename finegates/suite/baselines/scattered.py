"""Unstructured sparsity with as many zeros as gates make, for timing."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from finegates.adapters import adapter_for, unwrap
from finegates.modules.linear import find_linear


@torch.no_grad()
def scatter_zeros(model: nn.Module, kept: float, seed: int) -> nn.Module:
    """Sets random weights of the gateable layers to zero, in place.

    Args:
        model: a transformers model whose architecture has an adapter.
        kept: probability in (0, 1] with which a weight is kept.
        seed: seed of the selection.

    Returns:
        the same model, with unchanged shapes and dense matmuls.
    """
    inner = unwrap(model)
    generator = torch.Generator().manual_seed(seed)
    for path in adapter_for(inner).gated(inner):
        weight = find_linear(inner.get_submodule(path)).get_parameter("weight")
        drawn = torch.rand(weight.shape, generator=generator, dtype=torch.float32, device="cpu")
        weight.mul_((drawn < kept).to(weight.device))
    return model


class SparseLinear(nn.Module):
    """``y = x W^T + b`` with W in compressed sparse row format (CSR).

    Args:
        linear: layer whose nonzero weights and bias are used.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CSR tensors are in beta
            self.register_buffer("weight", linear.weight.detach().to_sparse_csr())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        assert isinstance(self.weight, Tensor)
        flat = x.reshape(-1, x.shape[-1])
        y = (self.weight @ flat.T).T.reshape(*x.shape[:-1], self.weight.shape[0])
        return y if self.bias is None else y + self.bias


def to_sparse(model: nn.Module) -> nn.Module:
    """Replaces gateable linear layers with :class:`SparseLinear`, in place.

    Raises:
        TypeError: a layer is not ``nn.Linear``.
    """
    inner = unwrap(model)
    for path in list(adapter_for(inner).gated(inner)):
        layer = inner.get_submodule(path)
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{path} is {type(layer).__name__}; sparse rows replace nn.Linear")
        inner.set_submodule(path, SparseLinear(layer))
    return model
