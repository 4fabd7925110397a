"""The runs of a search for learning rates as a tier, and the tier with the rates that it chose."""

from __future__ import annotations

from collections.abc import Mapping

from finegates.suite.config.methods import Method
from finegates.suite.config.rate_search import RateSearch
from finegates.suite.config.tier import Tier


def searched_tier(tier: Tier) -> Tier:
    """The trials of a tier's rate search as a tier: a method for each contender and factor.

    Data are the training rows alone: some are held out and scored. What trials start from, such as
    a teacher, is the trial with factor 1 of the method that it is in the tier, so that nothing has
    seen the rows that are held out.

    Args:
        tier: with a ``rate_search``.

    Raises:
        ValueError: it has none.
    """
    search = search_of(tier)
    own = {} if search.train_rows is None else {"train_rows": search.train_rows}
    changed = {
        "seeds": [search.seed],
        "data": tier.data.model_copy(
            update={
                "name": f"{tier.data.name}, held-out training rows",
                "held_out": search.held_out,
                "validation_rows": None,
                **own,
            }
        ),
        "methods": {
            trial_label(label, factor): _trial(tier.methods[label], label, factor)
            for label in search.contenders
            if label in tier.methods
            for factor in sorted(search.factors)
        },
        "rate_search": None,
        "studies": None,
        "llama": None,
        "theory": None,
        "step_benchmark": None,
        "inference_benchmarks": [],
    }
    return tier.model_copy(update=changed)


def trial_label(contender: str, factor: float) -> str:
    """What the record of a trial calls its method, such as ``lora-x0.333``."""
    return f"{contender}-x{factor:.3g}"


def with_factors(tier: Tier, factors: Mapping[str, float]) -> Tier:
    """The tier with learning rates times what was chosen on one task.

    Args:
        tier: configuration.
        factors: by contender.

    Raises:
        ValueError: a contender of the tier has none.
    """
    search = search_of(tier)
    missing = [c for c in search.contenders if c in tier.methods and c not in factors]
    if missing:
        raise ValueError(f"no rate was chosen for {', '.join(missing)}; run the rate search again")
    return tier.model_copy(
        update={
            "methods": {
                label: method
                if (contender := contender_of(tier, label)) is None
                else method.model_copy(update={"rate_factor": factors[contender]})
                for label, method in tier.methods.items()
            }
        }
    )


def contender_of(tier: Tier, label: str) -> str | None:
    """The contender whose rates a method of the tier has; None if they are not searched."""
    if tier.rate_search is None:
        return None
    if label in tier.rate_search.contenders:
        return label
    method = tier.methods.get(label)
    return None if method is None else method.rates_of


def search_of(tier: Tier) -> RateSearch:
    """The tier's rate search. Raises ValueError if it has none."""
    if tier.rate_search is None:
        raise ValueError(f"tier {tier.tier!r} has no rate_search")
    return tier.rate_search


def _trial(method: Method, label: str, factor: float) -> Method:
    changed: dict[str, object] = {
        "title": f"{method.title}, rates × {factor:.3g}",
        "rate_factor": factor,
        "rates_of": label,
    }
    if method.distillation is not None:
        teacher = trial_label(method.distillation.teacher, 1.0)
        changed["distillation"] = method.distillation.model_copy(update={"teacher": teacher})
    if method.prune is not None and method.prune.after is not None:
        after = trial_label(method.prune.after, 1.0)
        changed["prune"] = method.prune.model_copy(update={"after": after})
    return method.model_copy(update=changed)
