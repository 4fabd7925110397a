"""Sizes of the theory's checks and of its measurements on a network."""

from __future__ import annotations

from pydantic import Field

from finegates.suite.config.section import Section as Section


class NetworkLook(Section):
    """Measurements of the theory's quantities on the tier's encoder.

    They are taken along a training with gates and one with LoRA.

    Attributes:
        task: one of the tier's tasks; None takes the first.
        steps: training steps of each of the two.
        looks: number of points, both ends included, at which the gradient and extreme eigenvalues
            are measured.
        rows: number of training rows in the measured loss; None: 256, or all if there are fewer.
        seeds: of head, gates, factors, noise and order of rows; each of the two trainings is
            repeated for every seed.
        target: target sparsity of the gates.
        rank: rank of LoRA's factors.
        learning_rate: learning rate of the head and of LoRA.
        gate_learning_rate: learning rate of gates.
    """

    task: str | None = None
    steps: int = Field(default=200, gt=0)
    looks: int = Field(default=5, ge=2)
    rows: int | None = Field(default=None, gt=0)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    target: float = Field(default=0.2, ge=0, lt=0.84)
    rank: int = Field(default=8, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    gate_learning_rate: float = Field(default=2e-3, gt=0)


class Theory(Section):
    """Sizes of the checks of the package ``theory`` on random problems.

    Attributes:
        problems: problems of each family per checked law.
        trials: problems of each family in the comparison of gates with LoRA.
        limit: maximum number of steps of gradient descent in that comparison.
        runs: runs of stochastic gradient descent.
        steps: maximum number of steps of stochastic gradient descent.
        samples: samples of Monte Carlo means.
        gate_steps: training steps of single gates with a penalty.
        seed: seed of all random problems.
        network: see :class:`NetworkLook`.
    """

    problems: int = Field(default=8, ge=1)
    trials: int = Field(default=200, ge=2)
    limit: int = Field(default=1000, ge=10)
    runs: int = Field(default=64, ge=8)
    steps: int = Field(default=10_000, ge=1000)
    samples: int = Field(default=200_000, ge=1000)
    gate_steps: int = Field(default=1500, ge=10)
    seed: int = 0
    network: NetworkLook = NetworkLook()
