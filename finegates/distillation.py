"""Learning from a teacher's logits beside the labels (Hinton, Vinyals and Dean 2015).

A dense model that was fine-tuned first says, for every training row, how likely it finds each
class; the smaller model follows it where labels alone would say less. The teacher's logits are
computed once and travel with the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TEACHER_LOGITS = "teacher_logits"
"""The key of a row, and of a batch, that holds them: (outputs,) and (batch, outputs)."""


@dataclass(frozen=True)
class Distillation:
    """How much a training follows the teacher.

    The task loss becomes ``(1 - weight) * task + weight * distance`` (:meth:`distance`).

    Attributes:
        weight: in [0, 1].
        temperature: T > 0; above 1 the teacher's second choices count for more.
    """

    weight: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise ValueError(f"weight must lie in [0, 1], got {self.weight}")
        if not self.temperature > 0.0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def distance(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """How far logits are from the teacher's, a scalar, zero where they are equal.

        With one output (regression) the mean squared difference; else
        ``T^2 KL(softmax(teacher / T) || softmax(logits / T))``, the mean over rows. T^2 keeps the
        size of its gradient when T changes.

        Args:
            logits: (batch, outputs), floating point.
            teacher: (batch, outputs).

        Raises:
            ValueError: the shapes differ.
        """
        if logits.shape != teacher.shape:
            raise ValueError(
                f"logits are {tuple(logits.shape)}, the teacher's {tuple(teacher.shape)}: was it "
                "trained on another task?"
            )
        logits, teacher = logits.float(), teacher.float()
        if logits.shape[-1] == 1:
            return F.mse_loss(logits, teacher)
        T = self.temperature
        student, goal = F.log_softmax(logits / T, -1), F.log_softmax(teacher / T, -1)
        return T**2 * F.kl_div(student, goal, reduction="batchmean", log_target=True)


def with_teacher(rows: Sequence[Mapping[str, Any]], logits: Tensor) -> list[dict[str, Any]]:
    """The rows of a data set, each with its teacher's logits, for a trainer with ``distillation``.

    Args:
        rows: n of them.
        logits: (n, outputs), in their order.

    Raises:
        ValueError: not one row of logits for each row, or logits that are not finite.
    """
    if len(rows) != len(logits):
        raise ValueError(f"{len(rows)} rows, but logits of {len(logits)}")
    if not torch.isfinite(logits).all():
        raise ValueError("the teacher's logits are not finite")
    return [
        {**row, TEACHER_LOGITS: values} for row, values in zip(rows, logits.tolist(), strict=True)
    ]
