"""One of two processes (gloo, on the CPU) that train a model together while it shrinks.

A test starts it with torchrun's variables. It writes the differences between trainings with and
without removal, and between the two processes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from support.shrinking import CONFIG, Rounding, differences, fresh, kept, train


def main(folder: Path, architecture: str) -> None:
    rank = os.environ["RANK"]
    options = {"per_device_train_batch_size": 4, "ddp_backend": "gloo"}
    out = folder / f"out{rank}"
    dense = train(fresh(architecture, kept(CONFIG)), out, **options)
    small = train(fresh(architecture, CONFIG), out, **options)
    moved = train(fresh(architecture, kept(CONFIG)), out, Rounding(0), **options)
    assert small[1].accelerator.num_processes == 2
    found = {
        "found": differences(dense, small),
        "bound": differences(dense, moved),
        "sizes": [sum(p.numel() for p in each[0].parameters()) for each in (dense, small)],
    }
    torch.save(small[0].state_dict(), folder / f"small{rank}.pt")
    (folder / f"found{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
