"""Detects which labels the loss of a head averages over.

Most heads average over the labels that are not ``IGNORED``. Some shift the labels, and some exclude
masked tokens. The source of the head's ``forward`` shows which.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache

from torch import nn

from finegates.gates.weight_reads import method_source

# Attributes of a mask that do not read its values.
_HARMLESS = ("device", "dtype", "dim", "ndim", "shape", "size")


@dataclass(frozen=True)
class LabelUse:
    """How the loss of a head uses its labels.

    Attributes:
        shifted: a token's logits are compared with the label of the next token, so that the first
            label of each row is not a target.
        masked: labels count only where the attention mask is 1.
    """

    shifted: bool = False
    masked: bool = False


def label_use(model: nn.Module) -> LabelUse:
    """How the loss of a model, plain or wrapped by ``peft``, uses its labels."""
    plain = without_peft(model)
    if getattr(getattr(plain, "config", None), "is_encoder_decoder", False):
        return LabelUse()  # the mask is the encoder's, the labels are the decoder's
    found = _from_source(type(plain))  # type: ignore[arg-type]
    return LabelUse(found.shifted or _takes_causal_loss(plain), found.masked)


def without_peft(model: nn.Module) -> nn.Module:
    """The model inside the wrapper of ``peft``, if there is one.

    It is detected by its attributes, so that peft need not be installed.
    """
    plain: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return plain


def _takes_causal_loss(model: nn.Module) -> bool:
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = getattr(model, "loss_type", None)
    if kind in LOSS_MAPPING:
        return LOSS_MAPPING[kind] is ForCausalLMLoss
    # Classes such as GPT2LMHeadModel do not name a loss and use the causal one.
    return type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


@cache
def _from_source(kind: type[nn.Module]) -> LabelUse:
    method = method_source(kind.forward)
    if method is None:
        return LabelUse()
    return LabelUse(
        shifted=any(_begins_at_one(node) for node in ast.walk(method)),
        masked=any(_reads_mask(node) for node in ast.walk(method)),
    )


def _begins_at_one(node: ast.AST) -> bool:
    """Whether a syntax node is ``labels[..., 1:]``."""
    if not (isinstance(node, ast.Subscript) and _is_named(node.value, "labels")):
        return False
    places = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    last = places[-1]
    return (
        isinstance(last, ast.Slice)
        and isinstance(last.lower, ast.Constant)
        and last.lower.value == 1
        and last.upper is None
    )


def _reads_mask(node: ast.AST) -> bool:
    """Whether a syntax node is ``if labels ...:`` and reads the mask's values inside."""
    if not (isinstance(node, ast.If) and any(_is_named(n, "labels") for n in ast.walk(node.test))):
        return False
    harmless = set[ast.AST]()
    for part in (inner for statement in node.body for inner in ast.walk(statement)):
        if isinstance(part, ast.Compare) and isinstance(part.ops[0], ast.Is | ast.IsNot):
            harmless.add(part.left)
        elif isinstance(part, ast.Attribute) and part.attr in _HARMLESS:
            harmless.add(part.value)
        elif _is_named(part, "attention_mask") and part not in harmless:
            return True
    return False


def _is_named(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


__all__ = ["LabelUse", "label_use", "without_peft"]
