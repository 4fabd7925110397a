"""Generation settings as plain values: saved with a model, checked, restored."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from finegates.files import parse_json


def generation_settings(model: nn.Module) -> dict[str, Any] | None:
    """The model's default settings of ``generate``, or None if it cannot generate.

    Raises:
        ValueError: JSON cannot hold a value.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return None
    config = copy.deepcopy(config)
    config.compile_config = None  # depends on the machine; transformers does not write it either
    try:
        settings: dict[str, Any] = parse_json(config.to_json_string(ignore_metadata=True))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the model's generation_config cannot be written: {error}; change that setting"
        ) from error
    return settings


def set_generation(model: nn.Module, settings: dict[str, Any] | None) -> None:
    """Restores the stored settings if the model can generate.

    Raises:
        ValueError: this version of transformers does not have a setting, or refuses its value.
    """
    made: Any = getattr(model, "generation_config", None)
    if made is None or settings is None:
        return
    _check_settings(model, settings)
    try:
        config = type(made).from_dict(settings)
    except Exception as error:  # a value may be invalid in any way; the error must name the part
        raise ValueError(f"generation_config: {error}") from error
    # As transformers marks settings read from a file: otherwise save_pretrained would raise for
    # settings that it only warns of in published models.
    config._original_object_hash = hash(config)
    model.generation_config = config


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_tokens(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, list) and all(map(_is_whole, value)))


_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "neither a token's number nor a list of them": (
        _is_tokens,
        "bos_token_id eos_token_id pad_token_id decoder_start_token_id forced_bos_token_id "
        "forced_eos_token_id suppress_tokens begin_suppress_tokens",
    ),
    "not a whole number": (
        _is_whole,
        "max_length max_new_tokens min_length min_new_tokens num_beams num_return_sequences top_k "
        "no_repeat_ngram_size encoder_no_repeat_ngram_size prompt_lookup_num_tokens",
    ),
    "not a number": (
        _is_number,
        "temperature top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty "
        "encoder_repetition_penalty length_penalty guidance_scale max_time",
    ),
    "neither true nor false": (
        lambda value: isinstance(value, bool),
        "do_sample use_cache renormalize_logits remove_invalid_values return_dict_in_generate "
        "output_attentions output_hidden_states output_scores output_logits",
    ),
}
"""Tests of settings that transformers does not check, with the text of the error.

None means unset, and passes.
"""


def _check_settings(model: nn.Module, settings: dict[str, Any]) -> None:
    """Raises ValueError unless all are valid settings of the model's ``generate``."""
    from transformers import GenerationMixin, __version__

    made: Any = model.generation_config
    known = {key for key in vars(type(made)()) if not key.startswith("_")}
    known.discard("transformers_version")
    # A class with its own generate method may have its own settings, as Whisper has.
    own = getattr(type(model), "generate", None) is not GenerationMixin.generate
    for key in settings:
        free = own and not key.startswith("_") and not hasattr(made, key)
        if key not in known and not free:
            raise ValueError(
                f"generation_config: {key!r} is not a generation setting of "
                f"{type(model).__name__} in transformers {__version__}; remove it from the model's "
                "generation_config before saving, or use the version that has it"
            )
    for fault, (fits, names) in _SETTINGS.items():
        for name in names.split():
            value = settings.get(name)
            if value is not None and not fits(value):
                raise ValueError(f"generation_config: {name} = {value!r} is {fault}")
