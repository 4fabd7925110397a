"""The program: commands, help and exit status."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

import finegates as fg
from finegates.cli import bench, compact, export, plan, shrink, suite
from finegates.cli.failures import one_line
from finegates.cli.quiet import quiet
from finegates.cli.specs import run_specs

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

COMMANDS = (plan, shrink, compact, export, bench)

_TEXT = """\
Fine-tune, prune and physically shrink transformers with stochastic gates.

One command makes a smaller model for your task out of a pretrained one:

  finegates shrink MODEL --train reviews.csv --target 0.4 --out small/

MODEL is a folder in Hugging Face layout or a hub id. This removes 40 % of the multiply-accumulates
(MACs) of its layers. The result is a physically smaller model in small/ for finegates.load, with
its tokenizer and a summary. Each command has its own help: finegates COMMAND --help.
"""

_END = """\
Results go to standard output, progress and errors to standard error. A file or folder that a
command writes appears whole or not at all.

exit status:
  0    success
  1    failure; one line names the problem, its place and the remedy (verify and compare: a file is
       corrupt or results differ)
  2    wrong usage, or compare cannot read a folder
  130  interrupted; shrink continues if the same command is given again
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the words after the program's name; those of the process if None.

    Returns:
        the exit status (see ``finegates --help``).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    shows = "--traceback" in words
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except SystemExit as end:  # of argparse
        return end.code if isinstance(end.code, int) else USAGE
    except KeyboardInterrupt:
        print("finegates: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader closed the pipe
        # Python flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # users get one line; --traceback shows the rest
        if shows:
            traceback.print_exc()
        print(f"finegates: error: {one_line(error)}", file=sys.stderr)
        return FAILED


def _run(words: Sequence[str]) -> int:
    # Commands of the suite parse their own arguments; argparse would intercept some of them.
    own = [word for word in words if word != "--traceback"]
    if own and own[0] in suite.SUITE:
        return suite.run(own[0], own[1:])
    chosen = parser().parse_args(words)
    if chosen.command is None:
        parser().print_help(sys.stderr)
        return USAGE
    with quiet():
        if chosen.specs is not None:
            run_specs(chosen.specs)
        status: int = chosen.run(chosen)
    return status


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    made = argparse.ArgumentParser(
        prog="finegates",
        description=_TEXT,
        epilog=_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"finegates {fg.__version__}")
    made.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    commands = made.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for module in COMMANDS:
        module.add(commands)
    for name, (_, does) in suite.SUITE.items():
        commands.add_parser(name, help=does, add_help=False)
    return made
