"""History of the gates in a training, stored with its checkpoints."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finegates.files import parse_json, write_text
from finegates.gates.gated_linear import gated_layers
from finegates.gates.monitor import GateWatch, summarise_gates

HISTORY = "gate_history.json"
"""File of a checkpoint that holds the history for a resumed training."""

logger = logging.getLogger(__name__)


class GateHistory(TrainerCallback):
    """Summarises the gates before training and after each epoch.

    It also counts gates that reopen. Gates are checked every ``INTERVAL`` steps; a gate that closes
    and reopens between two checks is missed.

    Attributes:
        entries: one per epoch, with the key ``epoch`` and those of
            :func:`finegates.gates.monitor.summarise_gates`.
        unlogged: values of the last summary that have not been logged yet.
    """

    INTERVAL = 10

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.unlogged: dict[str, float] = {}
        self._watch: GateWatch | None = None
        self._penalty: Callable[[], Tensor] | None = None
        self._resumed: Path | None = None

    def watch(
        self, model: nn.Module, penalty: Callable[[], Tensor] | None, resumed: Path | None
    ) -> None:
        """Sets the model of the next training.

        Args:
            model: with or without gates.
            penalty: on the gates.
            resumed: the checkpoint that the training continues from.
        """
        self._watch = GateWatch(model) if gated_layers(model) else None
        self._penalty = penalty
        self._resumed = resumed

    def save(self, folder: Path) -> None:
        """Writes the history next to a checkpoint's model; does nothing before a training."""
        if self._watch is not None:
            kept = {
                "entries": self.entries,
                "unlogged": self.unlogged,
                "watch": self._watch.state(),
            }
            write_text(folder / HISTORY, json.dumps(kept))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the history, or continues that of the checkpoint."""
        if self._resumed is None or not self._restore(self._resumed):
            self._record(0)
            return
        # A checkpoint may have been made at the last step of an epoch, before the epoch ended.
        epoch = state.epoch or 0
        if epoch == round(epoch) and epoch > max((e["epoch"] for e in self.entries), default=0):
            self._end_epoch(round(epoch))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks the gates every ``INTERVAL`` steps."""
        if self._watch is not None and state.global_step % self.INTERVAL == 0:
            self._watch.look()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Summarises the gates."""
        self._end_epoch(round(state.epoch or 0))

    def _end_epoch(self, epoch: int) -> None:
        summary = self._record(epoch)
        if summary is not None:
            self.unlogged = {f"gates/{k}": v for k, v in summary.items() if isinstance(v, float)}

    def _record(self, epoch: int) -> dict[str, Any] | None:
        if self._watch is None:
            return None
        self._watch.look()
        summary = summarise_gates(self._watch.model, self._penalty)
        summary["reopened"] = self._watch.reopened()
        self.entries.append({"epoch": epoch, **summary})
        return summary

    def _restore(self, checkpoint: Path) -> bool:
        """Restores the history of a checkpoint; warns if it has none for these gates."""
        if self._watch is None:
            return True
        try:
            kept = parse_json((checkpoint / HISTORY).read_text(encoding="utf-8"))
            self._watch.restore(kept["watch"])
            # In place, because others refer to the list.
            self.entries[:], self.unlogged = kept["entries"], kept["unlogged"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning(
                "%s has no history of these gates (%s); gate_history starts at this checkpoint",
                checkpoint,
                error,
            )
            return False
        return True
