"""Where transformers 4.57 and 5 differ, and this library has to do with it.

Everything else is written for 5 and happens to hold for 4.57. What differs is found by looking, not
by comparing versions.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class AttentionTraits:
    """What a narrow attention takes over from the module that it replaces.

    Attributes:
        scaling: factor of the scores.
        config: names the attention function (``_attn_implementation``).
        layer_idx: its place, for caches.
        is_causal: whether tokens see only those before them.
        eager: plain products, as the architecture has them.
        asked_by_call: whether ``output_attentions`` of a call asks for plain products, which alone
            give attention weights; else the configuration does.
    """

    scaling: float
    config: Any
    layer_idx: Any
    is_causal: bool
    eager: Callable[..., tuple[Tensor, Tensor | None]]
    asked_by_call: bool = False


def attention_traits(module: Any) -> AttentionTraits:
    """The traits of an attention of transformers.

    Encoders of 4.57 have a class for each attention function, keep neither scale nor configuration,
    and compute the products in their ``forward``.
    """
    if hasattr(module, "scaling"):
        return AttentionTraits(
            module.scaling,
            module.config,
            module.layer_idx,
            bool(module.is_causal),
            # Of the module's own file: some architectures take the softmax in float32.
            vars(sys.modules[type(module).__module__])["eager_attention_forward"],
        )
    function = "sdpa" if "Sdpa" in type(module).__name__ else "eager"
    return AttentionTraits(
        module.attention_head_size**-0.5,
        SimpleNamespace(_attn_implementation=function),
        module.layer_idx,
        bool(module.is_decoder),
        _plain_attention,
        asked_by_call=True,
    )


def use_plain_attention(model: Any) -> None:
    """Has a model compute attention as plain products, which can be differentiated twice."""
    model.set_attn_implementation("eager")
    for module in model.modules():
        # The class of 4.57 for another function derives from that for plain products.
        if type(module).__name__.endswith("SdpaSelfAttention"):
            module.__class__ = type(module).__bases__[0]


def attention_function(name: str, eager: Callable[..., Any]) -> Callable[..., Any]:
    """The attention function of a name; ``eager`` for that name."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if hasattr(ALL_ATTENTION_FUNCTIONS, "get_interface"):
        return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    return eager if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]


def _plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.dropout(scores.softmax(-1), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def gpt2_keeps_its_scale() -> bool:
    """Whether GPT-2 takes the scale of its scores once, from the full width of a head.

    That of 4.57 takes it from the width that it finds: its heads can then not become narrower.
    """
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

    return "scaling" in GPT2Attention.__init__.__code__.co_names


def is_valid(config: Any) -> bool:
    """Whether a configuration's values fit together, as far as its class checks that.

    Those of 4.57 check nothing once they are made.
    """
    if not hasattr(config, "validate"):
        return True
    try:
        config.validate()
    except Exception:  # of huggingface_hub, by a name that it has had for a few versions only
        return False
    return True


def forget_precision() -> None:
    """Lets the next trainer arguments decide on precision alone.

    Those of 4.57 leave theirs in the environment, where later ones of the same process find it:
    after a run in bfloat16 one in float32 would be in bfloat16, too.
    """
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)


def grouping(by_length: bool) -> dict[str, Any]:
    """The trainer argument by which batches are made of examples of like length, or not."""
    from transformers import TrainingArguments

    if "train_sampling_strategy" in {f.name for f in dataclasses.fields(TrainingArguments)}:
        return {"train_sampling_strategy": "group_by_length" if by_length else "random"}
    return {"group_by_length": by_length}


_PLAIN = "original_inv_freq"


def unregistered_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors of rotary embeddings that 5 registers as buffers and 4.57 does not, by name."""
    for path, module in model.named_modules():
        value = vars(module).get(_PLAIN)
        if isinstance(value, Tensor):
            yield f"{path}.{_PLAIN}" if path else _PLAIN, value


def put_tensor(owner: nn.Module, name: str, tensor: torch.Tensor | nn.Parameter) -> None:
    """Puts a tensor where a module has one of that name: parameter, buffer or plain."""
    if name in owner._parameters:
        assert isinstance(tensor, nn.Parameter)
        owner._parameters[name] = tensor
    elif name in owner._buffers:
        owner._buffers[name] = tensor
    else:
        setattr(owner, name, tensor)
