"""``finegates bench``: the time of a compact model against the dense one, on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from finegates.cli import options
from finegates.cli.layout import aligned

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

NOISE = 0.05
"""How far the dense model may be from itself before times are called noisy."""

_TEXT = """\
Time forward passes of a model against the dense one, in turn, round after round, so that what else
the machine does meets both alike. The dense model is timed twice: how far it is from itself tells
what a difference means here. Without --dense it is a model of the same class and configuration with
random weights, which take as long to multiply. A model with gates is compacted first.

example:
  finegates bench small/ --batch 8 --length 128 --threads 2
"""


def add(commands: options.Commands) -> None:
    """Describes the command."""
    parser = options.command(commands, "bench", "time dense against compact on this machine", _TEXT)
    options.add_model(parser)
    parser.add_argument("--dense", metavar="MODEL", help="the dense model to compare with")
    parser.add_argument("--batch", type=options.positive, default=8, help="sequences (8)")
    options.add_length(parser)
    parser.add_argument("--rounds", type=options.positive, default=30, help="that count (30)")
    options.add_cost(parser)
    options.add_threads(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Does the work; see the module."""
    threads = options.use_threads(arguments)
    import finegates as fg
    from finegates.cli import checkpoints
    from finegates.cli.inputs import example_inputs, input_names
    from finegates.cli.stopwatch import dense_twin, forward_pass
    from finegates.clock import interleaved

    cost = options.cost_model(arguments.cost)
    model = checkpoints.load_model(arguments.model)
    name = "model"
    if fg.gated_layers(model):
        model, name = fg.compact(model, cost=cost), "compact"
    dense = dense_twin(model)
    if arguments.dense is not None:
        dense = checkpoints.load_model(arguments.dense)
    for each in (model, dense):
        checkpoints.check_length(each, arguments.length)
    names = input_names(checkpoints.find_tokenizer(arguments.model))
    inputs = example_inputs(model, names, arguments.batch, arguments.length)
    if cost is not None:  # to both alike, so that removal alone makes the difference
        model, dense = fg.use_products(model, cost), fg.use_products(dense, cost)
    seconds = interleaved(
        {
            "dense": forward_pass(dense, inputs),
            "dense, again": forward_pass(dense, inputs),
            name: forward_pass(model, inputs),
        },
        arguments.rounds,
    )
    print(
        f"forward pass of {arguments.batch} x {arguments.length} tokens, {threads} "
        f"thread{'s' * (threads > 1)}, {arguments.rounds} interleaved rounds\n"
    )
    print(table(seconds))
    print(f"\n{_macs(dense, model, arguments)}")
    print(verdict(seconds))
    return 0


def table(seconds: Mapping[str, np.ndarray]) -> str:
    """Median and quartiles of each contender, and of its ratio to the dense model round by round.

    Args:
        seconds: arrays (rounds,) by contender; the first is what the others are compared with.
    """
    from finegates.cli.quantities import milliseconds
    from finegates.clock import quartiles

    first = next(iter(seconds.values()))
    rows = [("", "median", "quartiles", "ratio", "quartiles")]
    for name, values in seconds.items():
        low, middle, high = quartiles(values)
        less, ratio, more = quartiles(values / first)
        times = f"{milliseconds(low)} .. {milliseconds(high)}"
        rows.append(
            (name, milliseconds(middle), times, f"{ratio:.3f}", f"{less:.3f} .. {more:.3f}")
        )
    return aligned(rows)


def verdict(seconds: Mapping[str, np.ndarray]) -> str:
    """Whether the times can be trusted: the dense model has to be as fast as itself.

    Args:
        seconds: as of :func:`table`; the second contender is the first one again.
    """
    from finegates.clock import quartiles

    first, again, *_ = seconds.values()
    off = abs(quartiles(again / first)[1] - 1)
    if off > NOISE:
        return (
            f"noisy: the dense model differs from itself by {100 * off:.1f} %, more than "
            f"{100 * NOISE:.0f} %; run again when the machine does nothing else, or with more "
            "--rounds"
        )
    return f"steady: the dense model differs from itself by {100 * off:.1f} %"


def _macs(dense: nn.Module, model: nn.Module, arguments: argparse.Namespace) -> str:
    import finegates as fg
    from finegates.cli.quantities import change

    try:
        costs = [fg.macs(each, arguments.batch, arguments.length).total for each in (dense, model)]
    except ValueError as error:  # no adapter: times are all there is
        return f"MACs are not known: {error}"
    return f"MACs of the batch: {change(*costs)}"
