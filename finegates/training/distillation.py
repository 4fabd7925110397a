"""Knowledge distillation from stored logits (Hinton, Vinyals and Dean 2015).

A dense model that was fine-tuned first is the teacher. Its logits for every training row are
computed once and stored with the row, and the smaller model learns from them and from the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEACHER_LOGITS = "teacher_logits"
"""Key of the teacher's logits in a row, (outputs,), and a batch, (batch, outputs)."""


@dataclass(frozen=True)
class Distillation:
    """Weight and temperature of knowledge distillation.

    The task loss becomes ``(1 - weight) * task + weight * distance`` (:meth:`distance`).

    Attributes:
        weight: in [0, 1].
        temperature: T > 0; above 1 the teacher's less likely classes count for more.
    """

    weight: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise ValueError(f"weight must be in [0, 1], got {self.weight}")
        if not self.temperature > 0.0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def distance(self, logits: Tensor, teacher: Tensor, problem_type: str | None = None) -> Tensor:
        """Distance of logits from the teacher's, a scalar, zero if they are equal.

        It is a mean over rows of

        - for regression the mean squared difference;
        - for classification ``T^2 KL(softmax(teacher / T) || softmax(logits / T))``;
        - for several labels at once the mean over labels of ``T^2 KL`` of the two Bernoulli
          distributions with logits ``teacher / T`` and ``logits / T``.

        The factor T^2 keeps the scale of the gradient independent of T.

        Args:
            logits: (batch, outputs), floating point; a single output also as (batch,).
            teacher: (batch, outputs), or (batch,).
            problem_type: ``"regression"``, ``"single_label_classification"`` or
                ``"multi_label_classification"``, as in a configuration of transformers. None is
                regression for one output and classification for several.

        Raises:
            ValueError: the shapes differ, or are not one vector per row.
        """
        given = tuple(logits.shape), tuple(teacher.shape)
        logits, teacher = _rows(logits).float(), _rows(teacher).float()
        if logits.ndim != 2 or teacher.ndim != 2:
            raise ValueError(
                f"logits are {given[0]}, the teacher's {given[1]}: distillation compares one "
                "vector of outputs per row, (batch, outputs), as heads for sequence "
                "classification and regression return"
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
            # KL of Bernoulli distributions is cross-entropy minus entropy.
            goal = teacher.sigmoid()
            crossed = F.binary_cross_entropy_with_logits(logits, goal)
            return T**2 * (crossed - F.binary_cross_entropy_with_logits(teacher, goal))
        student, goal = F.log_softmax(logits / T, -1), F.log_softmax(teacher / T, -1)
        return T**2 * F.kl_div(student, goal, reduction="batchmean", log_target=True)


def logits_of(outputs: Any, *, behind_loss: bool) -> Tensor:
    """Extracts the logits from a model's outputs.

    Args:
        outputs: a mapping or a tuple.
        behind_loss: whether a tuple begins with the loss, as it does if the model got labels.

    Raises:
        ValueError: there are no logits.
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
            "sequence classification and regression"
        )
    return logits


def problem_type(model: nn.Module) -> str | None:
    """The ``problem_type`` of a model's configuration, or None."""
    return getattr(getattr(model, "config", None), "problem_type", None)


def _rows(logits: Tensor) -> Tensor:
    # Some heads squeeze a single output, and a single row with it.
    return logits.reshape(-1, 1) if logits.ndim < 2 else logits


def with_teacher(rows: Sequence[Mapping[str, Any]], logits: Tensor) -> list[dict[str, Any]]:
    """Adds the teacher's logits to the rows of a data set.

    Args:
        rows: n of them.
        logits: (n, outputs), in the order of the rows; a single output also as (n,).

    Returns:
        rows for a trainer with ``distillation``.

    Raises:
        ValueError: the number of rows and logits differs, or the logits have another shape or are
            not finite.
    """
    if logits.ndim not in (1, 2):
        raise ValueError(
            f"the teacher's logits are {tuple(logits.shape)}; they must be (rows, outputs), one "
            "vector per row"
        )
    if len(rows) != len(logits):
        raise ValueError(f"{len(rows)} rows, but logits of {len(logits)}")
    if not torch.isfinite(logits).all():
        raise ValueError("the teacher's logits are not finite")
    return [
        {**row, TEACHER_LOGITS: values} for row, values in zip(rows, logits.tolist(), strict=True)
    ]
