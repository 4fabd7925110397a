"""Compaction: make a gated model physically smaller, with the same outputs.

:func:`compact` folds evaluation gates and low-rank adapters into weights and removes closed rows
and columns; :func:`plan_compaction` lists the removals and their reasons beforehand.
"""

from __future__ import annotations

from finegates.compaction.cost import CostModel
from finegates.compaction.measured_cost import calibrate
from finegates.compaction.planner import LayerPlan, Plan, plan_compaction
from finegates.compaction.products import use_products
from finegates.compaction.transform import compact
from finegates.modules.compact_linear import CompactLinear

__all__ = [
    "CompactLinear",
    "CostModel",
    "LayerPlan",
    "Plan",
    "calibrate",
    "compact",
    "plan_compaction",
    "use_products",
]
