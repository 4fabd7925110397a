"""Landscape of a fine-tuned encoder, for gates and low-rank factors along their training.

Only this module of the package needs the library's models and data. All others use synthetic least
squares.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DataCollatorWithPadding

from finegates.gates.parts import gate_config
from finegates.gates.penalty import sparsity_penalty
from finegates.gates.stochastic import StochasticGate
from finegates.seeds import derive_seed, seed_everything
from finegates.suite.config.methods import GateSettings, LoraSettings, Method
from finegates.suite.config.tier import NetworkLook, Tier
from finegates.suite.models.sources import load_classifier, load_tokenizer
from finegates.suite.runs.finetune import TaskData, prepare
from finegates.training.trainer import parameter_groups
from theory.free_gates import free_gates
from theory.network import Local, local_landscape

TRAINED = "gates, as trained"
FREE = "gates, before clipping"
LORA = "LoRA"


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


def landscape_frame(
    tier: Tier, task: str, look: NetworkLook, *, progress: bool = False
) -> pd.DataFrame:
    """Trains gates, then LoRA, and measures the task loss around points on the way.

    Columns: ``parameters`` (the parameters that move: one of ``TRAINED``, ``FREE``, ``LORA``),
    ``step``, ``size``, ``loss``, ``squared_gradient``, ``ratio`` (‖∇L‖²/2L, a lower estimate of the
    PL ratio), ``largest`` and ``smallest`` eigenvalue, ``saturated`` (share of gates whose clip has
    slope 0). The loss is the mean over the first ``rows`` training rows in evaluation mode,
    float64, without the penalty.
    """
    torch.set_num_threads(tier.threads)
    data = TaskData(tier, task, load_tokenizer(tier))
    if len(data.train) < look.rows:
        raise ValueError(
            f"theory.network.rows is {look.rows}, but task {task!r} has {len(data.train)} "
            "training rows; lower it"
        )
    collate = DataCollatorWithPadding(data.tokenizer)
    probe = dict(collate(data.train[: look.rows]))
    rows: list[dict[str, Any]] = []
    moments = sorted({round(s) for s in np.linspace(0, look.steps, look.looks)})
    bar = tqdm(total=2 * len(moments), desc="landscape of the encoder", disable=not progress)
    for name, method in looked_at_methods(look).items():
        model = _prepared(tier, task, name, method)
        for step in _train(model, method, data, look, tier, moments):
            for parameters, found, saturated in _measured(model, name, probe, (name, step)):
                rows.append({"parameters": parameters, "step": step, "saturated": saturated})
                rows[-1] |= vars(found)
            bar.update()
    bar.close()
    return pd.DataFrame(rows)


def _prepared(tier: Tier, task: str, name: str, method: Method) -> nn.Module:
    model = load_classifier(tier, task, derive_seed("theory", task, "init"))
    # Fused attention does not support second derivatives.
    model.set_attn_implementation("eager")
    seed = derive_seed("theory", task, name)
    seed_everything(seed)
    return prepare(model, method, seed)


def _train(
    model: nn.Module,
    method: Method,
    data: TaskData,
    look: NetworkLook,
    tier: Tier,
    moments: list[int],
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
    random = np.random.default_rng(derive_seed("theory", data.task, "order"))
    collate = DataCollatorWithPadding(data.tokenizer)
    for step in range(look.steps + 1):
        if step in moments:
            yield step
        if step == look.steps:
            return
        chosen = random.integers(len(data.train), size=tier.training.batch_size)
        model.train()
        loss = model(**collate([data.train[int(i)] for i in chosen])).loss
        if penalty is not None:
            loss = loss + weight * penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _measured(
    model: nn.Module, name: str, probe: dict[str, Tensor], seed: tuple[object, ...]
) -> Iterator[tuple[str, Local, float]]:
    # Measure a copy, so that the trained model keeps its precision and mode.
    still = copy.deepcopy(model).double().eval()
    if name == "lora":
        factors = parameter_groups(still)["low_rank"]
        yield LORA, _landscape(still, factors, probe, seed), 0.0
        return
    gates = [m for m in still.modules() if isinstance(m, StochasticGate)]
    centres = torch.cat([gate.centre().detach() for gate in gates])
    saturated = float(((centres <= 0) | (centres >= 1)).double().mean())
    latents = parameter_groups(still)["gates"]
    yield TRAINED, _landscape(still, latents, probe, seed), saturated
    free = {str(i): gate.values for i, gate in enumerate(free_gates(still))}
    yield FREE, _landscape(still, free, probe, seed), saturated


def _landscape(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    probe: dict[str, Tensor],
    seed: tuple[object, ...],
) -> Local:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    loss: Callable[[], Tensor] = lambda: model(**probe).loss  # noqa: E731
    return local_landscape(
        loss, list(parameters.values()), seed=derive_seed("theory", "lanczos", *seed)
    )
