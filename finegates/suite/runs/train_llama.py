"""One run on plain text: train with gates, evaluate, compact and compare."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finegates.budget import macs
from finegates.compaction import compact
from finegates.files import whole_folder
from finegates.formats.compact import save
from finegates.gates.attachment import attach, attach_fixed, detach
from finegates.gates.gated_linear import gated_layers
from finegates.gates.monitor import closed_counts
from finegates.one_shot import (
    Scores,
    closing_gates,
    gated_names,
    magnitude_scores,
    random_scores,
    second_moment_scores,
    second_moments,
)
from finegates.seeds import derive_seed
from finegates.suite.config.llama import CausalGates, CausalTraining
from finegates.suite.config.llama_runs import DENSE, Run, gates_of, study, title_of, training_of
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
from finegates.suite.runs.llama_record import (
    CausalCompact,
    CausalRecord,
    HeldOutResult,
    TextConfig,
)
from finegates.suite.runs.llama_trainer import (
    POSITION_FILE,
    CausalTrainer,
    causal_arguments,
    last_checkpoint,
    remove_checkpoints,
)
from finegates.suite.runs.machine import code_version, hardware, package_versions, peak_memory_mib
from finegates.suite.runs.perplexity import Prediction, greedy_tokens, held_out_prediction
from finegates.suite.runs.run_record import Code, Hardware, measured_budget
from finegates.suite.runs.step_timer import StepTimer

GREEDY_PROMPTS, GREEDY_PROMPT, GREEDY_NEW = 4, 16, 32
"""Greedy decoding compares gated and compact model: prompts, their tokens, new tokens."""


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
    before = _evaluate(model, held_out, settings)
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
    record = _describe(
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


def prune_runs(
    tier: Tier,
    runs: Sequence[tuple[Run, CausalRecord | None]],
    *,
    root: Path = Path(),
    code_digest: str | None = None,
) -> list[CausalRecord]:
    """Evaluates the dense model and one-shot pruned ones, without training.

    Args:
        tier: configuration.
        runs: runs of ``pruning_runs(tier)`` on one model, each with the record that it matches
            (None for the dense model).
        root: the repository.
        code_digest: digest of the source files behind the runs.

    Raises:
        ValueError: the record that a run matches is missing.
    """
    torch.set_num_threads(tier.threads)
    posttraining = study(tier).posttraining
    assert posttraining is not None
    settings = posttraining.training
    first = runs[0][0]
    source = posttraining.models[first.name]
    model, tokenizer = load_causal(source, tier.results)
    check_positions(model, settings.length, first.name)
    described = describe_causal(source, tier.results, model)
    text = study(tier).text
    data = describe_text(text, tier.results)
    held_out = HeldOut(held_out_documents(text, tier.results), tokenizer, settings.length)
    before = _evaluate(model, held_out, settings)
    names = gated_names(model)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    records = []
    for run, matched in runs:
        start = time.perf_counter()
        seeds = run_seeds(run)
        if run.criterion is not None:
            if matched is None:
                raise ValueError(f"{run.label} needs the record of {run.matched().label}")
            scores: Scores
            if run.criterion == "random":
                scores = random_scores(model, names, seeds["gates"])
            elif run.criterion == "magnitude":
                scores = magnitude_scores(model, names)
            else:
                if run.seed not in moments:
                    batches = _calibration(tier, run, tokenizer, posttraining.calibration)
                    moments[run.seed] = second_moments(model, names, batches)
                scores = second_moment_scores(model, names, moments[run.seed])
            counts = {name: closed.model_dump() for name, closed in matched.closed.items()}
            # Fixed gates do not change the weights, so the next run starts from the same model.
            attach_fixed(model, closing_gates(scores, counts))  # type: ignore[arg-type]
        record = _describe(
            tier, run, model, held_out, settings, 0,
            seeds=seeds, model=described, data=data, root=root, code_digest=code_digest,
            config={
                "criterion": run.criterion,
                "calibration": posttraining.calibration
                if run.criterion == "second_moment" else None,
                "training": None,
                "length": settings.length,
            },
            before=before, curve=[],
        )  # fmt: skip
        detach(model)
        records.append(
            record.model_copy(update={"timing": {"wall_s": time.perf_counter() - start}})
        )
    return records


def run_seeds(run: Run) -> dict[str, int]:
    """Seeds by purpose. All methods share them, so differences are paired."""
    names = (run.experiment, run.name, run.seed)
    return {
        "init": derive_seed("llama", *names, "init"),
        "text": derive_seed("llama", *names, "text"),
        "gates": derive_seed("llama", *names, "gates"),
        "noise": derive_seed("llama", *names, "noise"),
        "train": derive_seed("llama", *names, "train"),
    }


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


def _evaluate(model: nn.Module, held_out: HeldOut, settings: CausalTraining) -> Prediction:
    return held_out_prediction(model, held_out, settings.eval_batch_size)


def _describe(
    tier: Tier,
    run: Run,
    trained: nn.Module,
    held_out: HeldOut,
    settings: CausalTraining,
    trainable: int,
    *,
    seeds: dict[str, int],
    before: Prediction,
    root: Path,
    code_digest: str | None,
    **entries: Any,
) -> CausalRecord:
    """Evaluates and compacts a model, and returns its record."""
    final = _evaluate(trained, held_out, settings)
    budget = measured_budget(trained, trainable, 1, settings.length)
    shrunk = None
    if gated_layers(trained):
        shrunk = _compare(trained, held_out, settings, final, settings.length)
    return CausalRecord(
        tier=tier.tier,
        experiment=run.experiment,
        name=run.name,
        method=run.method,
        title=title_of(tier, run),
        target=run.target,
        seed=run.seed,
        config=TextConfig(**entries.pop("config"), tier_description=study(tier).description),
        seeds=seeds,
        code=Code(**code_version(root), digest=code_digest),
        versions=package_versions(),
        hardware=Hardware(**hardware(tier.threads)),
        start=HeldOutResult(**asdict(before)),
        final=HeldOutResult(**asdict(final)),
        budget=budget,
        realised_sparsity=budget.realised_sparsity,
        closed=closed_counts(trained),  # type: ignore[arg-type]
        compact=shrunk,
        **entries,
    )


def _compare(
    model: nn.Module, held_out: HeldOut, settings: CausalTraining, gated: Prediction, length: int
) -> CausalCompact:
    small = compact(model)
    found = _evaluate(small, held_out, settings)
    positions = int(model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]
    prompt = max(1, min(GREEDY_PROMPT, length // 2))
    new = max(1, min(GREEDY_NEW, positions - prompt))
    prompts = held_out.inputs[:GREEDY_PROMPTS, :prompt].to(next(model.parameters()).device)
    theirs, ours = greedy_tokens(model, prompts, new), greedy_tokens(small, prompts, new)
    return CausalCompact(
        perplexity=found.perplexity,
        perplexity_difference=abs(found.perplexity / gated.perplexity - 1.0),
        greedy_tokens=len(prompts) * new,
        same_tokens=int((theirs == ours)[:, prompt:].sum()),
        parameters=sum(p.numel() for p in small.parameters()),
        macs=macs(small, 1, length).total,
    )


def _calibration(
    tier: Tier, run: Run, tokenizer: PreTrainedTokenizerBase, sequences: int
) -> list[torch.Tensor]:
    """The first training sequences of the matched run, in batches."""
    settings = training_of(tier, run)
    seed = run_seeds(run)["text"]
    documents = training_documents(study(tier).text, tier.results, seed)
    stream = iter(PackedText(documents, tokenizer, settings.length))
    ids = torch.stack([next(stream)["input_ids"] for _ in range(sequences)])
    return list(ids.split(settings.eval_batch_size))


def _save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Saves a dense model in Hugging Face layout or a gated one compact, atomically."""
    with whole_folder(folder) as aside:
        if gated_layers(model):
            save(compact(model), aside)
        else:
            model.save_pretrained(aside)  # type: ignore[operator]
        tokenizer.save_pretrained(aside)


__all__ = ["finish", "prune_runs", "train_run"]
