"""Training on packed text by ``transformers.Trainer``: exact resume, the same on many devices.

A step's gates are drawn from the run's seed and the step's number. They are therefore the same for
every micro-batch of a step and on every device, so that a batch may be cut in any way; and a run
that is continued draws what it would have drawn.
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
"""The place in the text. A checkpoint is whole once it is sealed, which is done last."""

IDENTITY_FILE = "run.json"

KEPT_CHECKPOINTS = 2
"""The last may be cut short by the kill that makes it needed."""


class CheckpointError(ValueError):
    """Checkpoints that cannot be continued from; the message names them and the remedy."""


class CausalTrainer(GateTrainer):
    """:class:`GateTrainer` on an endless stream of sequences.

    Args:
        stream: the training text.
        held_out: evaluated on, each token once.
        sequences: of an optimizer step, over all devices.
        length: tokens of a sequence.
        noise_seed: of the gates' noise and of all other random draws of a step.
        start_step: the penalty's target is 0 before this step.
        model, args, ...: as of ``transformers.Trainer``.
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
        """As of :class:`GateTrainerMixin`, with the step's own random numbers."""
        torch.manual_seed(derive_seed(self.noise_seed, "step", self.state.global_step))
        return super().training_step(model, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs, with the task loss of a dense run, too, and the state of the gates."""
        if "loss" in logs:
            logs = {"task_loss": logs["loss"], **logs, **self._gate_scalars()}
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Held-out prediction, shared by the devices; ignores its arguments."""
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
        """What was logged, one point a step; a continued run's has the points before it too."""
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
        # A pickle of any objects, which nothing reads: settings are in the run's identity.
        (Path(str(output_dir or self.args.output_dir)) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        if self.is_world_process_zero():
            step = self.state.global_step
            folder = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
            position = self.stream.position(step * self.sequences)
            write_text(folder / POSITION_FILE, json.dumps(position))
        self.accelerator.wait_for_everyone()  # each has a file of its own in it
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
                penalty.sparsity = config.target if reached else 0.0


def causal_arguments(
    settings: CausalTraining, folder: str | Path, seed: int, *, progress: bool
) -> TrainingArguments:
    """Trainer arguments of a run; ``folder`` receives the checkpoints."""
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
        # The stream continues from its position in the checkpoint; nothing is read to be skipped.
        ignore_data_skip=True,
        ddp_find_unused_parameters=False,
        ddp_backend=backend,
        report_to="none",
        disable_tqdm=not progress,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
    )


def last_checkpoint(folder: str | Path, identity: Mapping[str, Any]) -> Path | None:
    """The last whole checkpoint of a run in a folder, None if there is none.

    The folder remembers which run it belongs to. A checkpoint that was cut short or is damaged is
    passed over.

    Args:
        folder: of the checkpoints; made if needed.
        identity: what decides the run's result: settings, seeds, digests. Plain values.

    Raises:
        CheckpointError: the folder holds checkpoints of another run, or of no known one; it is left
            as it is.
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
    """What a folder of checkpoints says of its run; nothing where that cannot be read."""
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
