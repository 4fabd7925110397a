"""Valid run records for tests of everything that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finegates.suite.config.tasks import TASKS
from finegates.suite.runs.llama_record import CausalRecord
from finegates.suite.runs.record import Record

BINS = 20


def make_gates(closed: float = 0.2, half_open: float = 0.5, gates: int = 1000) -> dict[str, Any]:
    """A gate summary; the histogram has closed gates in its first bin and open ones in its last."""
    counts = [0] * BINS
    counts[0] = round(closed * gates)
    middle = round(half_open * gates)
    for bin_ in range(middle):
        counts[1 + bin_ % (BINS - 2)] += 1
    counts[-1] = gates - sum(counts[:-1])
    return {
        "gates": gates,
        "closed": closed,
        "open": round(1 - closed - half_open, 6),
        "half_open": half_open,
        "closed_rows": closed,
        "closed_cols": closed,
        "mean_open_probability": 0.8,
        "realised_sparsity": round(1 - (1 - closed) ** 2, 6),
        "penalty": 0.01,
        "histogram": counts,
    }


def make_record(
    *,
    scores: Sequence[float] = (60.0, 71.5, 70.25),
    target: float | None = 0.4,
    title: str | None = None,
    statuses: tuple[str, str] = ("official-complete", "official-complete"),
    source: str = "path",
    **overrides: Any,
) -> Record:
    """A record that satisfies its schema.

    Args:
        scores: one per epoch; ``last`` and ``best`` (the first maximum) follow from them.
        target: the gates' target sparsity; None for a method without gates.
        title: the method's title, its label if None.
        statuses: of the training split and the reported split.
        source: of the data: ``generated``, ``path`` or ``hub``.
        overrides: any other field of :class:`Record`, replaced as a whole.
    """
    task = overrides.get("task", "cola")
    method = overrides.get("method", "gates")
    spec = TASKS[task]
    gated = target is not None
    epochs = [
        {
            "epoch": number,
            "train_loss": 1.0 / number,
            "metrics": {name: score / 100 for name in spec.metrics},
            "score": score,
            "gates": make_gates(closed=0.05 * number, half_open=0.5 / number) if gated else None,
        }
        for number, score in enumerate(scores, start=1)
    ]
    realised = overrides.get("realised_sparsity", 0.25 if gated else 0.0)
    dense, gated_weights, head = 1_000_000, 80_000, 1_000 + 10 * spec.num_labels
    trainable = (600 + head) if gated else 120_000 + head
    fields: dict[str, Any] = {
        "tier": "smoke",
        "task": task,
        "method": method,
        "seed": 0,
        "config": {
            "title": title or method,
            "gates": {"preset": "reference", "target": target} if gated else None,
            "lora": None,
            "magnitude": None,
            "init": "pretrained",
            "learning_rate": 1e-3,
            "gate_learning_rate": None,
            "training": {"epochs": len(epochs), "batch_size": 16, "max_length": 64},
            "tier_description": "tiny models on two CPU cores",
        },
        "seeds": {"data": 1, "head": 2},
        "code": {"commit": "0" * 40, "dirty": False},
        "model": {
            "name": "tiny-roberta",
            "source": "pretraining",
            "revision": None,
            "sha256": "ab" * 32,
            "architecture": "roberta",
            "parameters": 123_456,
        },
        "data": {
            "name": "GLUE",
            "source": source,
            "revision": "c" * 40 if source == "hub" else None,
            "train_rows": min(spec.train_rows, 10_000),
            "validation_rows": 500,
            "official_train_rows": spec.train_rows,
            "validation_split": spec.validation,
            "splits": {
                "train": {"sha256": "1" * 64, "status": statuses[0]},
                "validation": {"sha256": "2" * 64, "status": statuses[1]},
            },
        },
        "versions": {"python": "3.11.7", "torch": "2.10.0"},
        "hardware": {
            "cpu": "Example CPU @ 2.0 GHz",
            "cores": 2,
            "threads": 2,
            "memory_gib": 8.0,
            "gpu": None,
        },
        "epochs": epochs,
        "last": epochs[-1],
        "best": max(epochs, key=lambda epoch: epoch["score"]),
        "budget": {
            "parameters": {
                "all": 123_456 + head,
                "encoder": 100_000,
                "gated": gated_weights,
                "trainable": trainable,
                "gates": 400 if gated else 0,
                "biases": 200 if gated else 0,
                "head": head,
                "low_rank": 0,
            },
            "removable_weights": gated_weights,
            "removed_weights": round(realised * gated_weights),
            "realised_sparsity": realised,
            "macs_batch": 1,
            "macs_length": 64,
            "macs": {"dense": dense, "kept": round(dense * (1 - 0.9 * realised))},
        },
        "realised_sparsity": realised,
        "closed": {"layer.0.query": {"rows": 3, "cols": 5}} if gated else {},
        "compact": None,
        "timing": {"wall_s": 12.5, "train_s": 10.0, "startup_s": 1.0, "step_ms": 4.0},
    }
    return Record.model_validate(fields | overrides)


def make_study(
    tasks: Sequence[str] = ("cola", "rte"),
    methods: Sequence[str] = ("full", "gates"),
    seeds: Sequence[int] = (0,),
    **overrides: Any,
) -> list[Record]:
    """One record for every task, method and seed, with different scores; ``full`` has no gates."""
    return [
        make_record(
            task=task,
            method=method,
            seed=seed,
            title=method.capitalize(),
            target=None if method == "full" else 0.4,
            scores=[50.0 + 3 * i + 2 * j + 0.5 * seed + step for step in (0.0, 6.25, 4.0)],
            **overrides,
        )
        for i, task in enumerate(tasks)
        for j, method in enumerate(methods)
        for seed in seeds
    ]


def make_causal_record(
    method: str = "reference",
    target: float | None = 0.4,
    *,
    experiment: str = "posttraining",
    loss: float = 1.5,
    losses: Sequence[float] = (2.0, 1.8, 1.5),
    realised: float = 0.25,
    **overrides: Any,
) -> CausalRecord:
    """A record of a run on plain text that satisfies its schema.

    Args:
        method: ``dense`` has no gates, for any ``target``.
        target: the requested sparsity.
        experiment: ``posttraining`` or ``pretraining``.
        loss: at the end.
        losses: held-out, one for each evaluation; empty for a one-shot run.
        realised: the sparsity that was reached.
        overrides: any other field, replaced as a whole.
    """
    dense, one_shot = method == "dense", "-as-" in method
    realised = 0.0 if dense else realised

    def predicted(nats: float) -> dict[str, Any]:
        return {
            "loss": nats,
            "perplexity": round(2.718281828**nats, 6),
            "bits_per_character": nats / 2,
            "tokens": 1000,
            "characters": 4000,
        }

    fields: dict[str, Any] = {
        "tier": "smoke",
        "experiment": experiment,
        "name": "tiny",
        "method": method,
        "title": method.capitalize(),
        "target": None if dense else target,
        "seed": 0,
        "config": {
            "tier_description": "tiny Llama on two CPU cores",
            "training": None
            if one_shot or (dense and experiment == "posttraining")
            else {
                "steps": 30,
                "batch_size": 4,
                "length": 16,
                "learning_rate": 0.01,
                "final_rate": 0.5,
                "precision": "float32",
            },
        },
        "seeds": {"text": 1},
        "code": {"commit": "0" * 40, "dirty": False},
        "model": {
            "name": "tiny Llama",
            "source": "path",
            "revision": None,
            "sha256": "ab" * 32,
            "architecture": "llama",
            "parameters": 120_000,
        },
        "data": {
            "name": "stories",
            "source": "path",
            "revision": None,
            "validation_documents": None,
            "sha256": {"train": "1" * 64, "validation": "2" * 64},
            "status": {"train": "official-subset: some", "validation": None},
        },
        "versions": {"python": "3.11.7"},
        "hardware": {
            **{"cpu": "Example CPU", "cores": 2, "threads": 1, "memory_gib": 8.0, "gpu": None}
        },
        "start": predicted(3.0),
        "final": predicted(loss),
        "curve": []
        if one_shot
        else [
            {
                "step": 10 * (place + 1),
                "tokens": 640 * (place + 1),
                "task_loss": value + 0.1,
                "held_out_loss": value,
                "realised_sparsity": None if dense else realised * place / len(losses),
            }
            for place, value in enumerate(losses)
        ],
        "budget": {
            "parameters": {
                "all": 120_000,
                "encoder": 100_000,
                "gated": 0 if dense else 80_000,
                "trainable": 400,
                "gates": 0 if dense or one_shot else 400,
                "biases": 0,
                "head": 0,
                "low_rank": 0,
            },
            "removable_weights": 0 if dense else 80_000,
            "removed_weights": round(realised * 80_000),
            "realised_sparsity": realised,
            "macs_batch": 1,
            "macs_length": 16,
            "macs": {"dense": 1_000_000, "kept": round(1_000_000 * (1 - realised))},
        },
        "realised_sparsity": realised,
        "closed": {},
        "compact": None
        if dense
        else {
            "perplexity": 4.5,
            "perplexity_difference": 1.23e-8,
            "greedy_tokens": 128,
            "same_tokens": 128,
            "parameters": 100_000,
            "macs": 900_000,
        },
        "timing": {"wall_s": 2.0},
    }
    return CausalRecord.model_validate(fields | overrides)
