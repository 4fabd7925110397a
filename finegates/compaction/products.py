"""The product by which each layer of a model multiplies fastest on this machine."""

from __future__ import annotations

from torch import nn

from finegates.compaction.cost import CostModel
from finegates.gates.gated_linear import gated_layers
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.stock_methods import adapt_stock_methods


def use_products(model: nn.Module, cost: CostModel) -> nn.Module:
    """Lets a model multiply by the product that is the faster on this machine; changes the model.

    The choice is the machine's: :func:`finegates.save` keeps it with the name of the machine, and
    :func:`finegates.load` takes it up on one like it. It serves a dense model as well.

    Args:
        model: dense or compact. Its plain linear layers become :class:`CompactLinear` ones with the
            same parameters, which removes nothing.
        cost: of this machine, by :func:`finegates.calibrate`.

    Returns:
        the model; the layer itself, replaced, if the model is a single linear layer.

    Raises:
        ValueError: the model has gates, which go around ordinary linear layers only.
    """
    gated = next(iter(gated_layers(model)), None)
    if gated is not None:
        raise ValueError(
            f"layer {gated or 'given'} has gates; compact the model first (finegates.compact), "
            "then choose its products"
        )

    def fast(layer: nn.Module) -> nn.Module:
        if type(layer) is nn.Linear:
            plain = layer
            layer = CompactLinear(plain.weight, plain.bias)
            layer.train(plain.training)
            # The parameters themselves: they may be tied, or frozen.
            layer.weight, layer.bias = plain.weight, plain.bias  # type: ignore[misc]
            layer.keeps_stock_layout = True
        if isinstance(layer, CompactLinear):
            layer.onednn_from = cost.onednn_from
        return layer

    for parent in list(model.modules()):
        if isinstance(parent, CompactLinear):
            continue  # its product is part of it
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = fast(child)
    adapt_stock_methods()
    return fast(model)
