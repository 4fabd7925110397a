"""One-shot pruning of a Llama: evaluated on plain text, without training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from finegates.gates.attachment import attach_fixed
from finegates.gates.detachment import detach
from finegates.one_shot import (
    Scores,
    closing_gates,
    gated_names,
    magnitude_scores,
    random_scores,
    second_moment_scores,
    second_moments,
)
from finegates.suite.config.llama_runs import Run, study, training_of
from finegates.suite.config.tier import Tier
from finegates.suite.data.packing import HeldOut, PackedText
from finegates.suite.data.text import describe_text, held_out_documents, training_documents
from finegates.suite.models.llama import check_positions, describe_causal, load_causal
from finegates.suite.runs.llama_record import CausalRecord
from finegates.suite.runs.llama_result import describe_run, evaluate, run_seeds


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
    before = evaluate(model, held_out, settings)
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
        record = describe_run(
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
