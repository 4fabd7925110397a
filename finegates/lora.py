"""What gates are compared with: LoRA by ``peft``, and magnitude pruning of rows and columns."""

from __future__ import annotations

import warnings

from torch import nn

from finegates.adapters import adapter_for
from finegates.compaction.peft_targets import teach_peft
from finegates.extras import needed_for
from finegates.gates.attachment import head_parameters


def add_lora(
    model: nn.Module, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0
) -> nn.Module:
    """Puts a LoRA adapter on every layer that gates would go on, and freezes the rest but the head.

    The low-rank factors are initialised by ``peft`` from torch's default generator.

    Args:
        model: a transformers model that has an architecture adapter; dense or compact. In a compact
            one the factors have the sizes of what is kept, and layers that became one product with
            others get one pair of factors with them.
        rank: of the low-rank factors.
        alpha: the update is scaled by ``alpha / rank``.
        dropout: before the low-rank factors.

    Returns:
        a ``peft.PeftModel`` around the same model.

    Raises:
        ImportError: peft is not installed.
    """
    with needed_for("finegates.add_lora", "peft"):
        import peft

    teach_peft()
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=list(adapter_for(model).gated(model)),
        bias="none",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped: nn.Module = peft.get_peft_model(model, config)
    for parameter in head_parameters(wrapped).values():
        parameter.requires_grad_(True)
    return wrapped
