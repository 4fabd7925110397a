"""Patches of transformers for models with layers of this library."""

from __future__ import annotations

from finegates.modules.stock_checkpoints import guard_stock_checkpoints
from finegates.modules.vocabulary import keep_output_layers


def adapt_stock_methods() -> None:
    """Patches methods of ``PreTrainedModel`` to handle the layers of this library.

    Called whenever such a layer is added to a model. Further calls change nothing, and other models
    are treated as before.
    """
    guard_stock_checkpoints()
    keep_output_layers()
