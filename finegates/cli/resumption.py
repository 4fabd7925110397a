"""Resumable runs: a folder for checkpoints and settings.

An unfinished run has its checkpoints and settings in ``OUT.partial``. The same command continues
there; a run with other settings is refused, and so is a second process.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from finegates.cli.failures import CommandError
from finegates.files import parse_json, write_text

SETTINGS = "settings.json"
LOCK = ".lock"
WHOLE = "whole"
"""An empty file, written last, that marks a complete checkpoint."""


def partial_folder(out: Path) -> Path:
    """The folder for the checkpoints of an unfinished run."""
    return out.with_name(f"{out.name}.partial")


def check_same(kept: Mapping[str, Any], settings: Mapping[str, Any], place: Path) -> None:
    """Raises CommandError, naming them, if the settings of two runs differ."""
    plain = json.loads(json.dumps(dict(settings)))
    differing = [
        f"{name.replace('_', ' ')}: {_shown(kept.get(name))} there, {_shown(plain.get(name))} here"
        for name in {**kept, **plain}
        if kept.get(name) != plain.get(name)
    ]
    if differing:
        raise CommandError(
            f"{place} is of a run with other settings ({'; '.join(differing)}); give the same "
            f"settings, or choose another --out, or delete {place}; nothing was changed"
        )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def check_continues(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Checks that a run may use a folder, which does not change.

    Returns:
        the settings of the unfinished run there; empty without one.

    Raises:
        CommandError: the folder belongs to another run, or contains other files.
    """
    kept = _remembered(folder) if folder.exists() else {}
    if kept:
        check_same(kept, settings, folder)
    return kept


@contextmanager
def at_work(folder: Path, settings: Mapping[str, Any]) -> Iterator[Path | None]:
    """Locks the folder of an unfinished run within the block.

    Args:
        folder: made if missing.
        settings: plain values that determine the result.

    Yields:
        the last complete checkpoint, or None. Incomplete checkpoints are deleted.

    Raises:
        CommandError: the folder belongs to another run, contains other files, or another process is
            using it.
    """
    kept = check_continues(folder, settings)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not kept:
            write_text(folder / SETTINGS, json.dumps(dict(settings), indent=1) + "\n")
        yield _last_checkpoint(folder)


def remembered(folder: Path) -> bool:
    """Whether a folder belongs to an unfinished run."""
    return (folder / SETTINGS).is_file()


def remove(folder: Path) -> None:
    """Deletes the folder of a finished run.

    The settings are deleted last, so that a folder left by a kill is still recognised.
    """
    for path in sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
        shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


class SealedCheckpoints(TrainerCallback):
    """Marks a checkpoint as complete, and deletes files that are not read."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called after a checkpoint was written."""
        place = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        # A pickle; the settings are stored as JSON.
        (place / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        for file in place.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        (place / WHOLE).touch()


def _remembered(folder: Path) -> dict[str, Any]:
    try:
        kept = parse_json((folder / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {LOCK}:
            return {}
        kept = None
    except (OSError, ValueError):
        kept = None
    if not isinstance(kept, dict):
        raise CommandError(
            f"{folder} is not the folder of an unfinished run: its {SETTINGS} is missing or "
            "corrupt; move or delete it, or choose another --out"
        )
    return kept


def _last_checkpoint(folder: Path) -> Path | None:
    found = {
        int(path.name.rpartition("-")[2]): path
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.rpartition("-")[2].isdigit()
    }
    for path in found.values():
        if not (path / WHOLE).is_file():
            shutil.rmtree(path)
    whole = [step for step in found if found[step].is_dir()]
    return found[max(whole)] if whole else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a lock that the kernel releases when the process ends."""
    try:
        import fcntl
    except ImportError:  # Windows: start one run at a time
        yield
        return
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                f"{folder}: another process is using it; wait for it, or end it"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
