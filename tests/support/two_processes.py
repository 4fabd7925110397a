"""One of two processes (gloo, on the CPU) that train together, step by step.

Tests start it with torchrun's variables. It writes its observations with ``torch.save``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from finegates.training.distillation import Distillation, with_teacher
from finegates.training.trainer import NonFiniteLossError
from support.training_rows import model_for, rows_for, trained


def main(folder: Path, head: str, architecture: str, preset: str, options: dict) -> None:
    rank = int(os.environ["RANK"])
    rows = rows_for(head, 16)
    if options.get("nan"):
        rows[5]["labels"] = float("nan")  # the second micro-batch of the second process
    kwargs = {}
    if options.get("teacher"):
        teacher = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
        rows = with_teacher(rows, teacher)
        kwargs["distillation"] = Distillation(weight=0.3)
    try:
        gradients, trainer = trained(
            model_for(head, architecture, preset, penalty_weight=2.0),
            rows,
            folder / f"out{rank}",
            options["micro_batch"],
            8 // options["micro_batch"],
            arguments={"ddp_backend": "gloo"},
            **kwargs,
        )
    except NonFiniteLossError as error:
        (folder / f"error{rank}").write_text(str(error))
        return
    assert trainer.accelerator.num_processes == 2
    torch.save(
        {"gradients": gradients, "logs": trainer.state.log_history}, folder / f"found{rank}.pt"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:5], json.loads(sys.argv[5]))
