"""Evaluates and compacts a Llama, and describes the run in its record."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from finegates.budget import macs
from finegates.compaction import compact
from finegates.gates.gated_linear import gated_layers
from finegates.gates.monitor import closed_counts
from finegates.seeds import derive_seed
from finegates.suite.config.llama import CausalTraining
from finegates.suite.config.llama_runs import Run, study, title_of
from finegates.suite.config.tier import Tier
from finegates.suite.data.packing import HeldOut
from finegates.suite.runs.llama_record import CausalCompact, CausalRecord, HeldOutResult, TextConfig
from finegates.suite.runs.machine import code_version, hardware, package_versions
from finegates.suite.runs.perplexity import Prediction, greedy_tokens, held_out_prediction
from finegates.suite.runs.run_record import Code, Hardware, measured_budget

GREEDY_PROMPTS, GREEDY_PROMPT, GREEDY_NEW = 4, 16, 32
"""Greedy decoding compares gated and compact model: prompts, their tokens, new tokens."""


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


def evaluate(model: nn.Module, held_out: HeldOut, settings: CausalTraining) -> Prediction:
    """Predicts the held-out text in batches of the evaluation's size."""
    return held_out_prediction(model, held_out, settings.eval_batch_size)


def describe_run(
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
    final = evaluate(trained, held_out, settings)
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
    found = evaluate(small, held_out, settings)
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
