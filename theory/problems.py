"""Synthetic least-squares problems whose targets gates can or cannot reach.

Inputs X, a frozen weight W, and targets Y = X W*ᵀ + noise, with W* by one of three teachers:

- ``gates``: Diag(r*) W Diag(c*), which row and column gates can express.
- ``low-rank``: W plus a matrix of rank 1, which a low-rank adapter can express.
- ``dense``: W plus a full matrix, which neither can express.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finegates.seeds import derive_seed

Array = NDArray[np.float64]
Teacher = Literal["gates", "low-rank", "dense"]
TEACHERS: tuple[Teacher, ...] = ("gates", "low-rank", "dense")


@dataclass(frozen=True)
class Problem:
    """One least-squares problem.

    Attributes:
        inputs: X, shape (n, d).
        weight: W, shape (m, d).
        targets: Y, shape (n, m).
        name: family and number, for records.

    Raises:
        ValueError: shapes do not match, there are no samples, or a number is not finite.
    """

    inputs: Array
    weight: Array
    targets: Array
    name: str = "problem"

    def __post_init__(self) -> None:
        for label, array in (
            ("inputs", self.inputs),
            ("weight", self.weight),
            ("targets", self.targets),
        ):
            if array.ndim != 2 or 0 in array.shape:
                raise ValueError(
                    f"{self.name}: {label} must be a matrix with at least one entry, "
                    f"got shape {array.shape}"
                )
            if array.dtype != np.float64:
                raise ValueError(f"{self.name}: {label} must be float64, got {array.dtype}")
            if not np.isfinite(array).all():
                raise ValueError(f"{self.name}: {label} must be finite")
        (n, d), (m, columns) = self.inputs.shape, self.weight.shape
        if columns != d or self.targets.shape != (n, m):
            raise ValueError(
                f"{self.name}: inputs {n} x {d} and weight {m} x {columns} need equal columns, and "
                f"targets {n} x {m}, got {self.targets.shape}"
            )

    @property
    def samples(self) -> int:
        """n."""
        return self.inputs.shape[0]

    @property
    def rows(self) -> int:
        """m, the outputs."""
        return self.weight.shape[0]

    @property
    def cols(self) -> int:
        """d, the inputs."""
        return self.weight.shape[1]

    @property
    def second_moment(self) -> Array:
        """G = XᵀX/n, shape (d, d)."""
        return self.inputs.T @ self.inputs / self.samples

    @property
    def cross_moment(self) -> Array:
        """C = YᵀX/n, shape (m, d)."""
        return self.targets.T @ self.inputs / self.samples

    @property
    def null_loss(self) -> float:
        """‖Y‖²/2n, the loss of predicting zero."""
        return float(np.sum(self.targets**2)) / (2 * self.samples)


@dataclass(frozen=True)
class Family:
    """A family of random problems.

    Attributes:
        rows, cols, samples: m, d, n.
        condition: of G on its range.
        rank: of X; None for full rank.
        degenerate: adds a repeated column of X and W, a zero column and a zero row of W.
        noise: standard deviation of the noise in the targets.
        teacher: see the module's docstring.
    """

    rows: int
    cols: int
    samples: int
    condition: float
    rank: int | None = None
    degenerate: bool = False
    noise: float = 0.1
    teacher: Teacher = "gates"


FAMILIES: dict[str, Family] = {
    "well-conditioned": Family(8, 10, 40, condition=4.0),
    "ill-conditioned": Family(8, 10, 40, condition=1e3),
    "rank-deficient": Family(8, 10, 40, condition=4.0, rank=5, degenerate=True),
    # 8 equations for 12 column gates.
    "over-parameterised": Family(4, 12, 2, condition=2.0),
    # 720 equations for 18 gates that cannot express the teacher.
    "under-parameterised": Family(12, 6, 60, condition=4.0, noise=0.5, teacher="dense"),
}


def draw_problem(
    family: str, index: int, seed: int = 0, *, teacher: Teacher | None = None
) -> Problem:
    """Draws the ``index``-th problem of a family.

    Args:
        family: a key of ``FAMILIES``.
        index: its number; the random stream is derived from family, number and seed.
        seed: of the whole study.
        teacher: replaces the family's teacher.

    Raises:
        ValueError: unknown family or teacher.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; choose one of {', '.join(FAMILIES)}")
    settings = FAMILIES[family]
    teacher = teacher or settings.teacher
    if teacher not in TEACHERS:
        raise ValueError(f"unknown teacher {teacher!r}; choose one of {', '.join(TEACHERS)}")
    random = np.random.default_rng(derive_seed("theory", family, index, seed))
    m, d, n = settings.rows, settings.cols, settings.samples
    rank = min(n, d, settings.rank or d)
    left, _ = np.linalg.qr(random.standard_normal((n, rank)))
    right, _ = np.linalg.qr(random.standard_normal((d, rank)))
    spectrum = np.geomspace(1.0, 1.0 / settings.condition, rank)
    inputs = np.sqrt(n) * (left * np.sqrt(spectrum)) @ right.T
    weight = random.standard_normal((m, d)) / np.sqrt(d)
    if settings.degenerate:
        inputs[:, 1], weight[:, 1] = inputs[:, 0], weight[:, 0]
        weight[:, 2] = 0.0
        weight[3] = 0.0
    taught = _taught(teacher, weight, random)
    noise = settings.noise * random.standard_normal((n, m))
    return Problem(inputs, weight, inputs @ taught.T + noise, f"{family} {index}")


def _taught(teacher: Teacher, weight: Array, random: np.random.Generator) -> Array:
    m, d = weight.shape
    if teacher == "gates":
        # Outside [0, 1], so that bounds are active.
        rows, cols = random.uniform(-0.2, 1.3, (m,)), random.uniform(-0.2, 1.3, (d,))
        return rows[:, None] * weight * cols
    scale = 0.5 * float(np.linalg.norm(weight))
    if teacher == "low-rank":
        u, v = random.standard_normal(m), random.standard_normal(d)
        return weight + scale * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
    change = random.standard_normal((m, d))
    return weight + scale * change / np.linalg.norm(change)
