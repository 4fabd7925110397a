"""How large a study is, and what every check shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finegates.seeds import derive_seed
from theory.problems import FAMILIES, Problem, draw_problem


@dataclass(frozen=True)
class Settings:
    """Sizes and seed of a study.

    Attributes:
        problems: random problems of each family in a check.
        trials: random problems of each family in the comparison of gates and adapters.
        limit: steps of steepest descent at most.
        runs: of stochastic descent.
        steps: of stochastic descent at most.
        samples: of Monte-Carlo means.
        gate_steps: of training single gates under a penalty.
        seed: of everything.
    """

    problems: int = 8
    trials: int = 200
    limit: int = 1000
    runs: int = 64
    steps: int = 10_000
    samples: int = 200_000
    gate_steps: int = 1500
    seed: int = 0

    def __post_init__(self) -> None:
        least = {
            "problems": 1,
            "trials": 2,
            "limit": 10,
            "runs": 8,
            "steps": 1000,
            "samples": 1000,
            "gate_steps": 10,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(
                    f"theory settings: {name} must be at least {low}, got {getattr(self, name)}"
                )

    def drawn(self, *families: str) -> list[Problem]:
        """The problems of some families, of all if none is named."""
        return [
            draw_problem(family, index, self.seed)
            for family in families or FAMILIES
            for index in range(self.problems)
        ]

    def random(self, *names: object) -> np.random.Generator:
        """A stream of random numbers that belongs to a name."""
        return np.random.default_rng(derive_seed("theory", self.seed, *names))


ROUNDING = 1e-9
"""Relative tolerance of closed forms against independent evaluations on these problems.

Both sides sum at most 800 products with condition numbers up to 10^3 in front of them, which is
10^3 · 800 · eps ≈ 2·10^-10."""
