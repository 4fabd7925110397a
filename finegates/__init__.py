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
    from finegates.attachment import GateConfig as GateConfig
    from finegates.attachment import attach as attach
    from finegates.attachment import attach_fixed as attach_fixed
    from finegates.attachment import detach as detach
    from finegates.baselines import add_lora as add_lora
    from finegates.baselines import magnitude_gates as magnitude_gates
    from finegates.budget import macs as macs
    from finegates.budget import measure_budget as measure_budget
    from finegates.compaction import CostModel as CostModel
    from finegates.compaction import calibrate as calibrate
    from finegates.compaction import compact as compact
    from finegates.compaction import load as load
    from finegates.compaction import plan_compaction as plan_compaction
    from finegates.compaction import save as save
    from finegates.compaction import use_products as use_products
    from finegates.distillation import Distillation as Distillation
    from finegates.distillation import with_teacher as with_teacher
    from finegates.gates import FixedGate as FixedGate
    from finegates.gates import StochasticGate as StochasticGate
    from finegates.layers import GatedLinear as GatedLinear
    from finegates.layers import gated_layers as gated_layers
    from finegates.monitor import summarise_gates as summarise_gates
    from finegates.onnx_export import export_onnx as export_onnx
    from finegates.peft_gates import attach_from_peft as attach_from_peft
    from finegates.stock import uniform as uniform
    from finegates.stock import uniform_cost as uniform_cost
    from finegates.task_state import load_task as load_task
    from finegates.task_state import save_task as save_task
    from finegates.train import GateTrainer as GateTrainer
    from finegates.train import GateTrainerMixin as GateTrainerMixin

# Loaded on first use: reading a configuration must not pay for torch and transformers.
_HOMES = {
    "GateConfig": "attachment",
    "attach": "attachment",
    "attach_fixed": "attachment",
    "attach_from_peft": "peft_gates",
    "detach": "attachment",
    "add_lora": "baselines",
    "magnitude_gates": "baselines",
    "measure_budget": "budget",
    "macs": "budget",
    "CostModel": "compaction",
    "calibrate": "compaction",
    "compact": "compaction",
    "load": "compaction",
    "plan_compaction": "compaction",
    "save": "compaction",
    "use_products": "compaction",
    "Distillation": "distillation",
    "with_teacher": "distillation",
    "FixedGate": "gates",
    "StochasticGate": "gates",
    "GatedLinear": "layers",
    "gated_layers": "layers",
    "summarise_gates": "monitor",
    "GateTrainer": "train",
    "GateTrainerMixin": "train",
    "load_task": "task_state",
    "save_task": "task_state",
    "export_onnx": "onnx_export",
    "uniform": "stock",
    "uniform_cost": "stock",
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
