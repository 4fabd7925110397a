"""Compaction: a gated model becomes a physically smaller one with the same outputs.

:func:`compact` folds evaluation gates and low-rank adapters into weights and removes what is
closed; :func:`save` and :func:`load` keep the result on disk without the original weights;
:func:`plan_compaction` says beforehand what would go, and why.
"""

from __future__ import annotations

from finegates.compaction.cost import CostModel, calibrate
from finegates.compaction.layers import CompactLinear
from finegates.compaction.plan import LayerPlan, Plan, plan_compaction
from finegates.compaction.products import use_products
from finegates.compaction.serialize import load, save
from finegates.compaction.structure import CompactFormatError
from finegates.compaction.transform import compact

__all__ = [
    "CompactFormatError",
    "CompactLinear",
    "CostModel",
    "LayerPlan",
    "Plan",
    "calibrate",
    "compact",
    "load",
    "plan_compaction",
    "save",
    "use_products",
]
