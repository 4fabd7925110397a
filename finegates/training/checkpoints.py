"""What a training with gates keeps, and takes up again: all of the gated model, whatever is in it.

``transformers.Trainer`` writes of a model with adapters the adapters alone, and reads them back so;
and what it writes of one with gates, ``from_pretrained`` would fill with random numbers. Here a
checkpoint, a saved model and the best model are of one form (:mod:`finegates.formats.gated`), which
:func:`finegates.load` reads without the original weights.
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
    """The part of a trainer that writes and reads checkpoints; for ``transformers.Trainer`` to the
    right of it among the bases.

    Attributes:
        history: of the gates; it is part of a checkpoint.
        resumed: the checkpoint that the present training continues from; None if none.
    """

    history: GateHistory
    resumed: Path | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As of ``transformers.Trainer``."""
        self.resumed = None
        return super().train(*args, **kwargs)  # type: ignore[misc]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Saves the model: a gated one whole, a compact one as finegates.save does, any other one
        as Trainer does."""
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
        """As of Trainer; a gated model is read whole, or refused before anything changes."""
        self.resumed = Path(resume_from_checkpoint)
        if not self._put(self.resumed):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        """As of Trainer; a gated model is read whole, low-rank factors, gates, biases and head."""
        best = self.state.best_model_checkpoint  # type: ignore[attr-defined]
        if not self._put(Path(best)):
            super()._load_best_model()  # type: ignore[misc]

    def _put(self, folder: Path) -> bool:
        """Puts a gated checkpoint into the model; says whether it was one.

        Raises:
            ValueError: the checkpoint and the model do not fit, or the checkpoint is unfinished.
        """
        model = self._plain_model()
        if is_gated_folder(folder):
            put_checkpoint(model, folder)
            return True
        if gated_layers(model) and folder.is_dir() and not is_stock_folder(folder):
            raise ValueError(
                f"{folder} holds no gates: it has neither a finegates.json nor a {TENSORS} of a "
                "gated model, because it was left unfinished or is of adapters alone; resume from "
                "another checkpoint"
            )
        return False

    def _plain_model(self) -> nn.Module:
        """The model without what torch.compile and accelerate put around it."""
        model: nn.Module = self.accelerator.unwrap_model(  # type: ignore[attr-defined]
            self.model,  # type: ignore[attr-defined]
            keep_torch_compile=False,
        )
        return model
