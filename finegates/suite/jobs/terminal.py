"""Terminal output of a workflow run: one line per job, and the time left.

Snakemake's own messages, with inputs, outputs and reasons of every job, are still written to its
log file in ``.snakemake/log``. Its options ``--verbose``, ``--printshellcmds``, ``--debug-dag`` and
``--quiet`` restore its own terminal output.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from snakemake.logging import logger as snakemake_logger
from snakemake_interface_logger_plugins.common import LogEvent

from finegates.suite.jobs.times import Times, spoken

SHOWN_LINES = 20
"""Lines printed from the end of a failed job's log."""

FIRST_SILENCE_S = 30.0
LAST_SILENCE_S = 480.0
"""Longest silence while jobs run; it doubles from the first to the last."""

LISTED_RULES = 8
"""Rules that the announcement of a run lists, those that take longest."""

_COMMON = (
    "Assuming unrestricted", "Building DAG", "Using shell", "Conda environments", "Select jobs",
    "Execute ", "Singularity containers", "Reasons:", "This was a dry-run", "Elapsed time",
    "Write-protecting", "Removing output files of failed job", "Would remove temporary",
    "Removing temporary output", "Rules with provenance", "Some jobs were triggered",
    "The run involves",
)  # fmt: skip


class Terminal(logging.Handler):
    """Writes one line for each finished job, and the errors of failed ones.

    Args:
        stream: output stream.
        results: folder of the tier's results.
        times: durations of earlier jobs by rule.
        dry: a dry run, which prints a table of the planned rules.
        render: Snakemake's formatter, for records that do not belong to a job.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        stream: TextIO,
        results: Path,
        times: Times,
        *,
        dry: bool,
        render: Callable[[logging.LogRecord], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.stream = stream
        self.results = results
        self.times = times
        self.cores: int | None = None  # Snakemake's number of cores; None on a cluster
        self.dry = dry
        self.render = render
        self.clock = clock
        self.begin = self.last = clock()
        self.silence = FIRST_SILENCE_S
        self.planned: Counter[str] = Counter()
        self.running: dict[int, tuple[str, str, int, float]] = {}  # id: rule, label, threads, begin
        self.ended: tuple[str, float] | None = None
        self.planned_once = False

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the lines for a record of Snakemake's logger, if there are any."""
        try:
            lines = list(self._lines(record))
            if lines:
                self._write(lines)
        except BrokenPipeError:
            raise
        except Exception:
            self.handleError(record)

    def look(self) -> None:
        """Lists the running jobs if nothing was written for a while."""
        with self.lock:  # type: ignore[union-attr]
            now = self.clock()
            if not self.running or now - self.last < self.silence:
                return
            at_work = sorted((begin, label) for _, label, _, begin in self.running.values())
            named = [f"{label} ({spoken(now - begin)})" for begin, label in at_work[:4]]
            more = f" and {len(at_work) - 4} more" if len(at_work) > 4 else ""
            self._write([f"{'':>11}at work: {', '.join(named)}{more}"])
            self.silence = min(2 * self.silence, LAST_SILENCE_S)

    def _write(self, lines: Iterable[str]) -> None:
        self.stream.write("".join(f"{line}\n" for line in lines))
        self.stream.flush()
        self.last = self.clock()

    def _lines(self, record: logging.LogRecord) -> Iterable[str]:
        event = getattr(record, "event", None)
        told = record.__dict__
        if event == LogEvent.RUN_INFO:
            yield from self._announce(told["stats"])
        elif event == LogEvent.RESOURCES_INFO:
            self.cores = told.get("cores", self.cores)
        elif event == LogEvent.JOB_INFO:
            if not self.dry:
                label = " ".join([told["rule_name"], *map(str, told["wildcards"].values())])
                job = (told["rule_name"], label, told["threads"], self.clock())
                self.running[told["jobid"]] = job
        elif event == LogEvent.JOB_FINISHED:
            self._finish(told["job_id"])
        elif event == LogEvent.PROGRESS:
            yield from self._progress(told["done"], told["total"])
        elif event == LogEvent.JOB_ERROR:
            yield from self._failure(told)
        elif record.levelno >= logging.WARNING or (
            event is None and not str(record.msg or "").strip().startswith(_COMMON)
        ):
            text = self.render(record)
            # The failed job's own lines follow, so Snakemake's message is dropped.
            if text.strip() and "CalledProcessError in file" not in text:
                yield text
            if text.startswith("Nothing to be done"):
                yield from self._where()

    def _announce(self, stats: Mapping[str, int]) -> Iterable[str]:
        if self.planned_once:  # a dry run repeats its plan at the end
            return
        self.planned_once = True
        self.planned = Counter({rule: n for rule, n in stats.items() if rule != "total"})
        total = sum(self.planned.values())
        cores = "" if self.cores is None else f" on {counted(self.cores, 'core')}"
        known = all(rule in self.times.known for rule in self.planned if rule != "all")
        left = self.times.left(self.planned, self.cores or 1)
        about = f", about {spoken(left)}{self.times.source}" if known and left else ""
        yield f"{counted(total, 'job')}{'' if self.dry else cores}{about}"
        expected = {rule: self.times.of(rule, n) for rule, n in self.planned.items()}
        shown = list(self.planned) if self.dry else sorted(
            (rule for rule, seconds in expected.items() if seconds), key=lambda r: -expected[r]
        )[:LISTED_RULES]  # fmt: skip
        width = max((len(rule) for rule in shown), default=0)
        for rule in shown:
            about = f"  {spoken(expected[rule]):>12}" if expected[rule] else ""
            yield f"  {rule:<{width}}  {self.planned[rule]:>4}{about}"
        if self.dry:
            yield "A dry run: nothing was started. --verbose shows inputs, outputs and reasons."
        else:
            if shown and len(shown) < len(self.planned):
                others = sum(n for rule, n in self.planned.items() if rule not in shown)
                yield f"  and {counted(others, 'shorter job')}"
            yield f"Logs of jobs: {self.results}/logs; of Snakemake: .snakemake/log"

    def _finish(self, number: int) -> None:
        if number in self.running:
            rule, label, threads, begin = self.running.pop(number)
            seconds = self.clock() - begin
            self.planned[rule] -= 1
            self.times.add(rule, seconds, threads)
            self.ended = label, seconds

    def _progress(self, done: int, total: int) -> Iterable[str]:
        label, seconds = self.ended or ("", 0.0)
        self.silence = FIRST_SILENCE_S
        now = self.clock()
        spent: Counter[str] = Counter()
        for rule, _, _, begin in self.running.values():
            spent[rule] += now - begin  # type: ignore[assignment]
        parallel = self.cores or max(1, len(self.running))  # a cluster runs all submitted jobs
        left = self.times.left(self.planned, parallel, spent)
        about = f"   about {spoken(left)} left" if left >= 1 and done < total else ""
        yield f"{done:>4} of {total:<4} {label:<44} {spoken(seconds):>12}{about}"
        if done == total:
            self.times.write()
            yield f"Done in {spoken(now - self.begin)}."
            yield from self._where()

    def _failure(self, told: Mapping[str, Any]) -> Iterable[str]:
        self.running.pop(told["jobid"], None)
        yield f"FAILED: {told['rule_name']} (job {told['jobid']}); outputs: {few(told['output'])}"
        for path in told["log"]:
            try:
                text = Path(path).read_text(encoding="utf-8", errors="replace")
            except OSError:
                yield f"log: {path} (not written)"
                continue
            last = [line.rpartition("\r")[2] for line in text.splitlines()][-SHOWN_LINES:]
            yield f"log: {path}; its last lines:" if last else f"log: {path} (empty)"
            yield from last

    def _where(self) -> Iterable[str]:
        places = {
            "report.html": "every verdict, table, figure and run on one page",
            "tables": "tables as CSV, Markdown and LaTeX",
            "figures": "figures as SVG, PNG and PDF",
        }
        found = {name: what for name, what in places.items() if (self.results / name).exists()}
        if found:
            yield "Look at"
        for name, what in found.items():
            yield f"  {self.results / name!s:<32} {what}"


def counted(number: int, noun: str) -> str:
    """A number with its noun, in singular or plural."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def few(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def show_jobs(workflow: Any, results: str | Path, tier: str) -> Terminal | None:
    """Replaces Snakemake's terminal output with one line per job.

    Args:
        workflow: Snakemake's workflow object, while it reads the Snakefile.
        results: folder of the tier's results.
        tier: name of the tier, under which times of earlier runs are stored.

    Returns:
        the new handler; None if Snakemake's own output stays, which is the case in the process of a
        single job, and with options that ask for more or less output.
    """
    asked = workflow.output_settings
    if asked.quiet or asked.verbose or asked.printshellcmds or asked.debug_dag:
        return None
    if workflow.exec_mode.name != "DEFAULT":
        return None
    for old in snakemake_logger.handlers:
        if old.name == "DefaultStreamHandler":
            break
    else:
        return None
    terminal = Terminal(
        old.stream,
        Path(results),
        Times.read(tier),
        dry=asked.dryrun,
        render=old.format,
    )
    snakemake_logger.removeHandler(old)
    snakemake_logger.addHandler(terminal)

    def watch() -> None:
        while terminal in snakemake_logger.handlers:
            time.sleep(1)
            terminal.look()

    threading.Thread(target=watch, daemon=True).start()
    return terminal
