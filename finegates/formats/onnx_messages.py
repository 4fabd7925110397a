"""Keeps the messages of torch's ONNX exporter out of the way."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TextIO

logger = logging.getLogger(__name__)


class _Muted(io.TextIOBase):
    """A stream that drops what is written until it is opened.

    Log handlers that are made meanwhile keep it for good, so it then writes to the real one.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.is_open = False

    def write(self, text: str) -> int:
        return self.stream.write(text) if self.is_open else len(text)

    def flush(self) -> None:
        self.stream.flush()


@contextmanager
def without_messages_of_torch() -> Iterator[None]:
    """Within the block, log lines of torch and graphs that it prints are dropped.

    Its errors say why a model cannot be exported; before them it prints the graph as far as it is
    known, hundreds of lines. Logging of ``finegates`` at the level DEBUG leaves them in.
    """
    if logger.isEnabledFor(logging.DEBUG):
        yield
        return
    names = [name for name in logging.root.manager.loggerDict if f"{name}.".startswith("torch.")]
    handlers = {handler for name in names for handler in logging.getLogger(name).handlers}
    muted = _Muted(sys.stderr)
    for handler in handlers:
        handler.addFilter(_is_critical)
    try:
        with redirect_stderr(muted):
            yield
    finally:
        muted.is_open = True
        for handler in handlers:
            handler.removeFilter(_is_critical)


def _is_critical(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL
