"""Short film reviews whose verdict depends on what negation and contrast do to the words.

"good" counts against the film under "not", and in "although the plot is good, the music is dull"
the main clause decides. Reviews often contain words of the other polarity.
"""

from __future__ import annotations

from random import Random

from finegates.tasks.language.lexicon import ASPECTS, CRITICISM, PRAISE

VERDICTS: dict[bool, tuple[str, ...]] = {
    True: ("i enjoyed it", "i would recommend it", "i want to see it again", "what a success"),
    False: ("i hated it", "i would avoid it", "i want my money back", "what a failure"),
}
"""Closing remarks by polarity; they follow reviews in the corpus, never in the task."""


def opinion(positive: bool, rng: Random, *, reversed_: float = 0.25) -> list[str]:
    """Words of one clause with the given polarity; `reversed_` is the chance of a negated one."""
    turned = rng.random() < reversed_
    adjective = rng.choice(rng.choice(PRAISE if positive != turned else CRITICISM).wordings)
    aspect = ["the", rng.choice(rng.choice(ASPECTS).wordings)]
    if not turned:
        return [*aspect, "is", *rng.choice(([], ["really"], ["very"])), adjective]
    form = rng.randrange(4)
    if form == 0:
        return ["i", "do", "not", "think", *aspect, "is", adjective]
    return [*aspect, "is", *(["not"], ["hardly"], ["far", "from"])[form - 1], adjective]


def review(positive: bool, rng: Random) -> list[str]:
    """Words of a review with the given overall polarity."""
    form = rng.choices(range(6), weights=(3, 3, 1, 1, 1, 1))[0]
    main = opinion(positive, rng)
    if form == 0:
        return main
    if form == 1:
        return [*main, "and", *opinion(positive, rng)]
    concession = opinion(not positive, rng)
    if form == 2:
        return [*concession, "but", *main]
    if form == 3:
        return ["although", *concession, ",", *main]
    if form == 4:
        return [*main, "although", *concession]
    return ["despite", "that", *concession, ",", *main]
