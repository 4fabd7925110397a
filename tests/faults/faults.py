"""Every fault and its outcome, as a table: ``python tests/faults/faults.py`` (``make faults``).

Kills fall at random moments; the other faults are tried one by one. All of them end with a
comparison, byte for byte, with an undisturbed run of the same workflow.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from damages import damage_made_good, damage_met_by_a_job, damaged_files
from interruptions import (
    clock_set_back,
    damaged_checkpoints,
    deleted_intermediates,
    full_disk,
    jobs_left_alone,
    memory_cut_short,
    read_only_results,
    two_runs_at_once,
)
from kills import Kills, kill_at_random
from outcomes import Outcome
from scratch import Scratch

from finegates.files import write_text
from finegates.suite.tables import Column, Table

CASES: tuple[Callable[[Path, Scratch], Iterator[Outcome]], ...] = (
    two_runs_at_once,
    jobs_left_alone,
    damaged_checkpoints,
    damaged_files,
    damage_met_by_a_job,
    damage_made_good,
    deleted_intermediates,
    memory_cut_short,
    full_disk,
    read_only_results,
    clock_set_back,
)

KILLS = 30

SEED = 0


def undisturbed(folder: Path) -> Scratch:
    """A run from scratch without any fault, on two cores.

    Raises:
        RuntimeError: it fails by itself.
    """
    scratch = Scratch(folder)
    if scratch.run(scratch.command(2)):
        raise RuntimeError(f"the undisturbed run fails:\n{scratch.printed}")
    return scratch


def all_faults(folder: Path, count: int) -> tuple[Kills, list[Outcome]]:
    """Kills and the other faults in parallel: each takes one core."""
    begin = time.monotonic()
    whole = undisturbed(folder / "undisturbed")
    duration = 2 * (time.monotonic() - begin)  # on one core
    with ThreadPoolExecutor(1) as beside:
        kills = beside.submit(kill_at_random, folder, whole, count, seed=SEED, duration=duration)
        others = []
        for case in CASES:
            for outcome in case(folder / case.__name__, whole):
                print(f"{outcome.fault} ({outcome.where}): {outcome.found}", flush=True)
                others.append(outcome)
        return kills.result(), others


def faults_table(kills: Kills, others: Iterable[Outcome]) -> Table:
    """One row for each rule in which kills occurred, then one for each other fault."""
    fell = Counter(kills.at)
    rows = []
    for where in sorted(fell):
        of_rule = [outcome for outcome in kills.outcomes if outcome.where == where]
        worst = next((o for o in of_rule if not o.as_expected), of_rule[0])
        rows.append((worst, fell[where]))
    rows += [(outcome, 1) for outcome in others]
    numbers = pd.DataFrame(
        [
            {
                "fault": outcome.fault,
                "where": outcome.where,
                "times": times,
                "expected": outcome.expected,
                "found": outcome.found,
                "message": outcome.message,
            }
            for outcome, times in rows
        ]
    )
    good = sum(outcome.as_expected for outcome, _ in rows)
    return Table(
        name="faults",
        title="Faults and what came of them",
        caption=(
            f"{good} of {len(rows)} rows as expected. The smoke tier, cut down (tests/faults/"
            f"reduced.yaml). {len(kills.at)} times SIGKILL to the whole workflow at random moments "
            "(a row for each rule that was running), each followed by the same command; the other "
            "faults one by one. recovers: the same command, and every table, every record (times "
            "aside) and every model ends with the bytes of an undisturbed run, with nothing left "
            "behind; after each kill the files that are there have these bytes already. refuses: "
            "an error that names thing and remedy, and no table is made."
        ),
        numbers=numbers,
        columns=(
            Column("Fault", "fault", text=True),
            Column("Where", "where", text=True),
            Column("Times", "times"),
            Column("Expected", "expected", text=True),
            Column("Found", "found", text=True),
            Column("What the user reads", "message", text=True),
        ),
        rows=numbers.to_dict("records"),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 if any outcome is not the expected one."""
    parser = argparse.ArgumentParser(description="Try faults on the workflow, tabulate outcomes.")
    parser.add_argument("folders", nargs="+", type=Path, help="where to write faults.csv and .md")
    parser.add_argument("--kills", type=int, default=KILLS)
    given = parser.parse_args(arguments)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        kills, others = all_faults(Path(folder), given.kills)
    table = faults_table(kills, others)
    for folder in given.folders:
        write_text(folder / "faults.csv", table.csv())
        write_text(folder / "faults.md", table.markdown())
    wrong = [outcome for outcome in (*kills.outcomes, *others) if not outcome.as_expected]
    for outcome in wrong:
        print(f"not as expected: {outcome}", file=sys.stderr)
    print(f"{len(kills.at)} kills and {len(others)} other outcomes in "
          f"{time.monotonic() - begin:.0f} s; {len(wrong)} not as expected")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
