"""Gates on the residual stream: hidden dimensions of a whole model are closed and removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertModel, BertPreTrainedModel
from transformers.pytorch_utils import Conv1D

import finegates as fg
from finegates.adapters import adapter_for
from finegates.adapters.stream_parts import reading_and_writing
from finegates.budget import macs, planned_macs
from finegates.compaction import CompactLinear, plan_compaction
from finegates.compaction.certificate import NotEqualError
from finegates.gates.detachment import hold_gates
from finegates.gates.gated_output import width_gate
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.penalty import sparsity_penalty
from finegates.modules.narrow_stream import CountingLayerNorm
from support import described, tiny
from support.width import hard, kept_dimensions, on_kept, stochastic_gates, width_model

FAST = (("bert", "masked"), ("llama", "causal"), ("gemma2", "sequence"))
TYPES = (
    *("bert", "roberta", "mpnet", "camembert", "data2vec-text", "distilbert", "electra", "ernie"),
    *("xlm-roberta", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    *("granite", "ministral3", "olmo2", "olmo3", "phi3", "smollm3", "gpt2", "opt"),
)
CASES = [
    pytest.param(name, head, marks=() if (name, head) in FAST else pytest.mark.slow)
    for name in TYPES
    for head in described.heads(name)
]


def model_of(name: str, head: str, **settings: object) -> nn.Module:
    return width_model(described.described_model(name, head), **settings)


def difference(gated: nn.Module, small: nn.Module, name: str, head: str) -> float:
    inputs = described.described_inputs(name, head)
    ours, theirs = (described.described_outputs(model, inputs) for model in (gated, small))
    ours = on_kept(ours, theirs, kept_dimensions(gated))
    return described.relative_difference(ours, theirs)


@pytest.mark.parametrize(("name", "head"), CASES)
def test_with_all_gates_open_a_model_computes_what_it_did(name: str, head: str) -> None:
    model = described.described_model(name, head)
    inputs = described.described_inputs(name, head)
    before = described.described_outputs(model, inputs)
    gated = width_model(model)
    for gate in stochastic_gates(gated):
        nn.init.ones_(gate.latent)
    after = described.described_outputs(gated, inputs)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("dimensions", ["inner", "all"])
@pytest.mark.parametrize(("name", "head"), CASES)
def test_compact_equals_gated_and_has_the_planned_size(
    name: str, head: str, dimensions: str, half: bool
) -> None:
    gated = hard(model_of(name, head, dimensions=dimensions), half=half)
    small, plan = fg.compact(gated), plan_compaction(gated)
    assert difference(gated, small, name, head) < 1e-13
    assert macs(small, 2, 7) == planned_macs(gated, 2, 7)
    assert plan.parameters[1] == sum(parameter.numel() for parameter in small.parameters())
    penalty = sparsity_penalty(gated)
    assert isinstance(penalty, MacsPenalty)
    dense = macs(gated, 1, 7).total
    assert penalty.realised() == pytest.approx(macs(small, 1, 7).total / dense, abs=1e-6)


@pytest.mark.parametrize(("name", "head"), CASES)
def test_the_stream_is_zero_where_closed_and_removed_weights_are_not_read(
    name: str, head: str
) -> None:
    gated = hard(model_of(name, head))
    closed = torch.ones(adapter_for(gated).stream(gated).size, dtype=torch.bool)
    closed[kept_dimensions(gated)] = False
    inputs = described.described_inputs(name, head)
    blocks = adapter_for(gated).blocks(gated)
    seen: list[bool] = []

    def look(module: nn.Module, args: object, output: object) -> None:
        states = output[0] if isinstance(output, tuple) else output
        assert isinstance(states, torch.Tensor)
        seen.append(bool(states[..., closed].any()))

    handles = [gated.get_submodule(b.path).register_forward_hook(look) for b in blocks]
    before = described.described_outputs(gated, inputs)
    for handle in handles:
        handle.remove()
    assert len(seen) >= len(blocks)
    assert not any(seen)
    with torch.no_grad():
        for tensor, axis in _entries(gated):
            index = [slice(None)] * tensor.ndim
            index[axis] = closed  # type: ignore[call-overload]
            tensor[tuple(index)] += 7.0
    after = described.described_outputs(gated, inputs)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def _entries(gated: nn.Module) -> Iterator[tuple[torch.Tensor, int]]:
    """Tensors with an axis for the dimensions of the stream, each axis once."""
    stream = adapter_for(gated).stream(gated)
    reads, writes = reading_and_writing(adapter_for(gated).blocks(gated))
    found: dict[tuple[int, int], tuple[torch.Tensor, int]] = {}

    def note(path: str, axis: int) -> None:
        layer = gated.get_submodule(path)
        layer = getattr(layer, "base", layer)
        names = ("weight",) if axis else ("weight", "bias")
        for tensor in (getattr(layer, name, None) for name in names):
            if isinstance(tensor, nn.Parameter):
                turned = tensor.ndim == 2 and isinstance(layer, Conv1D)
                found[id(tensor), axis] = (tensor, 1 - axis if turned else axis)

    for path in (*reads, *stream.reads, *(n.removesuffix(".weight") for n in stream.tables)):
        note(path, 1)
    for path in (*writes, *stream.writes, *stream.layer_norms):
        note(path, 0)
    for path, _ in stream.rms_norms:
        note(path, 0)
    yield from found.values()


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_inner_dimensions_with_width_leave_layers_without_gathers_and_scatters(name: str) -> None:
    small = fg.compact(hard(model_of(name, "sequence")))
    layers = [m for m in small.modules() if isinstance(m, CompactLinear)]
    assert layers
    assert all(layer.cols is None and layer.rows is None for layer in layers)


@pytest.mark.parametrize(("name", "head"), [("bert", "masked"), ("qwen3", "causal")])
def test_embeddings_shrink_and_stay_tied_to_the_output_layer(name: str, head: str) -> None:
    config = described.configuration(name)
    config.tie_word_embeddings = True
    factory = AutoModelForMaskedLM if head == "masked" else AutoModelForCausalLM
    gated = hard(width_model(factory.from_config(config).double()))
    small = fg.compact(gated)
    words, output = small.get_input_embeddings(), small.get_output_embeddings()  # type: ignore[operator]
    assert words.weight is output.weight
    assert words.weight.shape[1] == kept_dimensions(gated).numel()
    assert difference(gated, small, name, head) < 1e-13


@pytest.mark.parametrize(
    ("name", "head"), [("bert", "masked"), ("electra", "base"), ("gemma2", "causal")]
)
def test_a_narrower_model_is_saved_and_loaded(tmp_path: Path, name: str, head: str) -> None:
    small = fg.compact(hard(model_of(name, head)))
    fg.save(small, tmp_path / "small")
    loaded = fg.load(tmp_path / "small")
    inputs = described.described_inputs(name, head)
    ours, theirs = (described.described_outputs(model, inputs) for model in (small, loaded))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_gated_model_is_saved_and_loaded(tmp_path: Path, name: str, held: bool) -> None:
    gated = hard(model_of(name, "sequence"))
    if held:
        gated = hold_gates(gated)
    fg.save(gated, tmp_path / "gated")
    loaded = fg.load(tmp_path / "gated")
    inputs = described.described_inputs(name, "sequence")
    ours, theirs = (described.described_outputs(model, inputs) for model in (gated, loaded))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert difference(loaded, fg.compact(loaded), name, "sequence") < 1e-13


def test_in_place_gives_the_same_model() -> None:
    gated = hard(model_of("bert", "sequence"))
    small = fg.compact(gated)
    again = fg.compact(gated, inplace=True)
    assert small.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(a, again.state_dict()[n]) for n, a in small.state_dict().items())


@pytest.mark.parametrize("fold", [False, True])
def test_detached_gates_are_gone_and_folded_ones_change_nothing(fold: bool) -> None:
    dense = described.described_model("llama", "causal")
    inputs = described.described_inputs("llama", "causal")
    gated = hard(width_model(described.described_model("llama", "causal")), half=True)
    expected = described.described_outputs(gated if fold else dense, inputs)
    plain = fg.detach(gated, fold=fold)
    assert width_gate(plain) is None
    found = described.described_outputs(plain, inputs)
    assert described.relative_difference(expected, found) < 1e-13


def test_everything_closed_still_gives_a_model() -> None:
    gated = model_of("bert", "sequence")
    for gate in stochastic_gates(gated):
        nn.init.constant_(gate.latent, -1.0)
    small = fg.compact(gated)
    inputs = described.described_inputs("bert", "sequence")
    ours, theirs = (described.described_outputs(model, inputs) for model in (gated, small))
    assert described.relative_difference(ours, theirs) < 1e-13


def test_a_narrower_model_generates_with_its_cache() -> None:
    gated = hard(model_of("llama", "causal"))
    ids = described.described_inputs("llama", "causal")["input_ids"][:1]
    results = [
        model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)  # type: ignore[operator]
        for model in (gated, fg.compact(gated))
    ]
    assert torch.equal(*results)


@pytest.mark.parametrize("seed", range(3))
def test_a_counting_norm_is_the_norm_over_the_zeros(seed: int) -> None:
    torch.manual_seed(seed)
    norm = nn.LayerNorm(10, eps=1e-2).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    kept = torch.tensor([1, 2, 5, 9])
    x = torch.zeros(3, 10, dtype=torch.float64)
    x[:, kept] = torch.randn(3, 4, dtype=torch.float64) + 2
    small = CountingLayerNorm(4, 10, 1e-2).double()
    small.weight.data, small.bias.data = norm.weight.data[kept], norm.bias.data[kept]
    torch.testing.assert_close(small(x[:, kept]), norm(x)[:, kept], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", ["gpt_neox", "swin", "mixtral"])
def test_a_type_whose_stream_is_not_described_is_refused_by_name(name: str) -> None:
    model = described.described_model(name)
    with pytest.raises(ValueError, match=type(model).__name__):
        width_model(model)
    assert not stochastic_gates(model)


def test_an_unknown_reader_of_the_stream_is_refused_by_name() -> None:
    model = described.described_model("bert", "sequence")
    model.adapter = nn.Linear(24, 3)
    with pytest.raises(ValueError, match=r"adapter\.weight"):
        width_model(model)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"uniform": True}, "uniform"),
        ({"shrink": True}, "shrink"),
        ({"preset": "reference", "dimensions": "all"}, "structured"),
    ],
)
def test_options_that_do_not_go_with_width_are_refused(
    settings: dict[str, object], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        fg.GateConfig(width=True, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize(("name", "head"), [("bert", "base"), ("llama", "causal")])
def test_models_can_be_compared_on_the_inputs_of_a_user(
    name: str, head: str, dtype: torch.dtype | None
) -> None:
    gated = hard(model_of(name, head)).to(dtype or torch.float32)
    inputs = described.described_inputs(name, head)
    fg.compact(gated, verify=inputs, verify_dtype=dtype)
    table = gated.get_input_embeddings()  # type: ignore[operator]
    table._forward_hooks.clear()  # closed dimensions are not zero any more
    with pytest.raises(NotEqualError):
        fg.compact(gated, verify=inputs, verify_dtype=dtype)


class ReadsTheStream(BertPreTrainedModel):
    """A head that does not read dimensions one by one: zeros of closed ones would count."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(2, 3)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head(torch.stack([hidden.mean((1, 2)), hidden.std((1, 2))], -1))


def test_a_model_whose_own_code_reads_the_stream_is_refused() -> None:
    model = ReadsTheStream(tiny.ARCHITECTURES["bert"]())
    with pytest.raises(ValueError, match="what ReadsTheStream does with the residual stream"):
        fg.attach(model, fg.GateConfig(width=True))
    assert not fg.gated_layers(model)
    fg.attach(model.bert, fg.GateConfig(width=True))
