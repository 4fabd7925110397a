"""Training on packed text with ``transformers.Trainer`` and exact resume.

The gates of a step are drawn from the run's seed and the step's number. Every micro-batch of a step
and every device therefore uses the same gates, and a batch may be split in any way. A resumed run
draws the same gates as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments, default_data_collator
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from finegates.files import parse_json, write_text
from finegates.gates.gated_linear import gated_layers
from finegates.gates.monitor import summarise_gates
from finegates.gates.open_fractions import SparsityPenalty
from finegates.seeds import derive_seed
from finegates.suite.config.llama import CausalTraining
from finegates.suite.data.packing import HeldOut, PackedText
from finegates.suite.jobs.seals import SealError, check_seal, seal
from finegates.suite.runs.llama_record import CurvePoint
from finegates.suite.runs.perplexity import held_out_prediction
from finegates.training.trainer import GateTrainer

POSITION_FILE = "text_position.json"
"""File with the position in the text. A checkpoint is complete once it is sealed, the last step."""

IDENTITY_FILE = "run.json"

KEPT_CHECKPOINTS = 2
"""Complete checkpoints kept: a kill may leave the newest one incomplete."""


class CheckpointError(ValueError):
    """Checkpoints cannot be resumed. The message names them and the remedy."""


class CausalTrainer(GateTrainer):
    """:class:`GateTrainer` on an endless stream of sequences.

    Args:
        stream: the training text.
        held_out: the evaluation text; each token is predicted once.
        sequences: sequences of an optimizer step, over all devices.
        length: tokens of a sequence.
        noise_seed: seed of the gates' noise and of all other random draws of a step.
        start_step: the penalty's target is 0 before this step.
        model, args, ...: see ``transformers.Trainer``.
    """

    def __init__(
        self,
        *args: Any,
        stream: PackedText,
        held_out: HeldOut,
        sequences: int,
        length: int,
        noise_seed: int,
        start_step: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            train_dataset=stream,
            eval_dataset=held_out,
            data_collator=default_data_collator,
            **kwargs,
        )
        self.stream = stream
        self.held_out = held_out
        self.sequences = sequences
        self.length = length
        self.noise_seed = noise_seed
        if start_step:
            self.add_callback(_DelayedTarget(self, start_step))

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Same as :class:`GateTrainerMixin`, with a seed for each step."""
        torch.manual_seed(derive_seed(self.noise_seed, "step", self.state.global_step))
        return super().training_step(model, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the state of the gates and, for dense runs too, the task loss."""
        if "loss" in logs:
            logs = {"task_loss": logs["loss"], **logs, **self._gate_scalars()}
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates held-out text, split over the devices. Ignores its arguments."""
        found = held_out_prediction(
            self.accelerator.unwrap_model(self.model),
            self.held_out,
            self.args.per_device_eval_batch_size,
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
            total=lambda nats: self.accelerator.reduce(nats, reduction="sum"),
            progress=not self.args.disable_tqdm,
        )
        metrics = {"eval_loss": found.loss, **self._gate_scalars()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def curve(self) -> list[CurvePoint]:
        """The logged points, one per step, including those before a resume."""
        points: dict[int, dict[str, Any]] = {}
        model: nn.Module = self.accelerator.unwrap_model(self.model)
        sizes = [(g.out_features, g.in_features) for g in gated_layers(model).values()]
        gated = sum(rows * columns for rows, columns in sizes)
        for entry in self.state.log_history:
            step = int(entry["step"])
            if "loss" not in entry and "eval_loss" not in entry:
                continue
            point = points.setdefault(
                step, {"step": step, "tokens": step * self.sequences * self.length}
            )
            found = {
                "task_loss": entry.get("task_loss"),
                "held_out_loss": entry.get("eval_loss"),
                "realised_sparsity": entry.get("gates/realised_sparsity"),
                "closed": entry.get("gates/closed"),
                "half_open": entry.get("gates/half_open"),
            }
            point |= {name: value for name, value in found.items() if value is not None}
            if "realised_sparsity" in point:
                point["removable_weights"] = round(point["realised_sparsity"] * gated)
        return [CurvePoint(**point) for _, point in sorted(points.items())]

    def _gate_scalars(self) -> dict[str, float]:
        model: nn.Module = self.accelerator.unwrap_model(self.model)
        if not gated_layers(model):
            return {}
        summary = summarise_gates(model)
        return {f"gates/{k}": summary[k] for k in ("realised_sparsity", "closed", "half_open")}

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle that nothing reads: the run's identity stores the settings.
        (Path(str(output_dir or self.args.output_dir)) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        if self.is_world_process_zero():
            step = self.state.global_step
            folder = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
            position = self.stream.position(step * self.sequences)
            write_text(folder / POSITION_FILE, json.dumps(position))
        self.accelerator.wait_for_everyone()  # each process writes its own file into the folder
        if self.is_world_process_zero():
            seal(folder)


class _DelayedTarget(TrainerCallback):
    """Holds the penalty's target at 0 until a step."""

    def __init__(self, trainer: CausalTrainer, start_step: int) -> None:
        self._trainer = trainer
        self._start_step = start_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        reached = state.global_step >= self._start_step
        for config, penalty in self._trainer.penalties:
            if isinstance(penalty, SparsityPenalty):
                penalty.sparsity = config.removed() if reached else 0.0


def causal_arguments(
    settings: CausalTraining, folder: str | Path, seed: int, *, progress: bool
) -> TrainingArguments:
    """Trainer arguments of a run. Checkpoints are written to ``folder``."""
    shared = int(os.environ.get("WORLD_SIZE", "1")) > 1
    backend = "gloo" if shared and not torch.cuda.is_available() else None
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.per_device,
        per_device_eval_batch_size=settings.eval_batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.final_rate},
        warmup_steps=settings.warmup,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_gradient_norm,
        bf16=settings.precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=settings.eval_every,
        save_strategy="no" if settings.save_every is None else "steps",
        save_steps=settings.save_every or settings.steps,
        save_total_limit=KEPT_CHECKPOINTS,
        # The stream seeks to its position in the checkpoint instead of reading and skipping.
        ignore_data_skip=True,
        ddp_find_unused_parameters=False,
        ddp_backend=backend,
        report_to="none",
        disable_tqdm=not progress,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
    )


def last_checkpoint(folder: str | Path, identity: Mapping[str, Any]) -> Path | None:
    """The last complete checkpoint of a run in a folder, if there is one.

    The folder stores the identity of its run. Incomplete and corrupt checkpoints are skipped.

    Args:
        folder: folder of the checkpoints; created if needed.
        identity: plain values that determine the run's result: settings, seeds, digests.

    Raises:
        CheckpointError: the folder holds checkpoints of another or an unknown run. It is not
            changed.
    """
    folder = Path(folder)
    found = sorted(
        (path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    file = folder / IDENTITY_FILE
    if found:
        kept = _identity(file)
        if kept.get("digest") != digest:
            raise CheckpointError(
                f"{folder} holds checkpoints of another run{_differences(kept, identity)}; nothing "
                f"was changed. Delete the folder to start this run from the beginning"
            )
    write_text(file, json.dumps({"digest": digest, "identity": dict(identity)}, indent=1))
    return next((path for path in reversed(found) if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        return check_seal(checkpoint)
    except SealError as error:
        print(f"passed over: {error}", flush=True)
        return False


def _identity(file: Path) -> dict[str, Any]:
    """The identity stored in a folder of checkpoints, empty if it cannot be read."""
    try:
        kept = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _differences(kept: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    other = kept.get("identity")
    if not isinstance(other, dict):
        return ""
    plain = json.loads(json.dumps(dict(identity)))
    keys = [k for k in {**other, **plain} if other.get(k) != plain.get(k)]
    return f" (they differ in {', '.join(keys)})" if keys else ""


def remove_checkpoints(folder: str | Path) -> None:
    """Deletes a finished run's checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)
