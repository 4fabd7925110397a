"""``finegates export``: write a compact model for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from finegates.cli import options
from finegates.cli.failures import CommandError

_TEXT = """\
Write a model for programs that do not know finegates: as an ONNX graph with dynamic batch and
length, checked by ONNX Runtime before it appears, or as a stock transformers model for
from_pretrained, padded to one size for all layers, with the tokenizer if there is one next to the
model.

examples:
  finegates export small/ --onnx small.onnx
  finegates export small/ --stock stock/
"""


def add(commands: options.Commands) -> None:
    """Registers the command."""
    parser = options.command(commands, "export", "write an ONNX graph or a stock checkpoint", _TEXT)
    options.add_model(parser, "; compact or dense")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="write an ONNX graph")
    parser.add_argument("--stock", type=Path, metavar="DIR", help="write a stock model")
    parser.add_argument(
        "--tolerance",
        type=options.rate,
        default=1e-4,
        help="largest difference of an output that the ONNX graph may have (0.0001)",
    )
    options.add_threads(parser)
    parser.set_defaults(run=run, usage_error=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; see the module."""
    if arguments.onnx is None and arguments.stock is None:
        arguments.usage_error("say what to write: --onnx FILE, --stock DIR, or both")
    if arguments.stock is not None:
        options.check_new(arguments.stock, "--stock")
    if arguments.onnx is not None and arguments.onnx.is_dir():
        raise CommandError(f"--onnx {arguments.onnx}: is a folder; name a file in it")
    options.use_threads(arguments)
    import finegates as fg
    from finegates.cli import checkpoints
    from finegates.cli.inputs import example_inputs, input_names
    from finegates.files import whole_folder
    from finegates.modules.cards import read_card

    model = checkpoints.load_model(arguments.model)
    if fg.gated_layers(model):
        raise CommandError(
            f"{arguments.model}: the {type(model).__name__} has gates; remove what they close with "
            "finegates compact first"
        )
    tokenizer = checkpoints.find_tokenizer(arguments.model)
    if arguments.onnx is not None:
        # finegates.load keeps the dtype of the saved model.
        inputs = example_inputs(model, input_names(tokenizer), batch=2, length=8)
        worst = fg.export_onnx(model.float(), arguments.onnx, inputs, tolerance=arguments.tolerance)
        print(f"wrote {arguments.onnx}: its output differs from the model's by {worst:.1e} at most")
    if arguments.stock is not None:
        stock = fg.uniform(model, card=read_card(arguments.model))
        with whole_folder(arguments.stock) as aside:
            stock.save_pretrained(aside)  # type: ignore[operator]
            if tokenizer is not None:
                tokenizer.save_pretrained(aside)
        print(
            f"wrote {arguments.stock}: a stock {type(stock).__name__} for from_pretrained"
            f"{'' if tokenizer is None else ', and its tokenizer'}"
        )
    return 0
