"""``finegates compact``: compact a gated checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from finegates.cli import options
from finegates.cli.failures import CommandError

_TEXT = """\
Remove the rows and columns that the gates of a trained model have closed. The outputs equal those
of the gated model, up to rounding. The result is written to a new folder for finegates.load, with
the tokenizer of the gated model's folder, if any.

example:
  finegates compact out/checkpoint-400 --out small/
  finegates compact out/checkpoint-400 --out small/ --cost measured
"""


def add(commands: options.Commands) -> None:
    """Registers the command."""
    parser = options.command(commands, "compact", "compact a gated checkpoint and save it", _TEXT)
    options.add_model(parser, "; with gates")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="a new folder")
    options.add_cost(parser)
    options.add_length(parser)
    options.add_threads(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; see the module."""
    options.check_new(arguments.out, "--out")
    options.use_threads(arguments)
    import finegates as fg
    from finegates.cli import checkpoints
    from finegates.cli.quantities import change
    from finegates.files import whole_folder

    model = checkpoints.load_model(arguments.model)
    if not fg.gated_layers(model):
        raise CommandError(
            f"{arguments.model}: the {type(model).__name__} has no gates, so there is nothing to "
            "remove; train it with gates first: finegates shrink, or finegates.GateTrainer"
        )
    before = fg.measure_budget(model).all_parameters
    small = fg.compact(model, cost=options.cost_model(arguments.cost))
    tokenizer = checkpoints.find_tokenizer(arguments.model)
    with whole_folder(arguments.out) as aside:
        fg.save(small, aside)
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)
    costs = [fg.macs(each, 1, arguments.length).total for each in (model, small)]
    print(
        f"MACs of a sequence of {arguments.length} tokens: {change(*costs)}\n"
        f"parameters: {change(before, sum(p.numel() for p in small.parameters()))}\n"
        f"wrote {arguments.out}: the model (finegates.load)"
        f"{'' if tokenizer is None else ', its tokenizer'}"
    )
    return 0
