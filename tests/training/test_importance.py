"""Importance: from executed steps only, in one unit, and available before any gate closes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.penalty import sparsity_penalty
from finegates.gates.stochastic import StochasticGate
from finegates.training.importance import StepImportance
from finegates.training.trainer import GateTrainer
from support.tiny import ARCHITECTURES, VOCABULARY, tiny_model

BATCH = 4
START = 22  # exponent of the initial scale, large enough to overflow in the first steps


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (count, 6), generator=generator)
    ids[:, -1] = 1  # an end-of-sequence token, which T5 looks for
    return [{"input_ids": row, "labels": row[0] % 2} for row in ids]


class InOrder(GateTrainer):
    """Reads its rows in order, with an optional gradient scaler."""

    def __init__(self, *args: Any, scale: float | None = None, half: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # losses are means over a micro-batch
        if scale is not None:
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            self.accelerator.native_amp = half
            # accelerate sets this for fp16 on a GPU, but not on a CPU.
            self.accelerator.state._mixed_precision = "fp16" if half else "no"

    def get_train_dataloader(self) -> DataLoader:
        loader = DataLoader(
            self.train_dataset, batch_size=BATCH, shuffle=False, collate_fn=self.data_collator
        )
        return self.accelerator.prepare(loader)


class Skipped(TrainerCallback):
    """Records the steps that the optimizer skips."""

    def __init__(self, scale: float | None) -> None:
        self.steps: list[int] = []
        self.scale = scale or 1.0

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        scale = kwargs["optimizer"].scaler.get_scale() if kwargs["optimizer"].scaler else 1.0
        if scale < self.scale:
            self.steps.append(state.global_step)
        self.scale = scale


@pytest.fixture(autouse=True)
def _single_precision_afterwards() -> Iterator[None]:
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)


def plain_model(architecture: str) -> torch.nn.Module:
    """A model in float32 without dropout."""
    torch.manual_seed(0)
    without = {"dropout_rate": 0.0} if architecture.startswith("t5") else {}
    model = tiny_model(architecture, dtype=torch.float32, **without)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def trained(
    tmp_path: Path,
    data: list[dict[str, torch.Tensor]],
    architecture: str = "roberta",
    arguments: dict[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, list[int], InOrder]:
    """Importances after a training, skipped steps, and the trainer.

    The final choice would follow the last step. Nothing is random in it.
    """
    model = plain_model(architecture)
    config = GateConfig(
        preset="structured", target=0.2, noise_std=0.0, sequence_length=6,
        schedule=(1.0, 1.0, 1.0, 1.0),
    )  # fmt: skip
    attach(model, config)
    settings = {
        "output_dir": str(tmp_path), "num_train_epochs": 1, "learning_rate": 1e-3,
        "lr_scheduler_type": "constant", "use_cpu": True, "save_strategy": "no",
        "logging_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "per_device_train_batch_size": BATCH, **(arguments or {}),
    }  # fmt: skip
    watch = Skipped(kwargs.get("scale"))
    run = InOrder(
        model=model,
        args=TrainingArguments(**settings),
        train_dataset=data,
        callbacks=[watch],
        **kwargs,
    )
    run.train()
    return torch.cat([gate.importance for gate in run.penalty.gates()]), watch.steps, run


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd"])
def test_importance_after_overflowed_steps_is_that_of_the_training_without_them(tmp_path, optim):
    data, with_it = rows(7 * BATCH), {"optim": optim}
    found, skipped, _ = trained(tmp_path, data, arguments=with_it, scale=2.0**START, half=True)
    assert skipped == list(range(len(skipped)))
    assert 0 < len(skipped) < 6
    left = data[len(skipped) * BATCH :]
    scale = 2.0 ** (START - len(skipped))
    expected, none, _ = trained(tmp_path, left, arguments=with_it, scale=scale, half=True)
    assert none == []
    assert torch.equal(found, expected)
    assert expected.any()


def test_a_step_whose_gates_are_finite_does_not_count_either_if_it_is_skipped(tmp_path):
    class Spoilt(InOrder):
        """The head's gradient overflows in the second step only."""

        def training_step(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(model, *args, **kwargs)
            if self.state.global_step == 1:
                next(model.classifier.parameters()).grad.fill_(torch.inf)
            return loss

    data = rows(2 * BATCH)
    model = tiny_model("roberta", dtype=torch.float32)
    attach(model, GateConfig(preset="structured", schedule=(1.0, 1.0, 1.0, 1.0), target=0.0))
    settings = {
        "output_dir": str(tmp_path), "num_train_epochs": 1, "use_cpu": True,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    watch, seen = Skipped(1.0), []

    class Look(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append(torch.cat([gate.importance for gate in run.penalty.gates()]))

    run = Spoilt(
        model=model, args=TrainingArguments(**settings), train_dataset=data, scale=1.0,
        callbacks=[watch, Look()],
    )  # fmt: skip
    run.train()
    assert watch.steps == [1]
    assert torch.equal(seen[0], seen[1])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("clip", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("scale", [None, 2.0**10])
def test_neither_the_scale_of_the_loss_nor_clipping_changes_the_unit(tmp_path, scale, clip):
    """One step, so that only the unit of its gradients can differ."""
    data = rows(BATCH)
    expected, _, _ = trained(tmp_path, data, arguments={"max_grad_norm": 0.0})
    found, _, _ = trained(tmp_path, data, scale=scale, arguments={"max_grad_norm": clip})
    assert torch.equal(found, expected)


def test_importance_of_accumulated_gradients_is_that_of_the_whole_batch(tmp_path):
    data = rows(BATCH)
    whole, _, run = trained(tmp_path, data, arguments={"max_grad_norm": 0.0})
    gates = list(run.penalty.gates())
    # Two micro-batches with the same rows give the gradient of one of them.
    twice, _, other = trained(
        tmp_path, data + data, arguments={"gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
    )
    assert run.state.global_step == other.state.global_step == 1
    assert len(gates) > 0
    assert torch.allclose(twice, whole, rtol=1e-5, atol=0)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_importance_is_the_squared_gradient_of_the_factors(tmp_path, architecture):
    """After one step from zero: 1/100 of the squared gradient, from a separate backward pass."""
    data = rows(BATCH)
    found, _, run = trained(tmp_path, data, architecture)
    model = plain_model(architecture)
    attach(model, GateConfig(preset="structured", noise_std=0.0, sequence_length=6))
    model.train()(**run.data_collator(data)).loss.backward()
    gates = [gate for part in model.finegates_structure for gate in part.gates()]
    expected = torch.cat([0.01 * gate.scale.grad.square() for gate in gates])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-12)
    assert (found > 0).any()


class SteppedInside(InOrder):
    """Like DeepSpeed and LOMO: gradients are gone when the backward pass ends."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        schedule, self._schedule = self._schedule, None
        loss = super().training_step(model, *args, **kwargs)
        model.zero_grad()
        self._schedule = schedule
        schedule.on_gradients(None)
        return loss


def test_gradients_that_are_gone_before_the_step_stop_the_training_with_the_reason(tmp_path):
    model = attach(tiny_model("bert", dtype=torch.float32), GateConfig(preset="structured"))
    settings = {
        "output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    run = SteppedInside(model=model, args=TrainingArguments(**settings), train_dataset=rows(BATCH))
    with pytest.raises(
        RuntimeError, match=r"gates are missing .*DeepSpeed, LOMO .*DistributedData"
    ):
        run.train()
    assert run.state.global_step == 0


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    """A process group that contains only this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("cut", ["by DTensor", "by FSDP's flat parameters", "not"])
def test_gradients_that_are_cut_into_shards_stop_the_training_with_the_reason(cut, alone):
    gates = [StochasticGate(4, "structured"), StochasticGate(6, "structured")]
    for gate in gates:
        whole = gate.scale.detach()
        if cut == "by DTensor":
            gate.scale = nn.Parameter(distribute_tensor(whole, alone, [Shard(0)]))
        elif cut != "not":
            gate.scale = nn.Parameter(whole[:3])
        (gate.scale * gate.scale).sum().backward()
    step = StepImportance(gates)
    if cut == "not":
        step.read()
        step.count()
        assert all(bool((gate.importance > 0).all()) for gate in gates)
        return
    with pytest.raises(RuntimeError, match=r"all 2 shared gates are sharded .*FSDP keeps"):
        step.read()
    step.count()
    assert not any(bool(gate.importance.any()) for gate in gates)


def penalty_of(architecture: str, target: float = 0.3) -> MacsPenalty:
    config = GateConfig(preset="structured", target=target, sequence_length=6)
    penalty = sparsity_penalty(attach(tiny_model(architecture), config))
    assert isinstance(penalty, MacsPenalty)
    return penalty


def latents(penalty: MacsPenalty) -> list[torch.Tensor]:
    return [gate.latent.detach().clone() for gate in penalty.gates()]


@pytest.mark.parametrize("architecture", ["bert", "t5-gated", "llama"])
def test_closing_without_importance_stops_with_the_reason_and_the_remedy(architecture):
    penalty = penalty_of(architecture)
    before = latents(penalty)
    with pytest.raises(ValueError, match=r"every gate is zero.*GateTrainer.*observe"):
        penalty.close_least()
    assert all(torch.equal(a, b) for a, b in zip(latents(penalty), before, strict=True))


@pytest.mark.parametrize("number", [torch.inf, torch.nan])
def test_closing_by_an_importance_that_is_not_finite_names_the_place(number):
    penalty = penalty_of("bert")
    gates = list(penalty.gates())
    for gate in gates:
        gate.importance.fill_(1.0)
    gates[-1].importance[0] = number
    before = latents(penalty)
    with pytest.raises(
        ValueError, match=r"bert\.encoder\.layer\.1\.intermediate\.dense is not fin"
    ):
        penalty.close_least()
    assert all(torch.equal(a, b) for a, b in zip(latents(penalty), before, strict=True))


def test_where_nothing_is_to_be_closed_nothing_need_be_known():
    assert penalty_of("bert", target=0.0).close_least() == 1.0


def test_a_gradient_that_is_not_finite_leaves_the_importance_as_it_was():
    gate = StochasticGate(3, "structured")
    gate.scale.grad = torch.tensor([1.0, 2.0, 3.0])
    gate.observe()
    before = gate.importance.clone()
    for number in (torch.inf, torch.nan, 1e30):  # the square of the last one is infinite
        gate.scale.grad = torch.tensor([1.0, number, 3.0])
        gate.observe()
    assert torch.equal(gate.importance, before)
    assert before.any()
