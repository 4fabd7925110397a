"""Equal sizes in a stock configuration: no padding, and no need for this library.

Also exports every described type: outputs equal the compact model's, or the export is refused by
name.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.models.llama import modeling_llama

import finegates as fg
from finegates.adapters import adapter_for
from finegates.compaction.counts import block_weights
from finegates.gates.block_parts import AttentionGates, ExpertsGates
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.penalty import sparsity_penalty
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.experts import expert_shape
from support import described, tiny
from support.described import described_inputs, described_outputs, relative_difference

WIDE = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 8}
GROUPED = {**WIDE, "num_key_value_heads": 4, "head_dim": 6}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 4},
    "qwen2": {**WIDE, "num_key_value_heads": 4},
    "qwen3": GROUPED,
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "phi3": {},
    "bert": WIDE,
    "roberta": WIDE,
    "gpt2": {"hidden_size": 48, "num_attention_heads": 8, "n_inner": 96},
    "t5-gated": {"d_model": 48, "d_ff": 96},
}
SAYS_HEADS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
# Without the library: importing it raises.
STRANGER = """
import json, sys
from pathlib import Path
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "finegates":
            raise ImportError("finegates is blocked")
sys.meta_path.insert(0, Blocked())
import torch, transformers
found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    said = json.loads((folder / "said.json").read_text())
    model = getattr(transformers, said["class"]).from_pretrained(folder, dtype=torch.float64)
    inputs = torch.load(folder / "inputs.pt")
    with torch.no_grad():
        output = model.eval()(**inputs)[0]
    torch.save(output, folder / "output.pt")
    found[folder.name] = sum(
        m.weight.numel()
        for m in model.modules()
        if isinstance(m, (torch.nn.Linear, transformers.pytorch_utils.Conv1D))
    )
assert not [name for name in sys.modules if name.startswith("finegates")]
print(json.dumps(found))
"""


def dense_model(name: str) -> nn.Module:
    variant = "base" if name == "t5-gated" else "language"
    if name in tiny.ARCHITECTURES:
        return tiny.tiny_model(name, variant, **FAMILIES[name])
    return described.described_model(name, "causal")


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    inputs = tiny.tokens()
    return {**inputs, "decoder_input_ids": inputs["input_ids"]} if name == "t5-gated" else inputs


def pruned_model(name: str, target: float = 0.35) -> nn.Module:
    """Prunes to equal sizes, with random importances."""
    target = target if name in SAYS_HEADS else 0.2
    config = fg.GateConfig(uniform=True, target=target, sequence_length=7, train_head=False)
    model = fg.attach(dense_model(name), config)
    penalty = sparsity_penalty(model)
    assert isinstance(penalty, MacsPenalty)
    generator = torch.Generator().manual_seed(0)
    for gate in penalty.gates():
        assert gate.importance is not None
        assert gate.scale is not None
        gate.importance.exponential_(generator=generator)
        gate.scale.data.uniform_(0.95, 1.3, generator=generator)
    penalty.close_least()
    return model.eval()


@torch.no_grad()
def output(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = model(**inputs)[0]
    return found


def linear_weights(model: nn.Module) -> int:
    """Weights of all linear layers, including the head."""
    from transformers.pytorch_utils import Conv1D

    inner = {id(m.linear) for m in model.modules() if isinstance(m, CompactLinear)}
    return sum(
        m.weight.numel()  # type: ignore[misc, operator]
        for m in model.modules()
        if isinstance(m, (nn.Linear, Conv1D, CompactLinear)) and id(m) not in inner
    )


def test_a_process_without_the_library_loads_it_at_full_savings(tmp_path: Path) -> None:
    expected, small_weights, dense_weights = {}, {}, {}
    for name in FAMILIES:
        folder = tmp_path / name
        small = fg.compact(pruned_model(name))
        stock = fg.uniform(small)
        stock.save_pretrained(folder)  # type: ignore[operator]
        kind: Any = type(stock)
        again = kind.from_pretrained(folder, dtype=torch.float64).eval()
        assert all(torch.equal(t, stock.state_dict()[k]) for k, t in again.state_dict().items())
        expected[name] = output(again, inputs_of(name))
        small_weights[name] = linear_weights(small)
        dense_weights[name] = linear_weights(dense_model(name))
        torch.save(inputs_of(name), folder / "inputs.pt")
        (folder / "said.json").write_text(json.dumps({"class": type(stock).__name__}))
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout.splitlines()[-1])
    assert counted == small_weights
    for name in FAMILIES:
        assert counted[name] < dense_weights[name]
        assert torch.equal(torch.load(tmp_path / name / "output.pt"), expected[name]), name


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_padded(name: str) -> None:
    model = pruned_model(name)
    dense = fg.macs(model, 1, 7).total
    planned = sparsity_penalty(model).realised()  # type: ignore[union-attr]
    small = fg.compact(model)
    stock = fg.uniform(small)
    assert fg.macs(stock, 1, 7) == fg.macs(small, 1, 7)
    assert fg.macs(stock, 1, 7).total / dense == pytest.approx(planned, abs=1e-6)
    outputs = [described_outputs(m, inputs_of(name)) for m in (model, small, stock)]
    assert relative_difference(outputs[0], outputs[1]) < 1e-12
    assert relative_difference(outputs[1], outputs[2]) < 1e-12
    cost = fg.uniform_cost(small)
    assert cost.uniform == cost.compact < cost.dense
    config = stock.config
    if name in SAYS_HEADS:
        dense_config = dense_model(name).config
        width = getattr(dense_config, "head_dim", None)
        width = width or dense_config.hidden_size // dense_config.num_attention_heads  # type: ignore[union-attr, operator]
        assert config.head_dim == width  # type: ignore[union-attr]


def test_widths_of_layers_are_stored_where_a_class_builds_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Like a class of transformers that reads ``per_layer_config`` for each of its layers."""
    if not hasattr(transformers.PretrainedConfig, "per_layer_config"):
        pytest.skip("this version of transformers has one size for all layers")
    small = fg.compact(scattered_model())
    widths = [layer.mlp.down_proj.in_features for layer in small.model.layers]  # type: ignore[union-attr]
    assert len(set(widths)) > 1
    padded = fg.uniform_cost(small)
    assert padded.uniform > padded.compact
    init = modeling_llama.LlamaDecoderLayer.__init__

    def by_layer(self: nn.Module, config: Any, layer_idx: int) -> None:
        of_layer = config.per_layer_config[layer_idx] if config.is_heterogeneous else config
        init(self, of_layer, layer_idx)

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "__init__", by_layer)
    cost = fg.uniform_cost(small)
    assert cost.uniform == cost.compact
    fg.uniform(small).save_pretrained(tmp_path)  # type: ignore[operator]
    kind: Any = type(small)
    stock = kind.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert [layer.mlp.down_proj.in_features for layer in stock.model.layers] == widths
    outputs = [described_outputs(m, tiny.tokens()) for m in (small, stock)]
    assert relative_difference(*outputs) < 1e-12


def scattered_model() -> nn.Module:
    """A Llama whose layers keep different feed-forward dimensions and all of their heads."""
    model = fg.attach(
        tiny.tiny_model("llama", "language"),
        fg.GateConfig(dimensions="inner", target=0.1, sequence_length=7),
    )
    for number, part in enumerate(model.finegates_structure):  # type: ignore[arg-type]
        if hasattr(part, "hidden"):
            part.hidden.latent.data[number + 3 :] = -1.0
    return model.eval()


@pytest.mark.sampled(16)
@pytest.mark.parametrize("preset", ["structured", "reference", "inner"])
@pytest.mark.parametrize("name", sorted(described.CONFIGURATIONS))
def test_a_described_model_is_exported_exactly_or_refused_by_name(name: str, preset: str) -> None:
    model = described.described_model(name)
    options: dict[str, Any] = {"preset": preset, "target": 0.01}
    if preset == "inner":
        options = {"dimensions": "inner", "target": 0.01}
    fg.attach(model, fg.GateConfig(sequence_length=9, **options))
    tiny.scatter_gates(model, mean=0.3)
    small = fg.compact(model.eval())
    inputs = described_inputs(name, "base")
    expected = described_outputs(small, inputs)
    try:
        stock = fg.uniform(small)
    except ValueError as error:
        refusal = str(error)
        assert re.search(r"layers\.\d|the configuration of the", refusal), refusal
        return
    assert relative_difference(expected, described_outputs(stock, inputs)) < 1e-12
    assert not any(isinstance(layer, CompactLinear) for layer in stock.modules())


def equal_sizes(name: str) -> nn.Module:
    """A described model with equal sizes and random importances."""
    config = fg.GateConfig(uniform=True, target=0.1, sequence_length=9, train_head=False)
    model = fg.attach(described.described_model(name), config)
    penalty = sparsity_penalty(model)
    assert isinstance(penalty, MacsPenalty)
    generator = torch.Generator().manual_seed(0)
    for gate in penalty.gates():
        assert gate.importance is not None
        gate.importance.exponential_(generator=generator)
    penalty.close_least()
    return model.eval()


def check_stock_form(name: str) -> nn.Module:
    small = fg.compact(equal_sizes(name))
    stock = fg.uniform(small)
    outputs = [described_outputs(m, described_inputs(name)) for m in (small, stock)]
    assert relative_difference(*outputs) < 1e-12
    return stock


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", sorted(described.CONFIGURATIONS))
def test_equal_sizes_that_no_stock_model_has_are_refused_before_the_training(name: str) -> None:
    try:
        equal_sizes(name)
    except ValueError as error:
        refusal = str(error)
        assert "uniform=False" in refusal, refusal
        return
    check_stock_form(name)


def test_heads_stay_where_a_norm_depends_on_their_number() -> None:
    """Phi's norms of queries and keys have the hidden size over the number of heads."""
    dense, stock = described.described_model("phi/qk-norm"), check_stock_form("phi/qk-norm")
    assert stock.config.num_attention_heads == dense.config.num_attention_heads  # type: ignore[union-attr]
    assert stock.config.intermediate_size < dense.config.intermediate_size  # type: ignore[union-attr, operator]
    assert check_stock_form("phi").config.num_attention_heads < 4  # type: ignore[union-attr, operator]


def test_equal_sizes_are_not_chosen_for_experts() -> None:
    model = described.described_model("mixtral")
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.experts holds .*set uniform=False"):
        fg.attach(model, fg.GateConfig(uniform=True, target=0.1))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mixtral", "intermediate_size"),
        ("gpt_oss", "intermediate_size"),
        ("qwen3_moe", "moe_intermediate_size"),
        ("deepseek_v3", None),  # its shared expert has a width of the same name
    ],
)
def test_experts_have_the_width_that_a_configuration_can_say(
    name: str, key: str | None, tmp_path: Path
) -> None:
    """The widest of all layers; the dense width where it cannot."""
    model = described.described_model(name, "causal")
    fg.attach(model, fg.GateConfig(target=0.1, sequence_length=9))
    tiny.scatter_gates(model, mean=0.3)
    stacks = [part for part in model.finegates_structure if isinstance(part, ExpertsGates)]  # type: ignore[union-attr]
    with torch.no_grad():
        for part, keeps in zip(stacks, (7, 15), strict=False):
            latents = part.hidden.latent.view(part.part.count, -1).abs_()
            latents[:, keeps:] *= -1
    small = fg.compact(model.eval())
    widths = [expert_shape(small.get_submodule(part.part.path))[2] for part in stacks]
    stock = fg.uniform(small)
    dense = stacks[0].part.width
    found = expert_shape(stock.get_submodule(stacks[0].part.path))[2]
    assert found == (dense if key is None else max(widths))
    assert max(widths) < dense
    if key is not None:
        assert getattr(stock.config, key) == found
    cost = fg.uniform_cost(small)
    assert cost.compact < cost.uniform <= cost.dense
    assert cost.dense == sum(
        block_weights(m, block, {})
        for m in [described.described_model(name, "causal")]
        for block in adapter_for(m).blocks(m)
    )
    inputs = described_inputs(name, "causal")
    expected = described_outputs(small, inputs)
    assert relative_difference(expected, described_outputs(stock, inputs)) < 1e-12
    stock.save_pretrained(tmp_path)  # type: ignore[operator]
    again = type(stock).from_pretrained(tmp_path, dtype=torch.float64).eval()  # type: ignore[attr-defined]
    again.set_experts_implementation("eager")
    assert all(torch.equal(t, stock.state_dict()[k]) for k, t in again.state_dict().items())


def test_experts_keep_the_width_that_others_have_by_the_same_name() -> None:
    """The shared expert of a type without a description."""
    config = transformers.Dots1Config(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=40,
        moe_intermediate_size=24,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=0,
    )
    torch.manual_seed(0)
    model = transformers.Dots1ForCausalLM(config).double().eval()
    model.set_experts_implementation("eager")
    fg.attach(model, fg.GateConfig(target=0.1, sequence_length=7))
    for part in model.finegates_structure:  # type: ignore[union-attr]
        if isinstance(part, ExpertsGates):
            part.hidden.latent.data.view(4, -1)[:, 7:] = -1.0
    small = fg.compact(model)
    stock = fg.uniform(small)
    assert stock.config.moe_intermediate_size == 24
    outputs = [described_outputs(m, tiny.tokens()) for m in (model, small, stock)]
    assert relative_difference(outputs[0], outputs[1]) < 1e-12
    assert relative_difference(outputs[1], outputs[2]) < 1e-12


@pytest.mark.parametrize("name", ["deberta", "gpt_oss", "swin"])
def test_numbers_of_single_heads_are_where_their_heads_are(name: str) -> None:
    """Biases of queries, projections of positions, sinks, and tables of relative positions."""
    model = described.described_model(name)
    fg.attach(model, fg.GateConfig(dimensions="inner", target=0.1, sequence_length=9))
    for number, part in enumerate(model.finegates_structure):  # type: ignore[arg-type]
        if isinstance(part, AttentionGates) and part.heads is not None:
            part.heads.latent.data[number % 2] = -1.0
    small = fg.compact(model.eval())
    stock = fg.uniform(small)
    outputs = [described_outputs(m, described_inputs(name)) for m in (model, small, stock)]
    assert relative_difference(outputs[0], outputs[1]) < 1e-12
    assert relative_difference(outputs[1], outputs[2]) < 1e-12
    assert relative_difference(outputs[0], outputs[2]) < 1e-12


def test_shared_layers_count_as_often_as_they_are_used() -> None:
    dense = described.described_model("albert")
    model = fg.attach(described.described_model("albert"), fg.GateConfig(target=0.1))
    tiny.scatter_gates(model, mean=0.3)
    small = fg.compact(model.eval())
    cost = fg.uniform_cost(small)
    assert 18 * cost.dense == fg.macs(dense, 2, 9).linear
    assert 18 * cost.compact == fg.macs(small, 2, 9).linear
    assert 18 * cost.uniform == fg.macs(fg.uniform(small), 2, 9).linear
