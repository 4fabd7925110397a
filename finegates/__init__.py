"""Fine-tune, prune and physically shrink transformers with stochastic row and column gates.

>>> import finegates as fg
>>> fg.attach(model, fg.GateConfig(target=0.4))  # doctest: +SKIP
>>> fg.GateTrainer(model=model, args=args, train_dataset=data).train()  # doctest: +SKIP
>>> small = fg.compact(model)  # doctest: +SKIP
>>> fg.save(small, "out/")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from finegates.budget import macs as macs
    from finegates.budget import measure_budget as measure_budget
    from finegates.compaction import CostModel as CostModel
    from finegates.compaction import calibrate as calibrate
    from finegates.compaction import compact as compact
    from finegates.compaction import plan_compaction as plan_compaction
    from finegates.compaction import use_products as use_products
    from finegates.compaction.regating import attach as attach
    from finegates.compaction.regating import detach as detach
    from finegates.formats.card import model_card as model_card
    from finegates.formats.compact import load as load
    from finegates.formats.compact import save as save
    from finegates.formats.onnx import export_onnx as export_onnx
    from finegates.formats.peft import attach_from_peft as attach_from_peft
    from finegates.formats.stock import uniform as uniform
    from finegates.formats.stock import uniform_cost as uniform_cost
    from finegates.formats.task import load_task as load_task
    from finegates.formats.task import save_task as save_task
    from finegates.gates.attachment import attach_fixed as attach_fixed
    from finegates.gates.config import GateConfig as GateConfig
    from finegates.gates.gate import FixedGate as FixedGate
    from finegates.gates.gated_linear import GatedLinear as GatedLinear
    from finegates.gates.gated_linear import gated_layers as gated_layers
    from finegates.gates.monitor import summarise_gates as summarise_gates
    from finegates.gates.stochastic import StochasticGate as StochasticGate
    from finegates.lora import add_lora as add_lora
    from finegates.one_shot import magnitude_gates as magnitude_gates
    from finegates.pruning.to_budget import prune as prune
    from finegates.spec_search.description import describe as describe
    from finegates.training.distillation import Distillation as Distillation
    from finegates.training.distillation import with_teacher as with_teacher
    from finegates.training.trainer import GateTrainer as GateTrainer
    from finegates.training.trainer import GateTrainerMixin as GateTrainerMixin

# Loaded on first use: reading a configuration must not pay for torch and transformers.
_HOMES = {
    "GateConfig": "gates.config",
    "attach": "compaction.regating",
    "attach_fixed": "gates.attachment",
    "attach_from_peft": "formats.peft",
    "detach": "compaction.regating",
    "add_lora": "lora",
    "magnitude_gates": "one_shot",
    "prune": "pruning.to_budget",
    "measure_budget": "budget",
    "macs": "budget",
    "CostModel": "compaction",
    "calibrate": "compaction",
    "compact": "compaction",
    "describe": "spec_search.description",
    "load": "formats.compact",
    "model_card": "formats.card",
    "plan_compaction": "compaction",
    "save": "formats.compact",
    "use_products": "compaction",
    "Distillation": "training.distillation",
    "with_teacher": "training.distillation",
    "FixedGate": "gates.gate",
    "StochasticGate": "gates.stochastic",
    "GatedLinear": "gates.gated_linear",
    "gated_layers": "gates.gated_linear",
    "summarise_gates": "gates.monitor",
    "GateTrainer": "training.trainer",
    "GateTrainerMixin": "training.trainer",
    "load_task": "formats.task",
    "save_task": "formats.task",
    "export_onnx": "formats.onnx",
    "uniform": "formats.stock",
    "uniform_cost": "formats.stock",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'finegates' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"finegates.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
