"""Training with removal equals training without it, up to rounding, for the same random draws."""

from __future__ import annotations

import copy
import dataclasses
import json

import peft
import pytest
import torch

import finegates as fg
from finegates.adapters import adapter_for
from finegates.budget import planned_macs
from finegates.compaction import regating
from finegates.compaction.widening import widened
from finegates.gates.dense_form import dense_form
from finegates.gates.detachment import hold_gates
from finegates.gates.gated_linear import leaf_gates
from finegates.modules.compact_linear import CompactLinear
from support.paths import ROOT
from support.processes import run_two
from support.shrinking import CONFIG, Rounding, differences, fresh, kept, rows, saved_compact, train
from support.tiny import ARCHITECTURES, output, tokens
from support.tolerance import gamma


def rounding_bound(model, folder, reference, **arguments):
    """The effect on a training of one rounding error for each number and step.

    Two trainings that round every product differently diverge like two whose numbers are perturbed
    by such rounding errors. Four times the largest of three perturbations covers other directions.
    """
    moved = [
        differences(reference, train(model(), folder, Rounding(seed), **arguments))
        for seed in range(3)
    ]
    return {name: 4 * max(each[name] for each in moved) for name in moved[0]}


def assert_law(make, folder, **arguments):
    """Asserts the law for one model and returns both trainings."""
    dense = train(make(kept(CONFIG)), folder, **arguments)
    small = train(make(CONFIG), folder, **arguments)
    bound = rounding_bound(lambda: make(kept(CONFIG)), folder, dense, **arguments)
    found = differences(dense, small)
    assert all(found[name] <= bound[name] for name in bound), (found, bound)
    return dense, small


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_training_with_removal_is_training_without_it(architecture, tmp_path):
    dense, small = assert_law(lambda config: fresh(architecture, config), tmp_path)
    sizes = [sum(p.numel() for p in model.parameters()) for model, _, _ in (dense, small)]
    assert sizes[1] < 0.8 * sizes[0]
    assert any(isinstance(module, CompactLinear) for module in small[0].modules())
    # Reported values include removed dimensions.
    for one, other in zip(dense[1].history.entries, small[1].history.entries, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"bert", "llama"}))
def test_training_with_removal_is_training_without_it_for_every_architecture(
    architecture, tmp_path
):
    assert_law(lambda config: fresh(architecture, config), tmp_path)


@pytest.mark.thorough
def test_all_weights_are_trained_and_shrunk_along(tmp_path):
    assert_law(
        lambda config: fresh("bert", dataclasses.replace(config, train_weights=True)), tmp_path
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_layers_without_gates_shrink_with_their_neighbours(architecture, tmp_path):
    config = dataclasses.replace(CONFIG, dimensions="inner", train_weights=True)

    def make(given):
        return fresh(
            architecture,
            dataclasses.replace(config, shrink=given.shrink, final_at=given.final_at),
        )

    _, (model, _, _) = assert_law(make, tmp_path)
    layers = [m for m in model.modules() if isinstance(m, CompactLinear)]
    assert layers
    assert all(layer.cols is None and layer.rows is None for layer in layers)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("architecture", "target"), [("bert", 0.2), ("llama", 0.5)])
def test_equal_sizes_stay_equal_while_the_model_shrinks(architecture, target, tmp_path):
    config = dataclasses.replace(CONFIG, uniform=True, target=target, train_weights=True)

    def make(given):
        return fresh(
            architecture,
            dataclasses.replace(config, shrink=given.shrink, final_at=given.final_at),
        )

    (dense, _, _), (model, _, _) = assert_law(make, tmp_path)
    sizes = [sum(p.numel() for p in each.parameters()) for each in (dense, model)]
    assert sizes[1] < sizes[0]
    small = fg.compact(model)
    cost = fg.uniform_cost(small)
    assert cost.uniform == cost.compact < cost.dense
    assert cost == fg.uniform_cost(fg.compact(dense))


def test_the_compact_model_is_that_of_the_gated_one(tmp_path):
    model, _, _ = train(fresh("bert", CONFIG), tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = tokens()
    small = fg.compact(model, verify=inputs, verify_dtype=torch.float64)
    bound = 1e-12
    assert (output(small, inputs) - output(model.eval(), inputs)).abs().max() <= bound
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert fg.macs(small, 1, 6).total == pytest.approx(0.5 * fg.macs(model, 1, 6).total, rel=0.02)


def test_what_is_closed_for_good_stays_closed(tmp_path):
    model, _, _ = train(fresh("bert", kept(CONFIG)), tmp_path, max_steps=12)
    gates = [gate for gate in leaf_gates(model)]
    final = [gate.final() for gate in gates]
    assert any(bool(mask.any()) for mask in final)
    for gate, mask in zip(gates, final, strict=True):
        assert not gate.train().sample()[mask].any()
        assert not gate.open_probability()[mask].any()


def test_draws_of_the_kept_do_not_depend_on_removal(tmp_path):
    model, _, _ = train(fresh("bert", CONFIG), tmp_path)
    assert dense_form(model) is not None
    for gate in leaf_gates(model):
        torch.manual_seed(3)
        whole = torch.randn(gate.dense_size, dtype=gate.latent.dtype)
        torch.manual_seed(3)
        drawn = gate.noise()
        places = range(gate.size) if gate.positions is None else gate.positions
        assert torch.equal(drawn, whole[places])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("adapters", ["add_lora", "peft"])
def test_low_rank_factors_shrink_along(adapters, tmp_path):
    def prepared(model):
        if adapters == "add_lora":
            return fg.add_lora(model, rank=2)
        names = list(adapter_for(model).gated(model))
        config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=names, task_type="SEQ_CLS")
        return peft.get_peft_model(model, config)

    def make(config):
        return fresh("llama" if adapters == "peft" else "bert", config, prepared)

    _, (model, _, _) = assert_law(make, tmp_path)
    factors = [p for name, p in model.named_parameters() if "lora_A" in name]
    assert any(p.shape[1] < 12 for p in factors)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "arguments",
    [
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        },
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ],
    ids=["accumulation", "checkpointing", "reentrant"],
)
def test_the_law_holds_however_a_step_is_computed(arguments, tmp_path):
    assert_law(
        lambda config: fresh("bert", dataclasses.replace(config, train_weights=True)),
        tmp_path,
        **arguments,
    )


def gradients(model, autocast):
    """Loss and gradients of one step, by the dense parameter's name."""
    model.train()
    torch.manual_seed(5)
    batch = rows()[:8]
    inputs = {"input_ids": torch.stack([row["input_ids"] for row in batch])}
    inputs["labels"] = torch.tensor([row["labels"] for row in batch])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**inputs).loss
    loss.backward()
    form, found = dense_form(model), {"loss": loss.detach()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name.replace(".linear.", ".")] = parameter.grad
    return found, form


def test_half_precision_rounds_a_step_alike(tmp_path):
    # Steps in bfloat16 differ so much that the choices of gates to close would diverge. So one step
    # is compared with the same step of the dense-sized model.
    config = dataclasses.replace(CONFIG, train_weights=True)
    small, _, _ = train(fresh("bert", config, dtype=torch.float32), tmp_path)
    form = dense_form(small)
    dense = widened(small)
    reference, _ = gradients(copy.deepcopy(dense), autocast=True)
    found, _ = gradients(small, autocast=True)
    generator = torch.Generator().manual_seed(0)
    bound = {}
    for _ in range(3):
        moved = copy.deepcopy(dense)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                if not name.endswith("latent"):
                    signs = 2.0 * (torch.rand(parameter.shape, generator=generator) < 0.5) - 1
                    # Each number and each result of a product has eight bits.
                    parameter.mul_(1 + gamma(4, torch.bfloat16) * signs)
        for name, value in gradients(moved, autocast=True)[0].items():
            change = float((value - reference[name]).abs().max())
            bound[name] = max(bound.get(name, 0.0), change)
    largest = max(bound.values())
    for path, (rows_kept, cols_kept) in form.layers.items():
        name = f"{path}.base.weight"
        whole = reference[name][rows_kept][:, cols_kept]
        assert whole.shape == found[name].shape
        if whole.numel():
            assert (whole - found[name]).abs().max() <= 4 * max(bound[name], 0.01 * largest), name
    assert abs(float(found["loss"] - reference["loss"])) <= 4 * bound["loss"] + 0.01


def test_full_budget_of_a_shrunk_model_is_that_of_the_dense_one(tmp_path):
    dense = fresh("bert", kept(CONFIG))
    model, _, _ = train(fresh("bert", CONFIG), tmp_path)
    assert fg.macs(model, 2, 6) == fg.macs(dense, 2, 6)
    small = fg.compact(model)
    assert planned_macs(model, 2, 6) == fg.macs(small, 2, 6)
    assert fg.measure_budget(model).all_parameters == fg.measure_budget(dense).all_parameters
    for asked in (fg.detach, hold_gates):
        with pytest.raises(ValueError, match="finegates.compact"):
            asked(model)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_two_processes_shrink_alike(architecture, tmp_path):
    run_two(ROOT / "tests/support/two_shrinking.py", tmp_path, architecture)
    for rank in range(2):
        seen = json.loads((tmp_path / f"found{rank}.json").read_text())
        assert all(seen["found"][n] <= 8 * seen["bound"][n] for n in seen["bound"]), seen
        assert seen["sizes"][1] < 0.8 * seen["sizes"][0]
    one, other = (torch.load(tmp_path / f"small{rank}.pt") for rank in range(2))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dimensions", ["all", "inner", "width"])
def test_a_compact_model_trains_as_in_its_dense_sizes(dimensions, tmp_path, monkeypatch):
    folder, removing = saved_compact(tmp_path), regating.remove_closed

    def make(given):
        # The reference keeps the rows and columns of zeros.
        keep = removing if given.shrink else lambda model: False
        monkeypatch.setattr(regating, "remove_closed", keep)
        small = fg.load(folder)
        config = dataclasses.replace(given, target=0.2, train_weights=True)
        if dimensions == "width":  # nothing more is removed while training
            finals = given.finals()
            config = dataclasses.replace(config, shrink=False, final_at=finals, width=True)
        else:
            config = dataclasses.replace(config, dimensions=dimensions)
        return fg.attach(small, config).to(torch.float64)

    dense, small = assert_law(make, tmp_path)
    assert dense_form(dense[0]) is None
    sizes = [sum(p.numel() for p in model.parameters()) for model, _, _ in (dense, small)]
    assert sizes[1] < 0.8 * sizes[0]
