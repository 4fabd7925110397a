"""Which cases of a matrix of parameters run when only a sample is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def sample(cases: Sequence[Mapping[str, int]], most: int | None = None) -> list[int]:
    """Chooses few cases in which every value of every parameter appears.

    Args:
        cases: for each case the number of the value that each parameter takes.
        most: take no more cases than that, those that show most new values first.

    Returns:
        the cases chosen, as increasing positions. Greedy: of the cases that show most values not
        yet seen, the first; so the choice is the same in every process.
    """
    missing = {value for case in cases for value in case.items()}
    chosen: list[int] = []
    while missing and (most is None or len(chosen) < most):
        new = [len(missing & set(case.items())) for case in cases]
        best = new.index(max(new))
        chosen.append(best)
        missing -= set(cases[best].items())
    return sorted(chosen)
