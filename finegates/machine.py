"""Properties of the machine that determine its speed."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_name() -> str:
    """The CPU model that the system reports, or its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def arithmetic() -> dict[str, str | int]:
    """Properties that decide which matmul is faster: CPU, threads, torch version."""
    import torch

    return {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
