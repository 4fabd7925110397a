"""Gates from peft's FineGates adapter: latents of the reference gate, then compaction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finegates.adapters import adapter_for
from finegates.compaction import CompactLinear, compact
from finegates.formats.peft import PeftGatesError, attach_from_peft
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.gated_linear import gated_layers
from finegates.modules.linear import linear_shape
from support import tiny
from support.tolerance import model_bound


def adapter_state(model: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """The adapter's saved state: latents of every linear layer, and a trained head."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for path in adapter_for(model).gated(model):
        columns, outputs = linear_shape(model.get_submodule(path))
        for key, size in (("rows", outputs), ("columns", columns)):
            name = f"base_model.model.{path}.finegates_{key}"
            state[name] = torch.randn(size, generator=generator)
    state["base_model.model.classifier.bias"] = torch.tensor([1.0, -1.0])
    return state


@pytest.mark.parametrize("how", ["tensors", "file", "folder", "with adapter names"])
def test_gates_are_those_of_the_proposal_and_compaction_keeps_them(
    how: str, tmp_path: Path
) -> None:
    model = tiny.tiny_model("bert")
    state = adapter_state(model)
    source: object = state
    if how in ("file", "folder"):
        save_file(state, tmp_path / "adapter_model.safetensors")
        source = tmp_path if how == "folder" else tmp_path / "adapter_model.safetensors"
    if how == "with adapter names":
        source = {f"{k}.default" if "finegates" in k else k: v for k, v in state.items()}
    attach_from_peft(model, source)  # type: ignore[arg-type]
    for path, layer in gated_layers(model).items():
        rows = state[f"base_model.model.{path}.finegates_rows"]
        cols = state[f"base_model.model.{path}.finegates_columns"]
        assert layer.rows is not None
        assert layer.cols is not None
        assert torch.equal(layer.rows.value(), (torch.tanh(rows) + 0.5).clamp(0, 1))
        assert torch.equal(layer.cols.value(), (torch.tanh(cols) + 0.5).clamp(0, 1))
    assert model.classifier.bias.tolist() == [1.0, -1.0]

    def logits(m: torch.nn.Module) -> torch.Tensor:
        return tiny.output(m, tiny.tokens())

    small = compact(model.eval())
    assert ((logits(small) - logits(model)).abs() <= model_bound(model, logits)).all()


# A parameter of the classifier's task head, with values that differ from the model's.
HEADS = {"bert": "classifier.bias", "gpt2": "score.weight", "llama": "score.weight"}


@pytest.mark.parametrize("architecture", HEADS)
def test_other_layers_than_bert_s_are_imported_and_compacted_too(architecture: str) -> None:
    """Conv1D, whose matrices are transposed, and feed-forward parts with a gate projection."""
    model = tiny.tiny_model(architecture)
    state = without(adapter_state(model), "classifier")
    head = torch.full_like(model.get_parameter(HEADS[architecture]), 0.25)
    state[f"base_model.model.{HEADS[architecture]}"] = head
    before = tiny.output(model, tiny.tokens())
    attach_from_peft(model, state)
    assert sorted(gated_layers(model)) == sorted(adapter_for(model).gated(model))
    assert torch.equal(model.get_parameter(HEADS[architecture]), head)

    def logits(m: torch.nn.Module) -> torch.Tensor:
        return tiny.output(m, tiny.tokens())

    assert ((logits(model.eval()) - before).abs() > 1e-3).any()
    small = compact(model)
    assert ((logits(small) - logits(model)).abs() <= model_bound(model, logits)).all()
    assert sum(m.weight.numel() for m in small.modules() if isinstance(m, CompactLinear)) < sum(
        layer.weight.numel() for layer in gated_layers(model).values()
    )


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_biases_that_were_trained_inside_the_adapters_layers_are_taken(architecture: str) -> None:
    """With ``bias="all"`` peft saves biases under the names of the wrapped layers."""
    model = tiny.tiny_model(architecture)
    state = without(adapter_state(model), "classifier")
    path = adapter_for(model).gated(model)[1]
    bias = torch.full_like(model.get_parameter(f"{path}.bias"), 0.25)
    state[f"base_model.model.{path}.base_layer.bias"] = bias
    attach_from_peft(model, state)
    found = gated_layers(model)[path].bias
    assert found is not None
    assert torch.equal(found, bias)


def without(state: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if part not in name}


QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query.finegates_rows"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "finegates"), "no finegates_rows or finegates_columns"),
        (lambda s: without(s, "0.attention.self.query.finegates_rows"), "rows are missing"),
        (
            lambda s: {**s, QUERY: torch.zeros(3)},
            r"rows have shape \(3,\), the model needs \(12,\)",
        ),
        (lambda s: {**s, "base_model.model.no.finegates_rows": torch.zeros(3)}, "no layer 'no'"),
        (
            lambda s: {**s, "base_model.model.bert.encoder.finegates_rows": torch.zeros(3)},
            "not linear-like",
        ),
        (lambda s: {**s, "base_model.model.head.weight": torch.zeros(3)}, "'head.weight'"),
        (
            lambda s: {**s, "base_model.model.classifier.bias": torch.zeros(3)},
            "'classifier.bias' has shape",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_the_model_alone(change, message: str) -> None:
    model = tiny.tiny_model("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PeftGatesError, match=message):
        attach_from_peft(model, change(adapter_state(model)))
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    model = tiny.tiny_model("bert")
    with pytest.raises(PeftGatesError, match="does not exist"):
        attach_from_peft(model, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(PeftGatesError, match="cannot be read"):
        attach_from_peft(model, tmp_path)
    attach(model, GateConfig(preset="reference"))
    with pytest.raises(ValueError, match="gates already"):
        attach_from_peft(model, {})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gates_that_are_no_finite_numbers_are_refused(value: float) -> None:
    model = tiny.tiny_model("bert")
    state = adapter_state(model)
    next(iter(state.values()))[0] = value
    with pytest.raises(PeftGatesError, match="has values that are not finite"):
        attach_from_peft(model, state)
    assert not gated_layers(model)
