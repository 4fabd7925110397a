"""A gate that does nothing is refused: its layer is never called, and its MACs are never spent."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

import finegates as fg
from support.tiny import VOCABULARY, tiny_model


def rows(count: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (count, 6), generator=generator)
    return [{"input_ids": row, "labels": row[0] % 2} for row in ids]


def without_last_block(model: PreTrainedModel) -> PreTrainedModel:
    """Its forward passes through the first block alone; the second remains as a module."""
    model.config.num_hidden_layers = 1
    return model


class SpareLayer(nn.Module):
    """A layer that no branch of the forward calls."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.used(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trained(model: nn.Module, folder: Path, data: list[Any], **options: Any) -> fg.GateTrainer:
    arguments = TrainingArguments(
        str(folder), num_train_epochs=2, per_device_train_batch_size=4, report_to=[],
        save_strategy="steps", save_steps=1, disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = fg.GateTrainer(model=model, args=arguments, train_dataset=data, **options)
    trainer.train(resume_from_checkpoint=options.pop("resumed", None))
    return trainer


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("preset", ["structured", "reference"])
def test_training_refuses_gates_in_a_block_that_is_never_called(
    preset: str, tmp_path: Path
) -> None:
    model = without_last_block(tiny_model("llama"))
    fg.attach(model, fg.GateConfig(preset=preset, target=0.2, sequence_length=6))
    before = hooks(model)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj and 6 more layers: never"):
        trained(model, tmp_path, rows())
    assert hooks(model) == before


def test_training_refuses_a_layer_named_by_hand_that_is_never_called(tmp_path: Path) -> None:
    model = SpareLayer()
    fg.attach(model, fg.GateConfig(preset="reference", modules=["used", "spare"], target=0.2))
    data = [{"x": torch.ones(6), "labels": torch.tensor(1)} for _ in range(8)]
    with pytest.raises(ValueError, match="spare: never called in an epoch of the training"):
        trained(model, tmp_path, data)


def test_a_layer_called_once_in_an_epoch_is_accepted_and_no_hook_remains(tmp_path: Path) -> None:
    model = tiny_model("llama")
    fg.attach(model, fg.GateConfig(target=0.2, sequence_length=6))

    class SkipsFirst(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model.config.num_hidden_layers = 1 if state.global_step == 0 else 2

    before = hooks(model)
    trainer = trained(model, tmp_path, rows(), callbacks=[SkipsFirst()])
    assert trainer.state.global_step == 4
    assert hooks(model) == before


@pytest.mark.parametrize("criterion", ["taylor", "second_moment"])
def test_one_shot_pruning_refuses_a_block_that_the_calibration_never_calls(criterion: str) -> None:
    model = without_last_block(tiny_model("llama")).eval()
    before = copy.deepcopy(model.state_dict())
    batch = {key: torch.stack([row[key] for row in rows()]) for key in rows()[0]}
    with pytest.raises(ValueError, match=r"layers\.1\..* never called in the calibration set"):
        fg.prune(model, [batch], target=0.2, criterion=criterion, progress=False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert hooks(model) == 0
