"""Two trainings with equal random draws, with and without removal of closed dimensions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

import finegates as fg
from finegates.adapters import unwrap
from finegates.gates.dense_form import dense_form
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.kinds import between_gates
from finegates.modules.slices import cut, parameters_by_side
from finegates.training.trainer import GateTrainer
from support.tiny import ARCHITECTURES, VOCABULARY, tiny_model
from support.tolerance import gamma

STEPS = 20
CONFIG = fg.GateConfig(target=0.5, sequence_length=6, shrink=True)
Training = tuple[nn.Module, GateTrainer, list[float]]


def rows(count: int = 64) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (count, 6), generator=generator)
    ids[:, -1] = 1  # an end-of-sequence token, which T5 looks for
    return [{"input_ids": row, "labels": int(row[0]) % 2} for row in ids]


def without_dropout(architecture: str) -> dict[str, float]:
    """Dropout options set to zero, because the masks depend on the number of heads."""
    names = vars(ARCHITECTURES[architecture]())
    return {name: 0.0 for name in names if "dropout" in name or "pdrop" in name}


def fresh(
    architecture: str,
    config: fg.GateConfig,
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model,
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    torch.manual_seed(0)
    model = prepare(tiny_model(architecture, dtype=dtype, **without_dropout(architecture)))
    # Gates are float32 by default, and their gradients would be rounded more coarsely.
    return fg.attach(model, config).to(dtype)


def kept(config: fg.GateConfig) -> fg.GateConfig:
    """The same training configuration without removal."""
    return dataclasses.replace(config, shrink=False, final_at=config.finals())


def train(
    model: nn.Module,
    folder: Path,
    callback: TrainerCallback | None = None,
    resume: Path | None = None,
    **arguments: Any,
) -> Training:
    """Trains a model; returns it with its trainer and the loss of every micro-batch."""
    losses: list[float] = []

    class Recorder(GateTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    options: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
        **arguments,
    }
    trainer = Recorder(
        model=model,
        args=TrainingArguments(str(folder), **options),
        train_dataset=rows(),
        learning_rates={"gates": 5e-2},
        callbacks=[] if callback is None else [callback],
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return model, trainer, losses


def saved_compact(folder: Path) -> Path:
    """The folder of a compact model that a first training made."""
    model, _, _ = train(fresh("bert", dataclasses.replace(CONFIG, target=0.3)), folder / "first")
    fg.save(fg.compact(model), folder / "small")
    return folder / "small"


class Rounding(TrainerCallback):
    """Perturbs every trained number by the rounding error of one matmul, after every step."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._size = gamma(64, dtype)  # more than the inputs of any layer of the tiny models

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for parameter in kwargs["model"].parameters():
            if parameter.requires_grad and parameter.dtype == torch.float64:
                signs = torch.rand(parameter.shape, generator=self._generator) < 0.5
                parameter.mul_(1 + self._size * (2 * signs.to(parameter.dtype) - 1))


def differences(one: Training, other: Training) -> dict[str, float]:
    """Largest differences of two trainings, for losses, compact weights and optimizer moments."""
    models = [fg.compact(model).state_dict() for model, _, _ in (one, other)]
    assert models[0].keys() == models[1].keys()
    assert all(models[0][n].shape == models[1][n].shape for n in models[0])
    return {
        "loss": max(abs(a - b) for a, b in zip(one[2], other[2], strict=True)),
        "weight": max(
            float((models[0][n] - models[1][n]).abs().max())
            for n in models[0]
            if models[0][n].is_floating_point() and models[0][n].numel()
        ),
        "moment": max(float((a - b).abs().max()) for a, b in moments(one, other) if a.numel()),
    }


def moments(dense: Training, small: Training) -> list[tuple[Tensor, Tensor]]:
    """The optimizers' states for the same entries of the same parameters."""
    cuts: dict[int, Any] = {}
    inner = unwrap(small[0])
    form = dense_form(inner)
    assert form is None or dense_form(unwrap(dense[0])) is None
    for path, sides in form.layers.items() if form is not None else ():
        layer = inner.get_submodule(path)
        assert isinstance(layer, CompactLinear)
        for parameter, *axes in parameters_by_side(between_gates(layer.linear)):
            pairs = zip(axes, sides, strict=True)
            cuts[id(parameter)] = tuple((a, i) for a, i in pairs if a is not None)
    for gate, _ in form.gates.values() if form is not None else ():
        if gate.positions is not None:
            cuts |= {id(parameter): ((0, gate.positions),) for parameter in gate.parameters()}
    found = []
    optimizers: list[Any] = [training[1].optimizer for training in (dense, small)]
    for one, other in zip(*(each.param_groups for each in optimizers), strict=True):
        for a, b in zip(one["params"], other["params"], strict=True):
            states = [each.state.get(p, {}) for each, p in zip(optimizers, (a, b), strict=True)]
            assert states[0].keys() == states[1].keys()
            for name, value in states[0].items():
                whole = value if value.ndim == 0 else cut(value, cuts.get(id(b), ()))
                found.append((whole.double(), states[1][name].double()))
    return found
