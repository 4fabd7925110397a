"""Shared options of the commands: value types and help layout."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finegates.cli.failures import CommandError

if TYPE_CHECKING:
    from finegates import CostModel

Commands = Any
"""The type that ``ArgumentParser.add_subparsers`` returns, private in argparse."""


def command(commands: Commands, name: str, does: str, text: str) -> argparse.ArgumentParser:
    """Adds a command.

    Args:
        commands: see :data:`Commands`.
        name: of the command.
        does: one line for the list of commands.
        text: the description and, after an empty line, the examples, printed verbatim.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=does,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--traceback",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )
    return parser


def add_model(parser: argparse.ArgumentParser, what: str = "") -> None:
    """Adds the argument MODEL."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder in Hugging Face layout, a folder of finegates.save, a checkpoint of "
        f"GateTrainer, or a hub id{what}",
    )
    parser.add_argument(
        "--specs",
        type=Path,
        metavar="FILE.py",
        help="Python code that registers descriptions of the model's modules, such as what "
        "finegates.describe prints; it is run before the model is loaded, with all rights of "
        "yours, so read it first",
    )


def add_length(parser: argparse.ArgumentParser) -> None:
    """Adds the option for the length of a sequence."""
    parser.add_argument(
        "--length", type=positive, default=128, metavar="N", help="tokens of a sequence (128)"
    )


def check_new(path: Path, option: str) -> None:
    """Raises CommandError if the path of a new folder exists."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise CommandError(f"{option} {path}: exists already; choose another folder, or move it")


def add_threads(parser: argparse._ActionsContainer) -> None:
    """Adds the option for the number of CPU threads."""
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads of torch (default: its own)"
    )


def use_threads(arguments: argparse.Namespace) -> int:
    """Sets torch's number of threads, if it was given, and returns the one in use."""
    import torch

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    return torch.get_num_threads()


def add_cost(parser: argparse._ActionsContainer) -> None:
    """Adds the option for the cost model of compaction."""
    parser.add_argument(
        "--cost",
        default="smallest",
        metavar="smallest|measured|FILE",
        help="'smallest' removes all that it can (default); 'measured' times this machine for a "
        "second and keeps sides whose removal would be slower; FILE is such a measurement "
        "(CostModel.save)",
    )


def cost_model(choice: str, measure: Callable[[], CostModel] | None = None) -> CostModel | None:
    """The cost model that ``--cost`` selects.

    Args:
        choice: the value of the option.
        measure: measures this machine; None selects ``finegates.calibrate``.

    Raises:
        CommandError: the file does not exist.
        ValueError: the file is not a cost model.
    """
    import finegates as fg

    if choice == "smallest":
        return None
    if choice == "measured":
        return fg.calibrate() if measure is None else measure()
    if not Path(choice).is_file():
        raise CommandError(
            f"--cost {choice}: no such file; use 'smallest', 'measured', or a file of "
            "CostModel.save"
        )
    return fg.CostModel.load(choice)


def cost_settings(choice: str) -> Any:
    """The choice of ``--cost`` as plain values; the content of a file.

    Raises:
        CommandError, ValueError: as for :func:`cost_model`.
    """
    if choice in ("smallest", "measured"):
        return choice
    cost = cost_model(choice)
    assert cost is not None
    return cost.as_dict()


def positive(text: str) -> int:
    """Parses an integer of at least 1, for argparse."""
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def seed(text: str) -> int:
    """Parses an integer of at least 0, for argparse."""
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value


def fraction(text: str) -> float:
    """Parses a number in (0, 1), for argparse."""
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return value


def rate(text: str) -> float:
    """Parses a finite number above 0, for argparse."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
