"""Specs of text encoders."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

from finegates.specs import (
    AttentionSpec,
    FeedForwardSpec,
    RepeatSpec,
    RotarySpec,
    is_named_cross,
    named,
)

_HALF = RotarySpec()
_SIZES = {"num_attention_heads": "heads", "all_head_size": "heads*width"}
BERT: dict[str, Any] = {
    "q": "query",
    "k": "key",
    "v": "value",
    "o": "^output.dense",
    "width": "attention_head_size",
    "sizes": _SIZES,
}


def _scale_of_deberta(module: Any, sizes: Any) -> float:
    """By which scores change with the width, of which forward takes the root in float32."""
    terms = 1 + sum(kind in module.pos_att_type for kind in ("c2p", "p2c"))
    found, meant = (
        float(torch.tensor(math.sqrt(width * terms), dtype=torch.float32, device="cpu"))
        for width in (sizes.width, sizes.head_dim)
    )
    return found / meant


def _positions_of_deberta(module: Any) -> str | None:
    # Every term of a score is a product of a row of q with one of k only if both, of tokens and of
    # relative positions, come from the same projections.
    if module.relative_attention and not module.share_att_key:
        return "relative positions have projections of their own"
    return None


def _uses_of_albert(module: Any) -> dict[str, int]:
    layers, groups = module.config.num_hidden_layers, module.config.num_hidden_groups
    counts = Counter(int(layer / (layers / groups)) for layer in range(layers))
    return {f"albert_layer_groups.{group}": count for group, count in counts.items()}


ATTENTIONS: tuple[AttentionSpec, ...] = (
    AttentionSpec(
        named(
            "bert.BertSelfAttention",
            "roberta.RobertaSelfAttention",
            "xlm_roberta.XLMRobertaSelfAttention",
            "electra.ElectraSelfAttention",
            "camembert.CamembertSelfAttention",
            "data2vec.Data2VecTextSelfAttention",
            "ernie.ErnieSelfAttention",
            "xlm_roberta_xl.XLMRobertaXLSelfAttention",
        ),
        joint=True,
        **BERT,
    ),
    AttentionSpec(
        named(
            "bert.BertCrossAttention",
            "roberta.RobertaCrossAttention",
            "xlm_roberta.XLMRobertaCrossAttention",
            "electra.ElectraCrossAttention",
            "camembert.CamembertCrossAttention",
            "data2vec.Data2VecTextCrossAttention",
            "ernie.ErnieCrossAttention",
            "xlm_roberta_xl.XLMRobertaXLCrossAttention",
        ),
        cross=True,
        **BERT,
    ),
    AttentionSpec(
        named("distilbert.DistilBertSelfAttention"),
        q="q_lin",
        k="k_lin",
        v="v_lin",
        o="out_lin",
        width="attention_head_size",
        sizes={"n_heads": "heads", "dim": "heads*width"},
        joint=True,
    ),
    AttentionSpec(
        named("mpnet.MPNetSelfAttention"),
        q="q",
        k="k",
        v="v",
        o="o",
        width="attention_head_size",
        sizes=_SIZES,
        scaled_by_width=True,
        head_arguments={"position_bias": 1},
        joint=True,
    ),
    AttentionSpec(
        named("deberta_v2.DisentangledSelfAttention"),
        q="query_proj",
        k="key_proj",
        v="value_proj",
        o="^output.dense",
        width="attention_head_size",
        sizes=_SIZES,
        scaled_by_width=_scale_of_deberta,
        # Not joint: the projections of queries and keys also read relative positions.
        apart=("pos_key_proj", "pos_query_proj"),
        unsupported=_positions_of_deberta,
    ),
    AttentionSpec(
        named("esm.EsmSelfAttention"),
        rotary=RotarySpec(when=lambda module: module.position_embedding_type == "rotary"),
        scaled_by_width=True,
        cross=is_named_cross,
        joint=True,
        **BERT,
    ),
    AttentionSpec(
        named("albert.AlbertAttention"),
        q="query",
        k="key",
        v="value",
        o="dense",
        width="attention_head_size",  # not joint: its forward also adds its input to its output
    ),
    AttentionSpec(
        named("modernbert.ModernBertAttention"),
        q="Wqkv",
        k="Wqkv",
        v="Wqkv",
        o="Wo",
        rotary=_HALF,
        scaled_by_width=True,
    ),
    AttentionSpec(
        named("deberta.DisentangledSelfAttention"),
        q="in_proj",
        k="in_proj",
        v="in_proj",
        o="^output.dense",
        layout="heads",
        width="attention_head_size",
        sizes=_SIZES,
        # Positions have projections of their own, which read all dimensions.
        fixed_scores=True,
        value_bias=True,
        apart=("pos_proj", "pos_q_proj", "head_logits_proj", "head_weights_proj"),
        unsupported=lambda module: "it mixes the scores of heads" if module.talking_head else None,
        per_head={
            "q_bias": 0,
            "v_bias": 0,
            "pos_proj.weight": 0,
            "pos_q_proj.weight": 0,
            "pos_q_proj.bias": 0,
        },
    ),
)
FEED_FORWARDS: tuple[FeedForwardSpec, ...] = (
    FeedForwardSpec(
        named(
            "bert.BertLayer",
            "roberta.RobertaLayer",
            "xlm_roberta.XLMRobertaLayer",
            "electra.ElectraLayer",
            "mpnet.MPNetLayer",
            "deberta_v2.DebertaV2Layer",
            "camembert.CamembertLayer",
            "data2vec.Data2VecTextLayer",
            "deberta.DebertaLayer",
            "ernie.ErnieLayer",
            "xlm_roberta_xl.XLMRobertaXLLayer",
        ),
        up="intermediate.dense",
        down="output.dense",
        phi="intermediate.intermediate_act_fn",
    ),
    FeedForwardSpec(
        named("esm.EsmLayer"),
        up="intermediate.dense",
        down="output.dense",
        phi=None,
        activation="gelu",
    ),
    FeedForwardSpec(named("distilbert.FFN"), up="lin1", down="lin2", phi="activation"),
    FeedForwardSpec(named("albert.AlbertLayer"), up="ffn", down="ffn_output", phi="activation"),
    FeedForwardSpec(named("modernbert.ModernBertMLP"), up="Wi", down="Wo", gate="Wi", phi="act"),
)
REPEATS: tuple[RepeatSpec, ...] = (
    RepeatSpec(named("albert.AlbertTransformer"), uses=_uses_of_albert),
)
