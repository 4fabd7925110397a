"""The machine that computes, as far as speed depends on it."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_name() -> str:
    """The model of the CPU as the system names it, or its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def arithmetic() -> dict[str, str | int]:
    """What decides which of two products is the faster: CPU, threads, and the version of torch."""
    import torch

    return {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
