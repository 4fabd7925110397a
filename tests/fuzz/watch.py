"""Watches the side effects of reading a file.

Reading must start no process, use no network, no pickle, no module of the file's folder, and write
nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class ForbiddenAct(BaseException):
    """A forbidden side effect of reading, which no reader may catch."""


_FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile",
    "subprocess.Popen", "pty.spawn", "pickle.find_class", "marshal.loads", "code.__new__",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "ctypes.dlopen",
    "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "os.mkdir", "shutil.rmtree", "shutil.move", "shutil.copyfile",
)  # fmt: skip

_importing = frozenset({"marshal.loads", "ctypes.dlopen", "code.__new__"})
"""Acts that importing a library performs as well; forbidden outside an import."""

_watching = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        if writes and str(path) != os.devnull:
            raise ForbiddenAct(f"{path} is opened for writing ({mode})")
    elif event == "exec":
        code = arguments[0]
        if str(getattr(code, "co_filename", "")).startswith(tempfile.gettempdir()):
            raise ForbiddenAct(f"{code.co_filename} is run")
    elif event.startswith(_FORBIDDEN) and not (event in _importing and _imports()):
        raise ForbiddenAct(f"{event}{arguments!r}"[:300])


def _imports() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


sys.addaudithook(_audit)
sys.dont_write_bytecode = True


@contextmanager
def watched() -> Iterator[None]:
    """Raises :class:`ForbiddenAct` before any forbidden act within the block."""
    global _watching
    _watching = True
    try:
        yield
    finally:
        _watching = False
