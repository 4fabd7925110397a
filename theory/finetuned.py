"""Landscape of a fine-tuned encoder, for gates and low-rank factors along their training.

Only this module of the package needs the library's models and data. All others use synthetic least
squares.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm
from transformers import DataCollatorWithPadding

from finegates.gates.gated_linear import leaf_gates
from finegates.gates.parts import gate_config
from finegates.gates.penalty import sparsity_penalty
from finegates.gates.stochastic import StochasticGate
from finegates.seeds import derive_seed, seed_everything
from finegates.suite.config.methods import GateSettings, LoraSettings, Method
from finegates.suite.config.theory import NetworkLook
from finegates.suite.config.tier import Tier
from finegates.suite.models.sources import load_classifier, load_tokenizer
from finegates.suite.runs.finetune import TaskData
from finegates.suite.runs.preparation import prepare
from finegates.training.trainer import parameter_groups
from theory.closing import closing_rows
from theory.free_gates import FreeGate, free_gates
from theory.network import Batch, Local, local_landscape, tangents_of
from theory.problems import Array

TRAINED = "gates, as trained"
FREE = "gates, before clipping"
LORA = "LoRA"
ROWS = 256
"""Rows of the measured loss, unless the configuration says another number."""


def looked_at_methods(look: NetworkLook) -> dict[str, Method]:
    """The trained methods: gates of the released code, and LoRA."""
    return {
        "gates": Method(
            title="gates",
            gates=GateSettings(preset="reference", target=look.target),
            learning_rate=look.learning_rate,
            gate_learning_rate=look.gate_learning_rate,
        ),
        "lora": Method(
            title="LoRA",
            lora=LoraSettings(rank=look.rank, alpha=2.0 * look.rank),
            learning_rate=look.learning_rate,
        ),
    }


MICRO_BATCH = 16
"""Rows of a forward pass. Rows of similar length are together, so that little is padding."""


@dataclass(frozen=True)
class Landscape:
    """The tables of :func:`look_at`.

    Attributes:
        points: one row for each kind of parameters, seed and step, with the columns ``parameters``
            (one of ``TRAINED``, ``FREE``, ``LORA``), ``seed``, ``step``, ``saturated`` (share of
            gates whose clip has slope 0), and the fields of :class:`theory.network.Local`.
        closing: one row for each seed and share of closed gates, see
            :func:`theory.closing.closing_rows`.
    """

    points: pd.DataFrame
    closing: pd.DataFrame


def look_at(tier: Tier, task: str, look: NetworkLook, *, progress: bool = False) -> Landscape:
    """Trains gates and LoRA, and measures the task loss around points on the way.

    The loss is the mean over the first training rows, in evaluation mode, float64, without the
    penalty. At the end of gate training, gates are closed by importance.

    Raises:
        ValueError: the task has fewer rows than the configuration asks for.
    """
    torch.set_num_threads(tier.threads)
    data = TaskData(tier, task, load_tokenizer(tier))
    count = min(ROWS, len(data.train)) if look.rows is None else look.rows
    if len(data.train) < count:
        raise ValueError(
            f"theory.network.rows is {count}, but task {task!r} has {len(data.train)} "
            "training rows; lower it"
        )
    batches = probe_batches(data, count)
    points: list[dict[str, Any]] = []
    closing: list[dict[str, Any]] = []
    moments = sorted({round(s) for s in np.linspace(0, look.steps, look.looks)})
    bar = tqdm(
        total=2 * len(moments) * len(look.seeds),
        desc="landscape of the encoder",
        disable=not progress,
    )
    for seed in look.seeds:
        for name, method in looked_at_methods(look).items():
            model = _prepared(tier, task, name, method, seed)
            for step in _train(model, method, data, look, tier, moments, seed):
                for kind, found, saturated in _measured(model, name, batches):
                    points.append({"parameters": kind, "seed": seed, "step": step})
                    points[-1] |= {"saturated": saturated, **vars(found)}
                bar.update()
            if name == "gates":
                still, gates, _ = _freed(model)
                closing += [{"seed": seed, **row} for row in closing_rows(still, gates, batches)]
    bar.close()
    return Landscape(pd.DataFrame(points), pd.DataFrame(closing))


def probe_batches(data: TaskData, rows: int) -> list[Batch]:
    """The first training rows, the shortest first, in batches of ``MICRO_BATCH``."""
    collate = DataCollatorWithPadding(data.tokenizer)
    chosen = sorted(data.train[:rows], key=lambda row: len(row["input_ids"]))
    return [
        dict(collate(chosen[start : start + MICRO_BATCH]))
        for start in range(0, len(chosen), MICRO_BATCH)
    ]


def _prepared(tier: Tier, task: str, name: str, method: Method, seed: int) -> nn.Module:
    model = load_classifier(tier, task, derive_seed("theory", task, "init", seed))
    drawn = derive_seed("theory", task, name, seed)
    seed_everything(drawn)
    return prepare(model, method, drawn)


def _train(
    model: nn.Module,
    method: Method,
    data: TaskData,
    look: NetworkLook,
    tier: Tier,
    moments: list[int],
    seed: int,
) -> Iterator[int]:
    """Trains step by step and yields at every moment, with the moment's number."""
    penalty, config = sparsity_penalty(model), gate_config(model)
    weight = config.penalty_weight if config else 0.0
    groups = [
        {
            "params": list(parameters.values()),
            "lr": (method.gate_learning_rate or method.learning_rate)
            if kind == "gates"
            else method.learning_rate,
        }
        for kind, parameters in parameter_groups(model).items()
        if parameters
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    random = np.random.default_rng(derive_seed("theory", data.task, "order", seed))
    collate = DataCollatorWithPadding(data.tokenizer)
    half = tier.training.precision == "bfloat16"
    for step in range(look.steps + 1):
        if step in moments:
            yield step
        if step == look.steps:
            return
        chosen = random.integers(len(data.train), size=tier.training.batch_size)
        model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = model(**collate([data.train[int(i)] for i in chosen])).loss
        if penalty is not None:
            loss = loss + weight * penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _measured(
    model: nn.Module, name: str, batches: list[Batch]
) -> Iterator[tuple[str, Local, float]]:
    """The landscape in each kind of parameters, of a copy: the model keeps precision and mode."""
    if name == "lora":
        still = copy.deepcopy(model).double().eval()
        names = parameter_groups(still)["low_rank"]
        leaves = [still.get_submodule(name.removesuffix(".weight")) for name in names]
        yield LORA, local_landscape(tangents_of(still, leaves, batches)), 0.0
        return
    gates = [m for m in model.modules() if isinstance(m, StochasticGate)]
    centres = torch.cat([gate.centre().detach() for gate in gates])
    saturated = float(((centres <= 0) | (centres >= 1)).double().mean())
    still, free, slopes = _freed(model)
    tangents = tangents_of(still, free, batches)
    yield FREE, local_landscape(tangents), saturated
    yield TRAINED, local_landscape(tangents.scaled(slopes)), saturated


def _freed(model: nn.Module) -> tuple[nn.Module, list[FreeGate], Array]:
    """A float64 copy with free gates, and the slope of each gate in its latent."""
    still = copy.deepcopy(model).double().eval()
    slopes = []
    for gate in leaf_gates(still):
        assert isinstance(gate, StochasticGate)
        (slope,) = torch.autograd.grad(gate.value().sum(), gate.latent)
        slopes.append(slope.numpy())
    free = free_gates(still)
    for parameter in still.parameters():
        parameter.requires_grad_(False)
    return still, free, np.concatenate(slopes)
