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
from torch import Tensor, nn
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

    def distance(self, logits: Tensor, teacher: Tensor, problem_type: str | None = None) -> Tensor:
        """How far logits are from the teacher's, a scalar, zero where they are equal.

        A mean over rows of

        - for regression the mean squared difference;
        - for classification ``T^2 KL(softmax(teacher / T) || softmax(logits / T))``;
        - for several labels at once the mean over labels of ``T^2 KL`` of the two Bernoulli
          distributions with logits ``teacher / T`` and ``logits / T``.

        T^2 keeps the size of its gradient when T changes.

        Args:
            logits: (batch, outputs), floating point; a single output also as (batch,).
            teacher: (batch, outputs), or (batch,).
            problem_type: ``"regression"``, ``"single_label_classification"`` or
                ``"multi_label_classification"``, as in a configuration of transformers. None is
                regression for one output and classification for several.

        Raises:
            ValueError: the shapes differ, or there is not one vector for each row.
        """
        given = tuple(logits.shape), tuple(teacher.shape)
        logits, teacher = _rows(logits).float(), _rows(teacher).float()
        if logits.ndim != 2 or teacher.ndim != 2:
            raise ValueError(
                f"logits are {given[0]}, the teacher's {given[1]}: distillation compares one "
                "vector of outputs for each row, (batch, outputs), as heads for classification and "
                "regression of whole sequences have it"
            )
        if logits.shape != teacher.shape:
            raise ValueError(
                f"logits are {given[0]}, the teacher's {given[1]}: was it trained on another task?"
            )
        if problem_type == "regression" or (problem_type is None and logits.shape[-1] == 1):
            return F.mse_loss(logits, teacher)
        T = self.temperature
        if problem_type == "multi_label_classification":
            logits, teacher = logits / T, teacher / T
            # KL of Bernoulli distributions is cross-entropy less entropy.
            goal = teacher.sigmoid()
            crossed = F.binary_cross_entropy_with_logits(logits, goal)
            return T**2 * (crossed - F.binary_cross_entropy_with_logits(teacher, goal))
        student, goal = F.log_softmax(logits / T, -1), F.log_softmax(teacher / T, -1)
        return T**2 * F.kl_div(student, goal, reduction="batchmean", log_target=True)


def logits_of(outputs: Any, *, behind_loss: bool) -> Tensor:
    """The logits in what a model returned.

    Args:
        outputs: a mapping or a tuple.
        behind_loss: whether a tuple begins with the loss, as it does where the model got labels.

    Raises:
        ValueError: there are none.
    """
    if isinstance(outputs, Mapping):
        logits, found = outputs.get("logits"), f"only {', '.join(map(str, outputs))}"
    else:
        place = int(behind_loss)
        logits = outputs[place] if len(outputs) > place else None
        found = f"a tuple of {len(outputs)}"
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"distillation needs the model's logits, and it returned {found}: it is for heads for "
            "classification and regression of whole sequences"
        )
    return logits


def problem_type(model: nn.Module) -> str | None:
    """What the configuration of a model says that its outputs are, as far as it does."""
    return getattr(getattr(model, "config", None), "problem_type", None)


def _rows(logits: Tensor) -> Tensor:
    # Some heads drop the dimension of a single output, or that of a single row with it.
    return logits.reshape(-1, 1) if logits.ndim < 2 else logits


def with_teacher(rows: Sequence[Mapping[str, Any]], logits: Tensor) -> list[dict[str, Any]]:
    """The rows of a data set, each with its teacher's logits, for a trainer with ``distillation``.

    Args:
        rows: n of them.
        logits: (n, outputs), in their order; a single output also as (n,).

    Raises:
        ValueError: not one row of logits for each row, logits of other shapes, or logits that are
            not finite.
    """
    if logits.ndim not in (1, 2):
        raise ValueError(
            f"the teacher's logits are {tuple(logits.shape)}; they must be (rows, outputs), one "
            "vector for each row"
        )
    if len(rows) != len(logits):
        raise ValueError(f"{len(rows)} rows, but logits of {len(logits)}")
    if not torch.isfinite(logits).all():
        raise ValueError("the teacher's logits are not finite")
    return [
        {**row, TEACHER_LOGITS: values} for row, values in zip(rows, logits.tolist(), strict=True)
    ]
