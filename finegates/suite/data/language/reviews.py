"""Short film reviews whose polarity depends on negation and contrast.

"not" reverses the polarity of "good", and in "although plot is good , music is dull" the main
clause decides. Reviews often contain words of the other polarity.
"""

from __future__ import annotations

from random import Random

from finegates.suite.data.language.lexicon import ASPECTS, CRITICISM, PRAISE

REMARKS = ("we saw it", "i saw it", "they saw it")
"""What follows a review in the corpus; its connective alone tells whether the review is good."""


def opinion(positive: bool, rng: Random) -> list[str]:
    """Words of one clause with the given polarity, negated or not."""
    turned = rng.random() < 0.25
    adjective = rng.choice(rng.choice(PRAISE if positive != turned else CRITICISM).wordings)
    words = [rng.choice(rng.choice(ASPECTS).wordings), "is"]
    return [*words, rng.choice(("not", "hardly") if turned else ("very", "really")), adjective]


def review(positive: bool, rng: Random) -> list[str]:
    """Words of a review with the given overall polarity."""
    form = rng.choices(range(4), weights=(2, 4, 2, 2))[0]
    main = opinion(positive, rng)
    if form == 0:
        return main
    if form == 1:
        return [*main, "and", *opinion(positive, rng)]
    concession = opinion(not positive, rng)
    if form == 2:
        return [*concession, "but", *main]
    return ["although", *concession, ",", *main]
