"""The batch on which a model is measured: its inputs, sequences and tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finegates.adapters import unwrap
from finegates.arguments import check_whole

SEQUENCES, LENGTH = 8, 128
"""Sequences of a batch of random tokens, and tokens of each, unless they are given."""

# Inputs whose second dimension is that of the tokens.
_TOKENS = ("input_ids", "inputs_embeds")


@dataclass(frozen=True)
class Batch:
    """Inputs of a forward pass.

    Attributes:
        inputs: keyword arguments of the model's forward.
        sequences: of the batch.
        length: tokens of a sequence.
    """

    inputs: dict[str, Any]
    sequences: int
    length: int


def measured_batch(
    model: nn.Module,
    sequences: int | None = None,
    length: int | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Batch:
    """Makes or checks the batch that a model is measured on.

    Args:
        model: any; it does not change.
        sequences: of the batch, also called ``batch``. None: those of the inputs, otherwise
            :data:`SEQUENCES`.
        length: tokens of a sequence. None: those of the inputs, otherwise :data:`LENGTH`.
        inputs: keyword arguments of the model's forward; None: random tokens.

    Raises:
        ValueError: a number is below 1, or not that of the inputs; the inputs hold no batch, or do
            not say how many tokens they are; or the model needs inputs that are not tokens.
        TypeError: a number is not an integer, or the inputs are not a mapping.
    """
    for name, value in (("batch", sequences), ("length", length)):
        if value is not None:
            check_whole(name, value)
    if inputs is None:
        sequences, length = sequences or SEQUENCES, length or LENGTH
        return Batch(_random_tokens(model, sequences, length), sequences, length)
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"inputs must be keyword arguments of the model's forward, such as a tokenizer gives "
            f"with return_tensors='pt', got a {type(inputs).__name__}"
        )
    name, first = _main(model, inputs)
    shape = " x ".join(map(str, first.shape))
    found = {"batch": first.shape[0]}
    if name in _TOKENS:
        found["length"] = first.shape[1]
    elif length is None:
        raise ValueError(
            f"inputs do not say how many tokens a sequence has ({name} is {shape}); give length=, "
            "the tokens that a block of the model gets of one example"
        )
    for key, given in (("batch", sequences), ("length", length)):
        if given is not None and given != found.get(key, given):
            raise ValueError(
                f"{key}={given}, and {name} of inputs is {shape}, so {key} is {found[key]}; leave "
                f"{key} out"
            )
        if found.get(key, 1) < 1:
            raise ValueError(f"{name} of inputs is {shape}, which is empty; give a batch")
    return Batch(dict(inputs), found["batch"], found.get("length", length or 0))


@torch.no_grad()
def check_runs(model: nn.Module, batch: Batch) -> None:
    """Raises ValueError unless a model takes a batch.

    Args:
        model: in evaluation mode.
        batch: its inputs.
    """
    try:
        model(**batch.inputs)
    except Exception as error:  # of any kind, from code of the model
        most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        positions = f" (max_position_embeddings is {most})" if isinstance(most, int) else ""
        raise ValueError(
            f"{type(model).__name__}{positions} cannot compute a batch of batch={batch.sequences}, "
            f"length={batch.length}: {type(error).__name__}: {error}; give a length that it takes, "
            "or an example batch of its inputs: calibrate(model, inputs=...)"
        ) from error


def _main(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[str, Tensor]:
    """The input that says how large a batch is, by name.

    It is the tokens, otherwise what transformers calls the main input, otherwise the first tensor.
    """
    main = getattr(unwrap(model), "main_input_name", None)
    for name in (*_TOKENS, str(main), *inputs):
        value = inputs.get(name)
        if isinstance(value, Tensor) and value.ndim >= (2 if name in _TOKENS else 1):
            return name, value
    raise ValueError(
        f"inputs hold no tensor of a batch ({', '.join(map(str, inputs)) or 'they are empty'}); "
        "give keyword arguments of the model's forward, or leave inputs out for random tokens"
    )


def _random_tokens(model: nn.Module, sequences: int, length: int) -> dict[str, Tensor]:
    """Random tokens without padding, (sequences, length).

    Raises:
        ValueError: the configuration of the model has no vocabulary, or it also decodes.
    """
    config: Any = getattr(unwrap(model), "config", None)
    size = getattr(config, "vocab_size", None)
    if not isinstance(size, int) or getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(unwrap(model)).__name__} reads more than tokens; give an example batch of "
            "its inputs: calibrate(model, inputs=...)"
        )
    generator = torch.Generator().manual_seed(0)
    first = min(size - 1, 5)  # the first ids are special in most vocabularies
    ids = torch.randint(first, size, (sequences, length), generator=generator, device="cpu")
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
