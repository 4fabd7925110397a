"""A compact model gets gates again: nothing changes until they close, and sizes compose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import finegates as fg
from finegates.adapters import unwrap
from finegates.gates.dense_form import dense_form
from finegates.gates.gated_linear import leaf_gates
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.penalty import sparsity_penalty
from finegates.gates.stochastic import StochasticGate
from finegates.modules.compact_linear import CompactLinear
from support import described, tiny
from support.shrinking import CONFIG, train
from support.tolerance import model_bound

FAST = ("bert", "llama")
ARCHITECTURES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(tiny.ARCHITECTURES)
]
WAYS = [("all", "all"), ("all", "inner"), ("inner", "all"), ("inner", "inner")]
LENGTH = 7


def gated(model: nn.Module, dimensions: str = "all", **settings: object) -> nn.Module:
    settings = {"target": 0.01, "sequence_length": LENGTH, **settings}
    return fg.attach(model, fg.GateConfig(dimensions=dimensions, **settings))  # type: ignore[arg-type]


def budget_of(model: nn.Module) -> MacsPenalty:
    penalty = sparsity_penalty(model)
    assert isinstance(penalty, MacsPenalty)
    return penalty


def uneven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Closes other dimensions in every layer, but never a whole part."""
    tiny.scatter_gates(model, seed)
    for gate in budget_of(model).gates():
        gate.latent.data[0] = 1.0
    return model.eval()


def opened(model: nn.Module) -> nn.Module:
    """Sets gates that are not closed for good to one."""
    for gate in leaf_gates(model):
        if isinstance(gate, StochasticGate):
            gate.latent.data[~gate.final()] = 1.0
    return model.eval()


def compact_model(architecture: str, dimensions: str = "all") -> nn.Module:
    torch.manual_seed(0)
    return fg.compact(uneven(gated(tiny.tiny_model(architecture), dimensions)))


def macs(model: nn.Module) -> int:
    return fg.macs(model, 1, LENGTH).total


def some_numbers(model: nn.Module) -> torch.Tensor:
    with described.without_downcasts():
        numbers = tiny.output(model, tiny.tokens()).flatten()
    return numbers[:: max(1, numbers.numel() // 6)]


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Of the parameters, by names that do not say whether a layer has indices."""
    return {name.replace(".linear.", "."): p.shape for name, p in model.named_parameters()}


def assert_equal(one: nn.Module, other: nn.Module, rounding_of: nn.Module) -> None:
    bound = model_bound(rounding_of, some_numbers)
    assert float(bound.max()) < 1e-9
    assert ((some_numbers(one) - some_numbers(other)).abs() <= bound).all()


@pytest.mark.parametrize(("first", "second"), WAYS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gates_that_close_nothing_change_nothing(
    architecture: str, first: str, second: str
) -> None:
    small = compact_model(architecture, first)
    expected, sizes = some_numbers(small), macs(small)
    parameters = shapes(small)
    model = opened(gated(small, second))
    assert model is small
    assert (expected - some_numbers(model)).abs().max() < 1e-12
    again = fg.compact(model)
    assert_equal(model, again, model)
    assert macs(again) == sizes
    assert shapes(again) == parameters


@pytest.mark.parametrize(("first", "second"), WAYS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compacted_again_equals_gated_again_and_is_loaded_as_it_was_saved(
    architecture: str, first: str, second: str, tmp_path: Path
) -> None:
    small = compact_model(architecture, first)
    sizes = macs(small)
    model = uneven(gated(small, second), seed=5)
    penalty = budget_of(model)
    smaller = fg.compact(model)
    assert_equal(model, smaller, model)
    # The budget counts from the compact model.
    assert penalty.dense * LENGTH == sizes
    assert penalty.realised() == pytest.approx(macs(smaller) / sizes, abs=1e-6)
    assert macs(smaller) < sizes
    for saved in (model, smaller):
        fg.save(saved, tmp_path / "saved")
        loaded = fg.load(tmp_path / "saved")
        assert torch.equal(some_numbers(loaded), some_numbers(saved))
        if saved is model:
            assert budget_of(loaded).dense == penalty.dense
            assert macs(fg.compact(loaded)) == macs(smaller)
            for path in (tmp_path / "saved").iterdir():
                path.unlink()


@pytest.mark.parametrize("architecture", FAST)
def test_the_residual_stream_of_a_compact_model_gets_a_gate(architecture: str) -> None:
    small = compact_model(architecture)
    sizes = macs(small)
    expected = some_numbers(small)
    model = gated(small, width=True)
    assert dense_form(model) is not None
    assert (some_numbers(opened(model)) - expected).abs().max() < 1e-12
    assert macs(fg.compact(model)) == sizes
    width = budget_of(model).structure[0].width  # type: ignore[union-attr]
    assert width is not None
    width.latent.data[1] = -1.0
    again = fg.compact(model)
    assert (some_numbers(again) - some_numbers(model)).abs().max() < 1e-12
    assert macs(again) < sizes
    with pytest.raises(ValueError, match="lost hidden dimensions"):
        gated(again)


@pytest.mark.parametrize("architecture", FAST)
def test_a_model_gated_again_is_compacted_in_place(architecture: str) -> None:
    model = uneven(gated(compact_model(architecture)), seed=5)
    expected = fg.compact(model)
    numbers = some_numbers(model)
    small = fg.compact(model, inplace=True)
    assert torch.equal(some_numbers(small), some_numbers(expected))
    assert (some_numbers(small) - numbers).abs().max() < 1e-12
    assert {n: p.shape for n, p in small.named_parameters()} == {
        n: p.shape for n, p in expected.named_parameters()
    }


@pytest.mark.sampled(16)
@pytest.mark.parametrize("name", sorted(described.CONFIGURATIONS))
def test_every_described_type_is_gated_again(name: str) -> None:
    model = described.described_model(name)
    small = fg.compact(uneven(gated(model)))
    if any(hasattr(module, "finegates_width") for module in small.modules()):
        with pytest.raises(ValueError, match="experts that were compacted"):
            gated(small)
        return
    sizes = macs(small)
    inputs = described.described_inputs(name)
    with described.without_downcasts():
        expected = described.described_outputs(small, inputs)
        model = opened(gated(small))
        found = described.described_outputs(model, inputs)
        assert described.relative_difference(found, expected) < 1e-9
        assert macs(fg.compact(model)) == sizes
        model = uneven(model, seed=3)
        found = described.described_outputs(model, inputs)
        smaller = fg.compact(model)
        expected = described.described_outputs(smaller, inputs)
    assert described.relative_difference(found, expected) < 1e-9
    assert budget_of(model).realised() * sizes == pytest.approx(macs(smaller), rel=1e-6)


def test_no_step_pays_for_what_an_earlier_compaction_removed() -> None:
    small = compact_model("bert")
    weights = sum(p.numel() for p in small.bert.encoder.parameters() if p.ndim == 2)
    model = gated(small)
    now = [m.weight.numel() for m in model.modules() if isinstance(m, CompactLinear)]
    assert dense_form(model) is not None
    assert sum(now) <= 1.1 * weights  # a gate keeps one dimension even where all are closed


def test_a_target_may_be_of_the_original_model() -> None:
    dense = tiny.tiny_model("bert")
    whole = macs(dense)
    small = compact_model("bert")
    sizes = macs(small)
    model = gated(small, target=0.8, target_of="original")
    penalty = budget_of(opened(model))
    assert penalty.dense * LENGTH == whole
    assert penalty.realised() == pytest.approx(sizes / whole, abs=1e-6)


@pytest.mark.parametrize("shrink", [False, True])
def test_a_compact_model_is_trained_to_a_fraction_of_its_own_macs(
    shrink: bool, tmp_path: Path
) -> None:
    length = CONFIG.sequence_length
    first, _, _ = train(fg.attach(tiny.tiny_model("bert"), CONFIG), tmp_path)
    small = fg.compact(first)
    before = fg.macs(small, 1, length).total
    second = fg.attach(small, fg.GateConfig(target=0.3, sequence_length=length, shrink=shrink))
    trained, _, _ = train(second, tmp_path)
    smaller = fg.compact(trained, verify=tiny.tokens(), verify_dtype=torch.float64)
    assert fg.macs(smaller, 1, length).total / before == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_low_rank_factors_of_a_compact_model_stay(architecture: str, tmp_path: Path) -> None:
    model = fg.add_lora(compact_model(architecture), rank=3)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.2, generator=generator)
    expected = tiny.output(model.eval(), tiny.tokens())
    assert gated(model) is model
    assert (tiny.output(opened(model), tiny.tokens()) - expected).abs().max() < 1e-12
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any(".lora_A." in name for name in trained)
    assert not any(name.endswith("base_layer.weight") for name in trained)
    tiny.scatter_gates(model, 3)
    expected = tiny.output(model.eval(), tiny.tokens())
    assert (tiny.output(fg.compact(model), tiny.tokens()) - expected).abs().max() < 1e-12
    fg.save(model, tmp_path / "gated")
    loaded = fg.load(tmp_path / "gated")
    assert torch.equal(tiny.output(loaded, tiny.tokens()), expected)


@pytest.mark.parametrize(("first", "second"), [("all", "all"), ("all", "inner")])
@pytest.mark.parametrize("compacted", [False, True])
def test_pruning_twice_removes_of_what_is_left(first: str, second: str, compacted: bool) -> None:
    model = tiny.tiny_model("llama")
    options = {"criterion": "magnitude", "sequence_length": LENGTH, "progress": False}
    fg.prune(model, target=0.3, dimensions=first, **options)  # type: ignore[arg-type]
    sizes = macs(fg.compact(model))
    pruned = fg.compact(model) if compacted else model
    assert fg.prune(pruned, target=0.3, dimensions=second, **options) is pruned  # type: ignore[arg-type]
    small = fg.compact(pruned)
    assert macs(small) / sizes == pytest.approx(0.7, abs=0.02)
    assert_equal(pruned, small, pruned)


def test_equal_sizes_are_chosen_among_those_that_are_left() -> None:
    small = compact_model("llama")
    before = macs(small)
    model = gated(small, uniform=True, target=0.4)
    penalty = budget_of(model)
    for gate in penalty.gates():
        assert gate.importance is not None
        gate.importance.uniform_(0.5, 1.0, generator=torch.Generator().manual_seed(gate.size))
    penalty.close_least()
    smaller = fg.compact(opened_as_chosen(model))
    stock = fg.uniform(smaller)
    assert (tiny.output(stock, tiny.tokens()) - tiny.output(smaller, tiny.tokens())).abs().max() < (
        1e-12
    )
    assert macs(smaller) <= 0.61 * before


def opened_as_chosen(model: nn.Module) -> nn.Module:
    budget_of(model).close_for_good()
    return opened(model)


def test_layers_that_read_different_inputs_read_what_one_of_them_reads() -> None:
    torch.manual_seed(0)
    model = fg.attach(tiny.tiny_model("bert"), fg.GateConfig(preset="reference", target=0.3))
    for gate in leaf_gates(model):
        gate.latent.data = torch.where(torch.rand(gate.latent.shape) < 0.3, -2.0, 2.0)
    small = fg.compact(model.eval())
    expected, sizes = some_numbers(small), macs(small)
    again = opened(gated(small))
    assert (some_numbers(again) - expected).abs().max() < 1e-12
    smaller = fg.compact(again)
    assert_equal(again, smaller, again)
    assert macs(smaller) >= sizes


def test_a_model_that_cannot_be_gated_does_not_change() -> None:
    small = compact_model("bert")
    expected, modules = tiny.output(small, tiny.tokens()), [*small.modules()]
    frozen = next(small.parameters()).requires_grad_(False)
    with pytest.raises(ValueError, match="cannot be reached"):
        gated(small, "inner", target=0.99)
    with pytest.raises(ValueError, match="independent gates go around dense layers"):
        fg.attach(small, fg.GateConfig(preset="reference"))
    assert [*small.modules()] == modules
    assert [p.requires_grad for p in small.parameters()].count(False) == 1
    assert not frozen.requires_grad
    assert torch.equal(tiny.output(small, tiny.tokens()), expected)


def test_closed_hidden_dimensions_are_not_pruned_further() -> None:
    model = tiny.tiny_model("llama")
    options = {"criterion": "magnitude", "sequence_length": LENGTH, "progress": False}
    fg.prune(model, target=0.3, width=True, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lost hidden dimensions"):
        fg.prune(model, **options)  # type: ignore[arg-type]


def test_a_model_of_which_nothing_is_left_gets_gates() -> None:
    model = gated(tiny.tiny_model("bert"))
    for gate in budget_of(model).gates():
        gate.latent.data.fill_(-1.0)
    small = fg.compact(model.eval())
    expected, sizes = some_numbers(small), macs(small)
    again = gated(small, target=0.0).eval()
    assert (some_numbers(again) - expected).abs().max() < 1e-12
    assert budget_of(again).dense * LENGTH == macs(fg.compact(again)) == sizes


def test_constant_gates_of_single_layers_are_not_pruned_further() -> None:
    model = tiny.tiny_model("bert")
    path = "bert.encoder.layer.0.attention.self.query"
    columns = model.get_submodule(path).in_features
    mask = torch.ones(columns, dtype=torch.float64)
    mask[0] = 0
    fg.attach_fixed(model, {path: (None, mask)})
    with pytest.raises(ValueError, match="not those of shared dimensions"):
        fg.prune(model, criterion="magnitude", progress=False)


def test_a_target_that_a_compact_model_has_met_is_refused() -> None:
    small = compact_model("bert")
    with pytest.raises(ValueError, match="is met already"):
        gated(small, target=0.01, target_of="original")
    assert not fg.gated_layers(small)


def new_head(model: nn.Module) -> None:
    model.classifier = nn.Linear(model.classifier.in_features, 4).double()


def other_epsilon(model: nn.Module) -> None:
    model.get_submodule("bert.encoder.layer.0.output.LayerNorm").eps = 0.5  # type: ignore[assignment]


def merged(model: nn.Module) -> None:
    next(m for m in model.modules() if hasattr(m, "merged_adapters")).merge()  # type: ignore[operator]


def with_lora() -> nn.Module:
    model = get_peft_model(
        compact_model("bert"), LoraConfig(r=2, target_modules=["query", "value"])
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, 0.0, 0.3)
    return model.double()


@pytest.mark.parametrize("change", [new_head, other_epsilon, merged])
def test_a_setting_that_changed_since_would_be_lost_and_is_refused(
    change: Callable[[nn.Module], None],
) -> None:
    model = uneven(gated(with_lora()))
    expected = tiny.output(fg.compact(model), tiny.tokens())
    assert torch.allclose(expected, tiny.output(model, tiny.tokens()), rtol=1e-9)
    change(unwrap(model))
    with pytest.raises(ValueError, match="changed after dimensions were removed"):
        fg.compact(model, verify=tiny.tokens())


def test_generation_settings_that_changed_since_are_kept() -> None:
    small = fg.compact(uneven(gated(tiny.tiny_model("llama", "language"))))
    model = uneven(gated(small))
    model.generation_config.max_new_tokens = 77  # type: ignore[union-attr]
    assert fg.compact(model).generation_config.max_new_tokens == 77  # type: ignore[union-attr]
