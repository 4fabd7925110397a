"""Specs of the residual stream: embeddings, norms and heads of architectures.

To let gates close hidden dimensions of a further type (``GateConfig.width``), describe the modules
of it that hold tensors of the size of the stream, apart from the projections of its blocks.
"""

from __future__ import annotations

from finegates.specs import StreamSpec, named


def _each(names: tuple[str, ...], classes: str) -> tuple[str, ...]:
    """Classes of several families: ``"{}Layer"`` with the prefix of each, as ``"bert.Bert"``."""
    found = []
    for family in names:
        package, _, prefix = family.partition(".")
        found += [f"{package}.{name.format(prefix)}" for name in classes.split()]
    return tuple(found)


_BERTS = (
    "bert.Bert",
    "roberta.Roberta",
    "xlm_roberta.XLMRoberta",
    "electra.Electra",
    "camembert.Camembert",
    "data2vec.Data2VecText",
    "ernie.Ernie",
)
_LLAMAS = (
    "llama.Llama",
    "mistral.Mistral",
    "qwen2.Qwen2",
    "qwen3.Qwen3",
    "granite.Granite",
    "ministral3.Ministral3",
    "phi3.Phi3",
    "smollm3.SmolLM3",
)
_TOKENS = "{}ForTokenClassification"
_QUESTIONS = "{}ForQuestionAnswering"

STREAMS: tuple[StreamSpec, ...] = (
    # BERT and its relatives.
    StreamSpec(
        _each(_BERTS, "{}Embeddings"),
        tables=(
            "word_embeddings",
            "position_embeddings",
            "token_type_embeddings",
            "task_type_embeddings",
        ),
        norms=("LayerNorm",),
    ),
    StreamSpec(_each(_BERTS, "{}SelfOutput {}Output"), norms=("LayerNorm",)),
    StreamSpec(_each(_BERTS, "{}Pooler"), reads=("dense",)),
    StreamSpec(
        _each(_BERTS, "{}PredictionHeadTransform"),
        reads=("dense",),
        writes=("dense",),
        norms=("LayerNorm",),
        phi="transform_act_fn",
    ),
    StreamSpec(_each(_BERTS, "{}LMPredictionHead"), reads=("decoder",)),
    StreamSpec(
        _each((*_BERTS, "mpnet.MPNet"), "{}LMHead"),
        reads=("dense", "decoder"),
        writes=("dense",),
        norms=("layer_norm",),
    ),
    StreamSpec(
        _each((*_BERTS, "mpnet.MPNet"), "{}ClassificationHead"),
        reads=("dense",),
        apart=("out_proj",),
    ),
    StreamSpec(
        _each((*_BERTS, "mpnet.MPNet"), "{}ForSequenceClassification {}ForMultipleChoice"),
        apart=("classifier",),
    ),
    StreamSpec(_each((*_BERTS, "mpnet.MPNet"), _TOKENS), reads=("classifier",)),
    StreamSpec(_each((*_BERTS, "mpnet.MPNet"), _QUESTIONS), reads=("qa_outputs",)),
    StreamSpec(
        named("bert.BertPreTrainingHeads BertOnlyNSPHead", "ernie.ErniePreTrainingHeads"),
        apart=("seq_relationship",),
    ),
    StreamSpec(named("electra.ElectraSequenceSummary"), reads=("summary",)),
    StreamSpec(named("electra.ElectraModel"), writes=("embeddings_project",)),
    StreamSpec(
        named("electra.ElectraDiscriminatorPredictions"),
        reads=("dense",),
        apart=("dense_prediction",),
    ),
    StreamSpec(
        named("electra.ElectraGeneratorPredictions"),
        reads=("dense",),
        writes=("dense",),
        norms=("LayerNorm",),
    ),
    StreamSpec(
        named("electra.ElectraForMaskedLM ElectraForCausalLM"), reads=("generator_lm_head",)
    ),
    StreamSpec(
        named("mpnet.MPNetEmbeddings"),
        tables=("word_embeddings", "position_embeddings"),
        norms=("LayerNorm",),
    ),
    StreamSpec(named("mpnet.MPNetAttention MPNetOutput"), norms=("LayerNorm",)),
    StreamSpec(named("mpnet.MPNetPooler"), reads=("dense",)),
    StreamSpec(
        named("distilbert.Embeddings"),
        tables=("word_embeddings", "position_embeddings"),
        norms=("LayerNorm",),
    ),
    StreamSpec(named("distilbert.TransformerBlock"), norms=("sa_layer_norm", "output_layer_norm")),
    StreamSpec(
        named("distilbert.DistilBertForMaskedLM"),
        reads=("vocab_transform", "vocab_projector"),
        writes=("vocab_transform",),
        norms=("vocab_layer_norm",),
        phi="activation",
    ),
    StreamSpec(
        named("distilbert.DistilBertForSequenceClassification DistilBertForMultipleChoice"),
        reads=("pre_classifier",),
        apart=("classifier",),
    ),
    StreamSpec(named("distilbert.DistilBertForTokenClassification"), reads=("classifier",)),
    StreamSpec(named("distilbert.DistilBertForQuestionAnswering"), reads=("qa_outputs",)),
    # Llama and its relatives.
    StreamSpec(_each(_LLAMAS, "{}Model"), tables=("embed_tokens",), norms=("norm",)),
    StreamSpec(
        _each(_LLAMAS, "{}DecoderLayer"), norms=("input_layernorm", "post_attention_layernorm")
    ),
    StreamSpec(
        _each((*_LLAMAS, "olmo2.Olmo2", "olmo3.Olmo3"), "{}ForCausalLM"), reads=("lm_head",)
    ),
    StreamSpec(named("olmo2.Olmo2Model", "olmo3.Olmo3Model"), ("embed_tokens",), ("norm",)),
    StreamSpec(
        named("olmo2.Olmo2DecoderLayer", "olmo3.Olmo3DecoderLayer"),
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    StreamSpec(
        named("gemma.GemmaModel", "gemma2.Gemma2Model", "gemma3.Gemma3TextModel"),
        tables=("embed_tokens",),
        norms=("norm",),
        offset=1.0,
    ),
    StreamSpec(
        named(
            "gemma.GemmaDecoderLayer",
            "gemma2.Gemma2DecoderLayer",
            "gemma3.Gemma3DecoderLayer",
        ),
        norms=(
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        offset=1.0,
    ),
    StreamSpec(
        named("gemma.GemmaForCausalLM", "gemma2.Gemma2ForCausalLM", "gemma3.Gemma3ForCausalLM"),
        reads=("lm_head",),
    ),
    # GPT-2 and OPT.
    StreamSpec(named("gpt2.GPT2Model"), tables=("wte", "wpe"), norms=("ln_f",)),
    StreamSpec(named("gpt2.GPT2Block"), norms=("ln_1", "ln_2", "ln_cross_attn")),
    StreamSpec(named("gpt2.GPT2LMHeadModel"), reads=("lm_head",)),
    StreamSpec(named("gpt2.GPT2ForTokenClassification"), reads=("classifier",)),
    StreamSpec(
        named("opt.OPTDecoder"),
        tables=("embed_tokens", "embed_positions"),
        norms=("final_layer_norm",),
        reads=("project_out",),
        writes=("project_in",),
    ),
    StreamSpec(named("opt.OPTDecoderLayer"), norms=("self_attn_layer_norm", "final_layer_norm")),
    StreamSpec(named("opt.OPTForCausalLM"), reads=("lm_head",)),
    StreamSpec(
        named("gpt2.GPT2ForSequenceClassification", "opt.OPTForSequenceClassification"),
        reads=("score",),
    ),
    StreamSpec(
        named("gpt2.GPT2ForQuestionAnswering", "opt.OPTForQuestionAnswering"),
        reads=("qa_outputs",),
    ),
    # The heads that decoders of transformers share.
    StreamSpec(
        (
            "transformers.modeling_layers.GenericForSequenceClassification",
            "transformers.modeling_layers.GenericForTokenClassification",
        ),
        reads=("score",),
    ),
    StreamSpec(
        ("transformers.modeling_layers.GenericForQuestionAnswering",), reads=("qa_outputs",)
    ),
)
