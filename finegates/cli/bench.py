"""``finegates bench``: time a compact model against the dense one."""

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
"""Relative difference between two timings of the dense model that counts as noise."""

_TEXT = """\
Time forward passes of a model against the dense one in interleaved rounds, so that other load on
the machine affects both alike. The dense model is timed twice: the difference between its two times
shows the noise. Without --dense it is a model of the same class and configuration with random
weights, which take as long to multiply. A model with gates is compacted first.

example:
  finegates bench small/ --batch 8 --length 128 --threads 2
"""


def add(commands: options.Commands) -> None:
    """Registers the command."""
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
    """Runs the command; see the module."""
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
    if cost is not None:  # for both models, so that they differ only by the removal
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
        seconds: arrays (rounds,) by contender; the others are compared with the first.
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
    """Says whether the times are reliable: the dense model must be as fast as itself.

    Args:
        seconds: as for :func:`table`; the second contender repeats the first.
    """
    from finegates.clock import quartiles

    first, again, *_ = seconds.values()
    off = abs(quartiles(again / first)[1] - 1)
    if off > NOISE:
        return (
            f"noisy: the dense model differs from itself by {100 * off:.1f} %, more than "
            f"{100 * NOISE:.0f} %; run again on an idle machine, or with more "
            "--rounds"
        )
    return f"steady: the dense model differs from itself by {100 * off:.1f} %"


def _macs(dense: nn.Module, model: nn.Module, arguments: argparse.Namespace) -> str:
    import finegates as fg
    from finegates.cli.quantities import change

    try:
        costs = [fg.macs(each, arguments.batch, arguments.length).total for each in (dense, model)]
    except ValueError as error:  # no adapter, so only times are known
        return f"MACs are not known: {error}"
    return f"MACs of the batch: {change(*costs)}"
