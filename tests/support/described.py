"""Tiny random models of every described type, with every task head, and inputs for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PretrainedConfig

from finegates.compaction.certificate import InFloat64
from support.described_types import (
    CONFIGURATIONS,
    ENCODERS,
    IMAGES,
    SEQUENCES,
    TOWERS,
    VOCABULARY,
    WAVES,
)

_HEADS = {
    "base": "AutoModel",
    "sequence": "AutoModelForSequenceClassification",
    "masked": "AutoModelForMaskedLM",
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "question": "AutoModelForQuestionAnswering",
    "token": "AutoModelForTokenClassification",
    "choice": "AutoModelForMultipleChoice",
    "image": "AutoModelForImageClassification",
    "audio": "AutoModelForAudioClassification",
    "ctc": "AutoModelForCTC",
    "speech": "AutoModelForSpeechSeq2Seq",
}


# The types with stacked experts.
EXPERTS = ("mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss")


def configuration(name: str) -> PretrainedConfig:
    """The tiny configuration of a described type or variant."""
    kind = name.partition("/")[0]
    return CONFIG_MAPPING[kind](**CONFIGURATIONS[name])


def heads(name: str) -> list[str]:
    """The task heads of a type in transformers."""
    kind, config = name.partition("/")[0], type(configuration(name))
    left_out = {
        "masked": kind not in ENCODERS,
        "choice": kind not in ENCODERS,
        "causal": kind in ENCODERS | SEQUENCES,
        "seq2seq": kind not in SEQUENCES,
    }
    return [
        head
        for head, factory in _HEADS.items()
        if not left_out.get(head, False) and config in getattr(transformers, factory)._model_mapping
    ]


def described_model(
    name: str,
    head: str = "base",
    *,
    seed: int = 0,
    attention: str = "sdpa",
    experts: str = "eager",
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    """A random model in evaluation mode, with weights large enough that every layer matters.

    Experts are computed one by one, because torch's grouped matmul does not support float64.
    """
    config = configuration(name)
    factory = getattr(transformers, _HEADS[head])
    if head == "base" and type(config) not in factory._model_mapping:
        factory = transformers.AutoModelForCausalLM  # TrOCR's decoder has no model without a head
    try:
        model: nn.Module = factory.from_config(config, attn_implementation=attention)
    except ValueError as error:
        if "attention" not in str(error):
            raise
        model = factory.from_config(configuration(name))  # has only one kind
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation(experts)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.normal_(0.0, 0.3, generator=generator)
    return model.to(dtype).eval()


def described_inputs(
    name: str,
    head: str = "base",
    *,
    padding: str = "right",
    seed: int = 0,
    length: int = 9,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Inputs of three rows for a model of a type and head; text has padding."""
    kind, generator = name.partition("/")[0], torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    def ids(*shape: int) -> Tensor:
        return torch.randint(4, VOCABULARY, shape, generator=generator)

    if kind in IMAGES or (kind in TOWERS and head == "image"):
        images = {"pixel_values": normal(3, 3, 16, 16)}
        return {**images, "noise": normal(3, 16)} if kind == "vit_mae" else images
    if kind in WAVES:
        return {"input_values": normal(3, 160)}
    if kind == "audio-spectrogram-transformer":
        return {"input_values": normal(3, 24, 8)}
    if kind == "whisper":
        features = {"input_features": normal(3, 8, 40)}
        return features if head == "audio" else {**features, "decoder_input_ids": ids(3, 6)}
    text = _text(configuration(name), ids(3, length), padding)
    if kind in SEQUENCES and head in ("base", "seq2seq"):
        text["decoder_input_ids"] = ids(3, 5)
    if kind in SEQUENCES and head == "sequence":
        _end(text, configuration(name).eos_token_id)
    if kind == "trocr":
        text["encoder_hidden_states"] = normal(3, 5, 24)
    if kind in TOWERS:
        text["pixel_values"] = normal(3, 3, 16, 16)
        if kind == "clip":
            _end(text, 2)
    if head == "choice":
        text = {key: value[:2].repeat(1, 2).view(2, 2, length) for key, value in text.items()}
    return text


def _text(config: PretrainedConfig, ids: Tensor, padding: str) -> dict[str, Tensor]:
    mask = torch.ones_like(ids)
    for row, missing in enumerate((0, 2, 4)):
        if missing and padding == "right":
            mask[row, -missing:] = 0
        elif missing:
            mask[row, :missing] = 0
    pad = getattr(config, "pad_token_id", None) or 0
    return {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}


def _end(text: dict[str, Tensor], token: int) -> None:
    """Puts the end-of-sequence token at the last position without padding."""
    for row, mask in enumerate(text["attention_mask"]):
        text["input_ids"][row, int(mask.nonzero()[-1])] = token


@torch.no_grad()
def described_outputs(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """All floating-point outputs of a model."""
    double = next(p for p in model.parameters() if p.is_floating_point()).dtype is torch.float64
    with without_downcasts() if double else nullcontext():
        return list(_floats(model(**inputs)))


def _floats(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _floats(value)
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _floats(value)


def relative_difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference, relative to each tensor's largest value.

    It is inf if shapes or positions of non-finite values differ.
    """
    if [each.shape for each in one] != [each.shape for each in other]:
        return float("inf")
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if not torch.equal(a.isfinite(), b.isfinite()):
            return float("inf")
        a, b = (each[each.isfinite()] for each in (a, b))
        if a.numel():
            worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)))
    return worst


@contextmanager
def without_downcasts() -> Iterator[None]:
    """Computes in float64 throughout, so that two computations of the same value agree closely."""
    with InFloat64():
        yield
