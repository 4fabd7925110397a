"""One-shot pruning: the budget is met, the criterion decides, and nothing else changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import finegates as fg
from finegates.compaction import CostModel, plan_compaction
from finegates.gates.gated_linear import gated_layers
from finegates.modules.compact_linear import CompactLinear
from finegates.pruning.groups import SharedGroups
from finegates.pruning.removed_weights import measure_moments, removed_squares
from finegates.pruning.sensitivity import measure_sensitivity
from support.described import described_model
from support.tiny import ARCHITECTURES, VOCABULARY, output, tiny_model, tokens
from support.tolerance import model_bound

CRITERIA = ("taylor", "fisher", "second_moment", "magnitude", "random")
FAST = ("bert", "llama", "t5")
# Even in tiny models, one dimension is much less than a percentage point of the budget here.
WIDE = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}


def rows(architecture: str, count: int = 6) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (count, 6), generator=generator)
    ids[:, -1] = 1
    mask = torch.ones_like(ids[0])
    return [{"input_ids": row, "attention_mask": mask, "labels": row[0] % 2} for row in ids]


def batches(architecture: str, size: int = 3) -> list[dict[str, torch.Tensor]]:
    return list(DataLoader(rows(architecture), batch_size=size))


def wide_bert(**overrides: object) -> nn.Module:
    return tiny_model("bert", "classifier", **WIDE, **overrides)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("steps", [1, 3])
def test_the_budget_is_met_by_the_compact_model(criterion, steps):
    model = wide_bert()
    dense = fg.macs(model, 1, 128).total
    pruned = fg.prune(
        model, batches("bert"), target=0.4, criterion=criterion, steps=steps, progress=False
    )
    assert pruned is model
    assert fg.macs(fg.compact(model), 1, 128).total / dense == pytest.approx(0.6, abs=0.01)


@pytest.mark.filterwarnings("ignore:.*of the MACs are kept:UserWarning")
@pytest.mark.parametrize("criterion", ["taylor", "second_moment"])
@pytest.mark.parametrize(
    "architecture",
    [a if a in FAST else pytest.param(a, marks=pytest.mark.slow) for a in ARCHITECTURES],
)
def test_gated_is_compact_for_every_architecture(architecture, criterion):
    model = tiny_model(architecture)
    dense = output(model, tokens())
    fg.prune(model, batches(architecture), target=0.3, criterion=criterion, progress=False)
    gated = output(model, tokens())
    bound = model_bound(model, lambda m: output(m, tokens()))
    small = fg.compact(model)
    assert ((output(small, tokens()) - gated).abs() <= bound).all()
    assert not torch.allclose(gated, dense)


@pytest.mark.parametrize("variant", ["classifier", "language"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_nothing_else_of_the_model_changes(variant, criterion):
    model = tiny_model("bert", variant).train()
    model.bert.encoder.layer[0].eval()
    model.bert.embeddings.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    before = copy.deepcopy(model.state_dict())
    modes = {name: module.training for name, module in model.named_modules()}
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    gradients = {name: p.grad for name, p in model.named_parameters()}
    data = batches("bert")
    if variant == "language":
        data = [{**batch, "labels": batch["input_ids"]} for batch in data]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fg.prune(
        model, DataLoader(range(2), collate_fn=lambda at: data[at[0]], shuffle=True),
        target=0.2, criterion=criterion, progress=False,
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    fg.detach(model)
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert all(p.grad is gradients[name] for name, p in model.named_parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Rows(Dataset):
    """A dataset with a column that models do not use."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, place: int) -> dict[str, object]:
        if place >= len(self):
            raise IndexError
        return {**rows("bert")[place], "sentence": "a text"}


def test_rows_with_a_collator_are_what_batches_are():
    from transformers import default_data_collator

    chosen = []
    for data, options in (
        (batches("bert", 4), {}),
        (iter(batches("bert", 2)), {}),
        (Rows(), {"collator": default_data_collator, "batch_size": 5}),
    ):
        model = wide_bert()
        fg.prune(model, data, target=0.5, criterion="fisher", steps=2, progress=False, **options)
        chosen.append(closed(model))
    assert chosen[0] == chosen[1] == chosen[2]


def closed(model: nn.Module) -> dict[str, list[list[int]]]:
    return {
        name: [gate.closed().nonzero().flatten().tolist() for _, gate in layer.gates()]
        for name, layer in gated_layers(model).items()
    }


def test_magnitude_is_the_weight_that_goes_with_a_dimension():
    model = tiny_model("bert", dtype=torch.float32)
    model.requires_grad_(False)
    groups = SharedGroups(model, "all", 8)
    found = removed_squares(model, groups)
    feed, attention = groups.structure[1], groups.structure[0]
    layer = model.bert.encoder.layer[0]
    up, down = layer.intermediate.dense.weight, layer.output.dense.weight
    expected = up[3].square().sum() + down[:, 3].square().sum()
    assert float(found[feed.hidden][3]) == pytest.approx(float(expected), rel=1e-5)
    own, o = layer.attention.self, layer.attention.output.dense.weight
    head = slice(4, 8)  # the second of width 4
    expected = o[:, head].square().sum() + sum(
        linear.weight[head].square().sum() for linear in (own.query, own.key, own.value)
    )
    assert float(found[attention.heads][1]) == pytest.approx(float(expected), rel=1e-5)
    expected = o[:, 6].square().sum() + own.value.weight[6].square().sum()
    assert float(found[attention.values][6]) == pytest.approx(float(expected), rel=1e-5)


def test_second_moments_leave_padding_out_however_batches_are_cut():
    model = tiny_model("bert", dtype=torch.float64)
    groups = SharedGroups(model, "all", 8)
    batch = tokens(3)
    found = measure_moments(model, groups, [batch], lambda: None)
    seen: list[torch.Tensor] = []
    layer = model.bert.encoder.layer[1].intermediate.dense
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model(**batch)
    hook.remove()
    expected = seen[0][batch["attention_mask"].bool()].square().mean(0)
    path = "bert.encoder.layer.1.intermediate.dense"
    assert torch.allclose(found[path].double(), expected, rtol=1e-5)


def test_the_least_important_go_first():
    model = wide_bert()
    layer = model.bert.encoder.layer[1]
    with torch.no_grad():  # feed-forward dimensions without any effect
        layer.output.dense.weight[:, 10:30] = 0.0
        layer.intermediate.dense.weight[10:30] = 0.0
        layer.intermediate.dense.bias[10:30] = 0.0
    for criterion in ("taylor", "fisher", "second_moment", "magnitude"):
        other = copy.deepcopy(model)
        fg.prune(other, batches("bert"), target=0.06, criterion=criterion, progress=False)
        found = closed(other)["bert.encoder.layer.1.output.dense"][1]
        assert set(range(10, 30)) <= set(found), criterion


def test_inner_dimensions_leave_plain_layers():
    model = wide_bert()
    dense = fg.macs(model, 1, 128).total
    gated = fg.prune(
        model, batches("bert"), target=0.5, dimensions="inner", criterion="fisher", progress=False
    )
    small = fg.compact(gated)
    assert fg.macs(small, 1, 128).total / dense == pytest.approx(0.5, abs=0.02)
    for module in small.modules():
        if isinstance(module, CompactLinear):
            assert 48 in (module.in_features, module.out_features)
    for path, (rows_closed, *_) in closed(gated).items():
        if path.endswith(("query", "key", "value")):
            assert not rows_closed


@pytest.mark.parametrize("criterion", ["fisher", "second_moment", "magnitude"])
@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_inner_dimensions_have_the_importance_that_they_have_among_all(architecture, criterion):
    model = tiny_model(architecture)
    found = {}
    for dimensions in ("all", "inner"):
        groups = SharedGroups(model, dimensions, 8)
        if criterion == "fisher":
            measured = measure_sensitivity(model, groups, batches(architecture), lambda: None)
            values = measured.square
        elif criterion == "magnitude":
            values = removed_squares(model, groups)
        else:
            moments = measure_moments(model, groups, [tokens(3)], lambda: None)
            values = removed_squares(model, groups, moments)
        named = {name: values[gate] for name, gate in groups.gates.items()}
        found[dimensions] = {n: v for n, v in named.items() if n.endswith(("heads", "hidden"))}
        assert dimensions == "all" or len(named) == len(found["inner"])
    assert found["all"].keys() == found["inner"].keys()
    for name, values in found["all"].items():
        assert torch.allclose(values, found["inner"][name], rtol=1e-5), name


def test_query_heads_of_a_group_go_together_where_groups_must_be_even():
    model = described_model("gemma2", "causal")
    fg.prune(
        model, target=0.3, dimensions="inner", criterion="magnitude", sequence_length=8,
        progress=False,
    )  # fmt: skip
    small = fg.compact(model)
    layers = [layer for layer in small.modules() if isinstance(layer, CompactLinear)]
    assert any(layer.weight.shape != layer.dense_shape for layer in layers)
    assert all(layer.rows is None and layer.cols is None for layer in layers)


def test_the_time_budget_is_of_the_plan():
    model = wide_bert()
    cost = CostModel(head_multiple=1)
    fg.prune(model, batches("bert"), target=0.3, cost=cost, sequence_length=16, progress=False)

    def seconds(gated: nn.Module) -> float:
        blocks = plan_compaction(gated, cost=cost).blocks
        return sum(b.seconds + 16 * cost.product * b.attention_macs[1] for b in blocks)

    whole = wide_bert()
    fg.prune(whole, target=0.0, criterion="random", progress=False)
    assert seconds(model) / seconds(whole) == pytest.approx(0.7, abs=0.011)


def test_low_rank_factors_are_pruned_with_their_layers():
    model = fg.add_lora(wide_bert(), 2, 4.0, 0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    fg.prune(model, batches("bert"), target=0.4, criterion="magnitude", progress=False)
    gated = output(model.eval(), tokens())
    assert torch.allclose(output(fg.compact(model), tokens()), gated, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_pruned(dtype):
    model = wide_bert(dtype=dtype)
    dense = fg.macs(model, 1, 128).total
    fg.prune(model, batches("bert"), target=0.4, progress=False)
    assert fg.macs(fg.compact(model), 1, 128).total / dense == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": 1.0}, r"target must be in \[0, 1\)"),
        ({"target": 0.9999}, "cannot be reached"),
        ({"target": 0.995, "dimensions": "inner"}, "dimensions='all'"),
        ({"criterion": "wisdom"}, "unknown criterion 'wisdom'"),
        ({"dimensions": "outer"}, "unknown dimensions 'outer'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"data": None}, "needs a calibration set"),
        ({"data": []}, "is empty"),
        ({"collator": list, "batch_size": 0}, "batch_size must be"),
    ],
)
def test_bad_input_is_refused_before_anything_changes(options, said):
    model = wide_bert()
    given = {"data": batches("bert"), "progress": False, **options}
    with pytest.raises(ValueError, match=said):
        fg.prune(model, **given)
    assert not gated_layers(model)


def test_rows_without_a_collator_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match="need a collator"):
        fg.prune(wide_bert(), [{"sentence": "a text"}], progress=False)


def test_a_model_with_gates_is_refused():
    model = fg.attach(wide_bert())
    with pytest.raises(ValueError, match="has gates already"):
        fg.prune(model, batches("bert"), progress=False)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("dimensions", ["all", "inner"])
@pytest.mark.filterwarnings("ignore:.*of the MACs are kept:UserWarning")
@pytest.mark.filterwarnings("ignore:no gate of:UserWarning")
def test_experts_count_although_they_are_not_pruned_at_once(name: str, dimensions: str) -> None:
    """The budget is that of the whole encoder, or it is out of reach and the experts are named."""
    model = described_model(name)
    dense = fg.macs(model, 1, 9).total
    options: dict[str, Any] = {
        "dimensions": dimensions,
        "sequence_length": 9,
        "criterion": "magnitude",
    }
    with pytest.raises(ValueError, match=r"target 0\.9 cannot be reached") as refusal:
        fg.prune(model, target=0.9, **options)
    assert "experts" in str(refusal.value)
    fg.prune(model, target=0.05, **options)
    kept = fg.macs(fg.compact(model), 1, 9).total / dense
    assert kept == pytest.approx(0.95, abs=0.06)  # a head of a tiny model is that much
