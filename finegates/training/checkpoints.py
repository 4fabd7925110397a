"""Checkpoints of a training with gates, which hold the whole gated model.

For a model with adapters, ``transformers.Trainer`` saves and restores only the adapters. For a
model with gates, ``from_pretrained`` would fill the renamed weights of its checkpoint with random
numbers. Here a checkpoint, a saved model and the best model have one format
(:mod:`finegates.formats.gated`), which :func:`finegates.load` reads without the original weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from finegates.formats.compact import save_checkpoint
from finegates.formats.description import TENSORS
from finegates.formats.gated import (
    is_gated_folder,
    is_stock_folder,
    put_checkpoint,
    write_checkpoint,
)
from finegates.gates.gated_linear import gated_layers
from finegates.modules.stock_checkpoints import stock_obstacle
from finegates.training.gate_history import GateHistory


class GatedCheckpoints:
    """Mixin that writes and reads a trainer's checkpoints.

    It precedes ``transformers.Trainer`` among the base classes.

    Attributes:
        history: of the gates; part of each checkpoint.
        resumed: the checkpoint that the current training continues from, or None.
    """

    history: GateHistory
    resumed: Path | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Overrides ``transformers.Trainer``; remembers the checkpoint to resume from."""
        self.resumed = None
        return super().train(*args, **kwargs)  # type: ignore[misc]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Saves the model.

        A gated model is saved whole, a compact one as finegates.save does, any other as Trainer
        does.
        """
        model = self._plain_model()
        gated = bool(gated_layers(model))
        compact = not gated and bool(stock_obstacle(model)) and isinstance(model, PreTrainedModel)
        if not gated and not compact:
            super()._save(output_dir, state_dict)  # type: ignore[misc]
            return
        arguments: TrainingArguments = self.args  # type: ignore[attr-defined]
        if not arguments.should_save:
            return
        folder = Path(output_dir or arguments.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        if gated:
            self.history.save(folder)
            write_checkpoint(model, folder, state_dict)
        else:
            save_checkpoint(model, folder)
        collator = self.data_collator  # type: ignore[attr-defined]
        processor = self.processing_class or getattr(collator, "tokenizer", None)  # type: ignore[attr-defined]
        if processor is not None:
            processor.save_pretrained(folder)
        torch.save(arguments, folder / TRAINING_ARGS_NAME)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Overrides Trainer; a gated model is read whole, or refused unchanged."""
        self.resumed = Path(resume_from_checkpoint)
        if not self._put(self.resumed):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        """Overrides Trainer; a gated model is read whole, adapters and head included."""
        best = self.state.best_model_checkpoint  # type: ignore[attr-defined]
        if not self._put(Path(best)):
            super()._load_best_model()  # type: ignore[misc]

    def _put(self, folder: Path) -> bool:
        """Loads a gated checkpoint into the model; returns whether it was one.

        Raises:
            ValueError: the checkpoint does not match the model, or is incomplete.
        """
        model = self._plain_model()
        if is_gated_folder(folder):
            put_checkpoint(model, folder)
            return True
        if gated_layers(model) and folder.is_dir() and not is_stock_folder(folder):
            raise ValueError(
                f"{folder} has no gates: it contains neither a finegates.json nor a {TENSORS} of a "
                "gated model, because it is incomplete or holds adapters only; resume from "
                "another checkpoint"
            )
        return False

    def _plain_model(self) -> nn.Module:
        """The model without the wrappers of torch.compile and accelerate."""
        model: nn.Module = self.accelerator.unwrap_model(  # type: ignore[attr-defined]
            self.model,  # type: ignore[attr-defined]
            keep_torch_compile=False,
        )
        return model
