"""Publishes the finished runs of a tier that is not complete yet.

    python -m finegates.suite.finished results/base results/published/base

copies records, their predictions and the chosen learning rates, without tables and figures.
``make restore TIER=base`` continues from them, on another machine too. When a tier is complete,
``snakemake publish`` replaces these copies with all results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from finegates.suite.jobs.publication import publish
from finegates.suite.runs.predictions import checked_predictions
from finegates.suite.runs.signed import RecordError, signed_values

RECORDS = "runs/**/seed*.json"


class UnfinishedError(ValueError):
    """Publishing would lose copied runs. The message names the remedy."""


def finished_files(results: Path) -> list[Path]:
    """Verified files of all finished runs below a results folder.

    Args:
        results: ``results/<tier>``.

    Raises:
        RecordError: a record or a file of predictions is corrupt or missing.
    """
    files: list[Path] = []
    for record in sorted(results.rglob(RECORDS)):
        signed_values(record)
        predicted = checked_predictions(record)
        files += [record] if predicted is None else [record, predicted]
    return files + sorted((results / "search").glob("*.json"))


def publish_finished(results: Path, target: Path) -> None:
    """Copies :func:`finished_files` and replaces all earlier copies.

    Args:
        results: ``results/<tier>``.
        target: ``results/published/<tier>``.

    Raises:
        UnfinishedError: no run is finished, the copies are those of a complete tier, or they hold
            runs that the results lack.
        RecordError: see :func:`finished_files`.
    """
    files = finished_files(results)
    if not files:
        raise UnfinishedError(f"{results} holds no finished run")
    if (target / "tables").exists():
        raise UnfinishedError(f"{target} is of a finished tier; publish with snakemake publish")
    known = {path.relative_to(results) for path in files}
    lost = [p for p in target.rglob(RECORDS) if p.relative_to(target) not in known]
    if lost:
        raise UnfinishedError(
            f"{len(lost)} published runs, such as {lost[0]}, are not in {results}; continue from "
            f"the published ones (make restore TIER={target.name}) and publish then"
        )
    publish(files, results, target)


def main(arguments: Sequence[str] | None = None) -> None:
    """Publishes finished runs. On failure, exits with one line and status 1."""
    parser = argparse.ArgumentParser(description="Publish the finished runs of a tier.")
    parser.add_argument("results", type=Path, help="for example results/base")
    parser.add_argument("target", type=Path, help="for example results/published/base")
    given = parser.parse_args(arguments)
    try:
        publish_finished(given.results, given.target)
    except (RecordError, UnfinishedError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
