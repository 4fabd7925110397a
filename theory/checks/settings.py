"""Sizes and seed of a study, shared by all checks."""

from __future__ import annotations

import numpy as np

from finegates.seeds import derive_seed
from finegates.suite.config.theory import Theory
from theory.problems import FAMILIES, Problem, draw_problem


class Settings(Theory):
    """Sizes and seed of a study, and the problems and random streams that they determine."""

    def drawn(self, *families: str) -> list[Problem]:
        """Problems of the named families, of all families by default."""
        return [
            draw_problem(family, index, self.seed)
            for family in families or FAMILIES
            for index in range(self.problems)
        ]

    def random(self, *names: object) -> np.random.Generator:
        """The random stream of a name."""
        return np.random.default_rng(derive_seed("theory", self.seed, *names))


ROUNDING = 1e-9
"""Relative tolerance of closed forms against independent evaluations on these problems.

Both sides sum at most 800 products with condition numbers up to 10^3 in front of them, which is
10^3 · 800 · eps ≈ 2·10^-10."""
