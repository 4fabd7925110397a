"""Chooses a small sample of the cases of a parameter matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def sample(cases: Sequence[Mapping[str, int]], most: int | None = None) -> list[int]:
    """Chooses a few cases in which every value of every parameter appears.

    The choice is greedy: always the first of the cases that add the most new values. So it is the
    same in every process.

    Args:
        cases: for each case, the index of the value of each parameter.
        most: the largest number of cases; those that add the most new values come first.

    Returns:
        the indices of the chosen cases, in increasing order.
    """
    missing = {value for case in cases for value in case.items()}
    chosen: list[int] = []
    while missing and (most is None or len(chosen) < most):
        new = [len(missing & set(case.items())) for case in cases]
        best = new.index(max(new))
        chosen.append(best)
        missing -= set(cases[best].items())
    return sorted(chosen)
