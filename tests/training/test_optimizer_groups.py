"""The optimizer is Trainer's; gates and learning rates only split its parameter groups."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.stochastic import StochasticGate
from finegates.lora import add_lora
from finegates.training.optimizer_groups import parameter_groups
from finegates.training.trainer import GateTrainer
from support.tiny import ARCHITECTURES, tiny_model
from support.training_rows import collate, rows_for

MOMENTUM = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})


def made(cls, model, tmp_path, optimizers=(None, None), given=None, extra=None, **arguments):
    settings = {
        "output_dir": str(tmp_path),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        **arguments,
    }
    return cls(
        model=model,
        args=TrainingArguments(**settings),
        train_dataset=rows_for("two classes", 24),
        data_collator=collate,
        optimizers=optimizers,
        optimizer_cls_and_kwargs=given,
        **(extra or {}),
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "arguments",
    [
        {"weight_decay": 0.0},
        {"weight_decay": 0.3},
        {"optim": "sgd", "weight_decay": 0.3, "optim_args": "momentum=0.9"},
        {"optim": "adafactor", "weight_decay": 0.3},
        {"weight_decay": 0.3, "gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1},
        {"given": MOMENTUM, "weight_decay": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ["bert", "deberta-v2"])
def test_without_gates_the_weights_are_those_of_trainer_bit_for_bit(
    architecture, arguments, tmp_path
):
    weights = []
    for cls in (Trainer, GateTrainer):
        model = tiny_model(architecture, dtype=torch.float32)
        made(cls, model, tmp_path, **arguments).train()
        weights.append(dict(model.named_parameters()))
    start = dict(tiny_model(architecture, dtype=torch.float32).named_parameters())
    assert any(not torch.equal(start[name], value) for name, value in weights[0].items())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("preset", ["paper_v1", "structured"])
def test_what_decays_is_what_decays_with_trainer_less_the_gates(architecture, preset, tmp_path):
    model = attach(
        tiny_model(architecture, dtype=torch.float32),
        GateConfig(preset=preset, train_weights=True),
    )
    trainer = made(GateTrainer, model, tmp_path, weight_decay=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    gates = {
        names[id(p)]
        for module in model.modules()
        if isinstance(module, StochasticGate)
        for p in module.parameters()
    }
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    theirs = {*trainer.get_decay_parameter_names(model)} & trained
    assert decayed == theirs - gates
    assert decayed
    every = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(every) == sorted(trained), "each once"


def test_rates_hold_in_the_optimizer_that_was_asked_for(tmp_path):
    model = attach(
        add_lora(tiny_model("bert", dtype=torch.float32)), GateConfig(preset="reference")
    )
    rates = {"gates": 5e-2, "low_rank": 2e-3}
    trainer = made(GateTrainer, model, tmp_path, given=MOMENTUM, extra={"learning_rates": rates})
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.SGD
    found = {group["kind"]: group["lr"] for group in optimizer.param_groups}
    assert found == {"gates": 5e-2, "low_rank": 2e-3, "biases": 0.1, "head": 0.1}
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    kinds = parameter_groups(model)
    for group in optimizer.param_groups:
        assert {id(p) for p in group["params"]} <= {id(p) for p in kinds[group["kind"]].values()}


def test_rates_next_to_a_given_optimizer_are_refused(tmp_path):
    model = tiny_model("bert", dtype=torch.float32)
    given = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"learning_rates of \['head'\] next to a given optimizer"):
        made(
            GateTrainer,
            model,
            tmp_path,
            optimizers=(given, None),
            extra={"learning_rates": {"head": 0.2}},
        )
    trainer = made(GateTrainer, model, tmp_path, optimizers=(given, None))
    assert trainer.create_optimizer() is given
    assert len(given.param_groups) == 1


class _Hidden(torch.optim.SGD):
    """Hides its parameters, as layer-wise optimizers do."""

    def __init__(self, params, **kwargs):
        super().__init__([torch.zeros(1)], **kwargs)


def test_an_optimizer_that_cannot_have_the_rates_is_refused(tmp_path):
    model = tiny_model("bert", dtype=torch.float32)
    trainer = made(
        GateTrainer,
        model,
        tmp_path,
        given=(_Hidden, {"lr": 0.1}),
        extra={"learning_rates": {"head": 0.2}},
    )
    with pytest.raises(ValueError, match=r"_Hidden .* learning_rates of \['head'\] would not"):
        trainer.create_optimizer()


def test_latents_that_rest_keep_their_place_in_the_optimizer(tmp_path):
    def places(hardness):
        model = attach(tiny_model("bert", dtype=torch.float32), GateConfig(preset="structured"))
        for module in model.modules():
            if isinstance(module, StochasticGate) and hardness:
                module.harden(hardness)
        names = {id(p): name for name, p in model.named_parameters()}
        optimizer = made(GateTrainer, model, tmp_path).create_optimizer()
        resting = [n for n, p in model.named_parameters() if "latent" in n and not p.requires_grad]
        assert bool(resting) == bool(hardness)
        return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]

    assert places(0.5) == places(0.0)
