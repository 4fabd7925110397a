"""Choice of the fastest matmul for each layer on this machine."""

from __future__ import annotations

from torch import nn

from finegates.compaction.costs import Costs
from finegates.gates.gated_linear import gated_layers
from finegates.gates.prices import check_cost
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.stock_methods import adapt_stock_methods


def use_products(model: nn.Module, cost: Costs) -> nn.Module:
    """Makes a model use the fastest matmul on this machine, in place.

    The choice depends on the machine: :func:`finegates.save` stores it with the machine's name, and
    :func:`finegates.load` restores it on a similar one. It works for dense models, too.

    Args:
        model: dense or compact. Its plain linear layers become :class:`CompactLinear` with the same
            parameters, which removes nothing.
        cost: of this machine, from :func:`finegates.calibrate`.

    Returns:
        the model; a new layer if the model is a single linear layer.

    Raises:
        ValueError: the model has gates, which need ordinary linear layers.
        TypeError: ``cost`` is not a cost model.
    """
    check_cost(cost)
    gated = next(iter(gated_layers(model)), None)
    if gated is not None:
        raise ValueError(
            f"layer {gated or 'given'} has gates; compact the model first (finegates.compact), "
            "then choose its matmuls"
        )

    def fast(layer: nn.Module) -> nn.Module:
        if type(layer) is nn.Linear:
            plain = layer
            layer = CompactLinear(plain.weight, plain.bias)
            layer.train(plain.training)
            # The same parameters, which may be tied or frozen.
            layer.weight, layer.bias = plain.weight, plain.bias  # type: ignore[misc]
            layer.keeps_stock_layout = True
        if isinstance(layer, CompactLinear):
            layer.onednn_from = cost.onednn_from
        return layer

    for parent in list(model.modules()):
        if isinstance(parent, CompactLinear):
            continue  # its inner nn.Linear belongs to it
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = fast(child)
    adapt_stock_methods()
    return fast(model)
