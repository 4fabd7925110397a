"""``finegates plan``: what could be removed from a model, and its costs."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from finegates.blocks import Experts
from finegates.cli import options
from finegates.cli.layout import aligned

if TYPE_CHECKING:
    from torch import nn

    from finegates import CostModel
    from finegates.compaction import Plan

_TEXT = """\
Print what a model costs and what could be removed; nothing is written. For a dense model: the MACs
of each block, the dimensions that would get gates, and the MACs that a target leaves. For a model
with gates: what compaction would remove, layer by layer, and why. For a compact one: what is left.

examples:
  finegates plan MODEL --target 0.4
  finegates plan out/checkpoint-400 --cost measured
"""

_DIMENSIONS = {
    "heads": "heads",
    "scores": "query-key",
    "values": "value",
    "hidden": "feed-forward",
    "experts": "expert",
    "inputs": "read",
    "memory": "read (encoder)",
    "outputs": "written",
}
"""Kinds of gated dimensions of a block, in the order of the report."""


def add(commands: options.Commands) -> None:
    """Registers the command."""
    parser = options.command(
        commands, "plan", "print what could be removed and what it costs", _TEXT
    )
    options.add_model(parser)
    parser.add_argument(
        "--target", type=options.fraction, default=0.4, help="fraction of the MACs to remove (0.4)"
    )
    options.add_length(parser)
    options.add_cost(parser)
    options.add_threads(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; see the module."""
    options.use_threads(arguments)
    import finegates as fg
    from finegates.cli import checkpoints
    from finegates.compaction.reopening import is_compact

    model = checkpoints.load_model(arguments.model)
    budget = fg.measure_budget(model)
    cost = options.cost_model(arguments.cost, lambda: _measured(model, arguments.length))
    print(f"{arguments.model}: {_counted(model, budget)}")
    if fg.gated_layers(model):
        print(_of_gated(model, arguments.length, cost))
    elif is_compact(model):
        print(_of_compact(model, arguments.length, budget))
    else:
        print(_of_dense(model, arguments, cost))
    return 0


def _measured(model: Any, length: int) -> CostModel:
    """The costs of a model on this machine, or those of single layers if it cannot be run."""
    import finegates as fg

    try:
        return fg.calibrate(model, length=length)
    except ValueError as error:
        print(f"costs of single layers, because {error}", file=sys.stderr)
        return fg.calibrate(length=length)


def _counted(model: Any, budget: Any) -> str:
    from finegates.cli.quantities import large

    inside = budget.encoder_parameters
    return f"{type(model).__name__}, {large(budget.all_parameters)} parameters" + (
        "" if inside is None else f", {large(inside)} of them in its blocks"
    )


def _of_gated(model: nn.Module, length: int, cost: CostModel | None) -> str:
    import finegates as fg
    from finegates.budget import planned_macs
    from finegates.cli.quantities import change

    before, after = fg.macs(model, 1, length).total, planned_macs(model, 1, length).total
    return (
        f"MACs of a sequence of {length} tokens, once compact: {change(before, after)}\n\n"
        f"{fg.plan_compaction(model, cost=cost)}\n\nfinegates compact carries it out"
    )


def _of_compact(model: nn.Module, length: int, budget: Any) -> str:
    import finegates as fg
    from finegates.cli.quantities import change, large

    kept = budget.gated_weights - (budget.removed_weights or 0)
    weights = change(budget.gated_weights, kept) if budget.gated_weights else "no"
    return (
        f"compact already: {weights} weights in its compact layers\n"
        f"MACs of a sequence of {length} tokens: {large(fg.macs(model, 1, length).total)}"
    )


def _of_dense(model: nn.Module, arguments: argparse.Namespace, cost: CostModel | None) -> str:
    import finegates as fg
    from finegates.adapters import adapter_for
    from finegates.adapters.undescribed import undescribed_line
    from finegates.cli.quantities import large
    from finegates.gates.attachment import attach

    length: int = arguments.length
    total = fg.macs(model, 1, length)
    target: float = arguments.target
    # Not fg.attach, which would log what is printed below.
    attach(model, fg.GateConfig(preset="structured", target=target, sequence_length=length))
    plan = fg.plan_compaction(model, cost=cost)
    blocks = plan.blocks
    costs = [block.macs[0] * length + block.attention_macs[0] * length**2 for block in blocks]
    rows = [("block", "MACs", "share", *(("us a token",) if cost else ()), "could go")]
    for block, macs in zip(blocks, costs, strict=True):
        time = () if block.seconds is None else (f"{1e6 * block.seconds:.1f}",)
        share = f"{100 * macs / total.total:.1f} %"
        rows.append((block.path, large(macs), share, *time, _closable(model, block.path)))
    specs = "" if arguments.specs is None else f" --specs {arguments.specs}"
    left = (1 - arguments.target) * total.total
    without = undescribed_line(adapter_for(model).blocks(model))
    return (
        f"MACs of a sequence of {length} tokens: {large(total.total)} in {len(blocks)} blocks "
        f"({large(total.linear)} in linear layers, {large(total.attention)} in attention)\n"
        f"{_time(plan)}{'' if without is None else without + chr(10)}\n"
        f"{aligned(rows, left=(0, len(rows[0]) - 1))}\n\n"
        f"a target of {arguments.target:g} leaves {large(left)} MACs; which dimensions are "
        "removed is learnt from your data:\n"
        f"finegates shrink {arguments.model}{specs} --train FILE --target {arguments.target:g} "
        "--out DIR"
    )


def _time(plan: Plan) -> str:
    """The predicted time of a sequence, and the part of it outside of the blocks."""
    if plan.times is None or plan.times.length is None:
        return ""
    length, seconds = plan.times.length, plan.times.dense
    inside = sum(block.seconds for block in plan.blocks if block.seconds is not None)
    return (
        f"predicted time of a sequence of {length} tokens: {1e3 * length * seconds:.3g} ms, "
        f"{max(0.0, 1 - inside / seconds):.0%} of it outside of the blocks\n"
    )


def _closable(model: Any, path: str) -> str:
    """Number of gated dimensions of a block, by kind."""
    counts: dict[str, int] = {}
    for part in model.finegates_structure:
        if not _is_below(part.part, path):
            continue
        for field in dataclasses.fields(part):
            size = getattr(getattr(part, field.name), "size", None)
            if isinstance(size, int) and field.name in _DIMENSIONS:
                kind = "experts" if isinstance(part.part, Experts) else field.name
                counts[kind] = counts.get(kind, 0) + size
    return ", ".join(f"{counts[key]} {word}" for key, word in _DIMENSIONS.items() if key in counts)


def _is_below(part: Any, path: str) -> bool:
    if isinstance(part, Experts):
        return bool(part.path.startswith(f"{path}."))
    return any(name.startswith(f"{path}.") for name in part.linears())
