"""One run on plain text: train with gates, evaluate, compact and compare."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finegates.compaction import compact
from finegates.files import whole_folder
from finegates.formats.compact import save
from finegates.gates.attachment import attach
from finegates.gates.gated_linear import gated_layers
from finegates.suite.config.llama import CausalGates, CausalTraining
from finegates.suite.config.llama_runs import DENSE, Run, gates_of, study, training_of
from finegates.suite.config.tier import Tier
from finegates.suite.data.packing import HeldOut, PackedText
from finegates.suite.data.text import describe_text, held_out_documents, training_documents
from finegates.suite.models.llama import (
    check_positions,
    describe_causal,
    load_causal,
    load_text_tokenizer,
    make_llama,
)
from finegates.suite.models.sources import dense_model
from finegates.suite.runs.llama_record import CausalRecord
from finegates.suite.runs.llama_result import describe_run, evaluate, run_seeds
from finegates.suite.runs.llama_trainer import (
    POSITION_FILE,
    CausalTrainer,
    causal_arguments,
    last_checkpoint,
    remove_checkpoints,
)
from finegates.suite.runs.machine import peak_memory_mib
from finegates.suite.runs.step_timer import StepTimer


def train_run(
    tier: Tier,
    run: Run,
    *,
    root: Path = Path(),
    code_digest: str | None = None,
    progress: bool = False,
) -> CausalRecord | None:
    """Trains one run and returns its record. A killed run is resumed.

    With ``torchrun`` every process calls this function, and the batch is split between them.

    Args:
        tier: configuration.
        run: one of ``pretraining_runs(tier)`` or ``posttraining_runs(tier)``.
        root: the repository, for the commit in the record.
        code_digest: digest of the source files behind the run.
        progress: show progress bars.

    Returns:
        the record; None on processes other than the first.

    Raises:
        TextError, ModelError: text or model cannot be used.
        CheckpointError: the folder holds checkpoints of another run.
        NonFiniteLossError: the loss became NaN or infinite.
    """
    start = time.perf_counter()
    torch.set_num_threads(tier.threads)
    settings, gates = training_of(tier, run), gates_of(tier, run)
    seeds = run_seeds(run)
    model, tokenizer, described = _start_model(tier, run, seeds)
    check_positions(model, settings.length, run.name)
    if gates is not None:
        _attach(model, gates, run, settings, seeds["gates"])
    else:
        model.requires_grad_(True)
    if settings.gradient_checkpointing:
        # Non-reentrant: inputs may be frozen, and the gates' noise is replayed.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    text = study(tier).text
    held_out = HeldOut(held_out_documents(text, tier.results), tokenizer, settings.length)
    stream = PackedText(
        training_documents(text, tier.results, seeds["text"]), tokenizer, settings.length
    )
    data = describe_text(text, tier.results)
    folder = checkpoint_folder(tier, run)
    before = evaluate(model, held_out, settings)
    timer = StepTimer()
    trainer = CausalTrainer(
        model=model,
        args=causal_arguments(settings, folder, seeds["train"], progress=progress),
        stream=stream,
        held_out=held_out,
        sequences=settings.batch_size,
        length=settings.length,
        noise_seed=seeds["noise"],
        start_step=0 if gates is None else gates.start_step,
        callbacks=[timer],
        learning_rates=_rates(settings),
        expect_gates=gates is not None,
    )
    identity = {
        "run": asdict(run),
        "training": _deciding(settings),
        "gates": None if gates is None else gates.model_dump(mode="json"),
        "seeds": seeds,
        "model": described,
        "data": data,
        "code": code_digest,
    }
    checkpoint = _checkpoint_to_continue(trainer, folder, identity, stream)
    trained_from = time.perf_counter()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    train_s = time.perf_counter() - trained_from
    if not trainer.is_world_process_zero():
        return None
    plain = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    record = describe_run(
        tier, run, plain, held_out, settings, trainable,
        seeds=seeds, model=described, data=data, root=root, code_digest=code_digest,
        config={
            "gates": None if gates is None else gates.model_dump(mode="json"),
            "training": settings.model_dump(mode="json"),
        },
        before=before, curve=trainer.curve(),
    )  # fmt: skip
    if run.experiment == "pretraining":
        _save_model(plain, tokenizer, model_folder(tier, run))
    timing = {
        "wall_s": time.perf_counter() - start,
        "train_s": train_s,
        "step_ms": 1e3 * timer.median(),
        "peak_memory_mib": peak_memory_mib(),
    }
    return record.model_copy(update={"timing": timing})


def checkpoint_folder(tier: Tier, run: Run) -> Path:
    """The folder of a run's checkpoints, deleted after its record is written."""
    place = Path(tier.results) / "llama" / "checkpoints" / run.experiment / run.name
    return place / run.label / f"seed{run.seed}"


def model_folder(tier: Tier, run: Run) -> Path:
    """The folder of a pretrained model.

    Other experiments load the dense model of the first seed.
    """
    if run.method == DENSE and run.seed == tier.seeds[0]:
        return Path(dense_model(tier.results, run.name))
    # Not below the dense model's folder, which is replaced atomically.
    place = Path(tier.results) / "llama" / "models" / run.name / "trained"
    return place / run.label / f"seed{run.seed}"


def finish(tier: Tier, run: Run) -> None:
    """Deletes the checkpoints of a run whose record is written."""
    remove_checkpoints(checkpoint_folder(tier, run))


def _start_model(
    tier: Tier, run: Run, seeds: dict[str, int]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    if run.experiment == "posttraining":
        posttraining = study(tier).posttraining
        assert posttraining is not None
        source = posttraining.models[run.name]
        model, tokenizer = load_causal(source, tier.results)
        return model, tokenizer, describe_causal(source, tier.results, model)
    pretraining = study(tier).pretraining
    assert pretraining is not None
    tokenizer = load_text_tokenizer(pretraining.tokenizer, tier.results)
    made = make_llama(pretraining.sizes[run.name], tokenizer, seeds["init"])
    described = {
        "name": run.name,
        "source": "random weights",
        "revision": None,
        "sha256": None,
        "architecture": made.config.model_type,
        "parameters": sum(p.numel() for p in made.parameters()),
        "vocabulary": len(tokenizer),
    }
    return made, tokenizer, described


def _attach(
    model: nn.Module, gates: CausalGates, run: Run, settings: CausalTraining, seed: int
) -> None:
    assert run.target is not None
    pretraining = run.experiment == "pretraining"
    config = gates.gate_config(
        run.target,
        train_biases=pretraining,
        # Without a task there is no head to train; lm_head and embeddings are frozen.
        train_head=pretraining,
        train_weights=pretraining,
        sequence_length=settings.length,
        seed=seed,
    )
    attach(model, config)


def _rates(settings: CausalTraining) -> dict[str, float]:
    rate = settings.gate_learning_rate
    return {} if rate is None else {"gates": rate}


def _deciding(settings: CausalTraining) -> dict[str, Any]:
    """The settings that determine a run's result, without those of checkpointing."""
    return settings.model_dump(mode="json", exclude={"save_every", "nodes"})


def _checkpoint_to_continue(
    trainer: CausalTrainer, folder: Path, identity: dict[str, Any], stream: PackedText
) -> Path | None:
    with trainer.args.main_process_first(local=False):
        checkpoint = last_checkpoint(folder, identity)
    if checkpoint is not None:
        position = json.loads((checkpoint / POSITION_FILE).read_text(encoding="utf-8"))
        stream.seek(position)
        print(f"continuing from {checkpoint}", flush=True)
    return checkpoint


def _save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Saves a dense model in Hugging Face layout or a gated one compact, atomically."""
    with whole_folder(folder) as aside:
        if gated_layers(model):
            save(compact(model), aside)
        else:
            model.save_pretrained(aside)  # type: ignore[operator]
        tokenizer.save_pretrained(aside)


__all__ = ["finish", "train_run"]
