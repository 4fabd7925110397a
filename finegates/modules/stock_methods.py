"""Methods of transformers that models with layers of this library are asked by."""

from __future__ import annotations

from finegates.modules.stock_checkpoints import guard_stock_checkpoints
from finegates.modules.vocabulary import keep_output_layers


def adapt_stock_methods() -> None:
    """Has methods of ``PreTrainedModel`` know the layers of this library.

    Called wherever such a layer comes into a model. Further calls change nothing, and other models
    are treated as before.
    """
    guard_stock_checkpoints()
    keep_output_layers()
