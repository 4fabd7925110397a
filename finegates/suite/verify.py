"""Verifies the SHA-256 of a tier's results: all seals and all records.

    finegates verify local

exits with status 1 if a file is corrupt, and names the file and the remedy. ``make reproduce``
begins with it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from finegates.suite.config.load import ConfigError, configured_tier
from finegates.suite.jobs.seals import damaged
from finegates.suite.runs.predictions import checked_predictions
from finegates.suite.runs.signed import UNSIGNED_VERSION, RecordError, signed_values

SKEW_S = 60
"""Largest difference between the clocks of machines that share a file system."""


def verify(results: str | Path) -> tuple[str, list[str]]:
    """Verifies a results folder.

    Returns:
        a summary of the checked files, and a message for each corrupt file and for dates that
        cannot be trusted.
    """
    # A kill may leave a checkpoint half deleted. A resumed run looks for a complete one itself.
    sealed, messages = damaged(results, skip=[Path(results) / "llama" / "checkpoints"])
    messages += _from_the_future(Path(results))
    signed = unsigned = 0
    for path in sorted(Path(results).rglob("runs/**/seed*.json")):
        try:
            version = signed_values(path)["format_version"]
            checked_predictions(path)
        except RecordError as error:
            messages.append(str(error))
            continue
        signed += version != UNSIGNED_VERSION
        unsigned += version == UNSIGNED_VERSION
    told = f"{sealed} sealed files and folders, {signed} records with a digest of their own"
    if unsigned:
        told += f" (and {unsigned} from before records had one, which nothing can vouch for)"
    return told, messages


def _from_the_future(results: Path) -> list[str]:
    """A message if the clock was set back since results were written.

    New results would otherwise look older than their inputs.
    """
    dates = {path: path.stat().st_mtime for path in results.rglob("*")}
    newest = max(dates, key=lambda path: dates[path], default=None)
    if newest is None or dates[newest] <= time.time() + SKEW_S:
        return []
    return [
        f"{newest} is dated {time.ctime(dates[newest])}, in the future: the clock was set back. "
        f"Set it right, or give all results one date (find {results} -exec touch {{}} +), and run "
        "again"
    ]


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the command in the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="finegates verify", description="Check that results are as their jobs wrote them."
    )
    parser.add_argument("tier", nargs="?", default="smoke", help="as of --config tier=")
    try:
        results = configured_tier({"tier": parser.parse_args(arguments).tier}).results
    except ConfigError as error:
        print(f"error: {error}")
        return 1
    if not Path(results).is_dir():
        print(f"{results} is not there yet: nothing to check")
        return 0
    told, messages = verify(results)
    for message in dict.fromkeys(messages):
        print(f"error: {message}")
    if not messages:
        print(f"{results} is as its jobs wrote it: {told}")
    return 1 if messages else 0
