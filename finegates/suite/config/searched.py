"""The trials of a rate search as a tier, and a tier with the chosen rates."""

from __future__ import annotations

from collections.abc import Mapping

from finegates.suite.config.methods import Method
from finegates.suite.config.rate_search import RateSearch
from finegates.suite.config.tier import Tier


def searched_tier(tier: Tier) -> Tier:
    """A tier's rate search as a tier, with a method per contender and factor.

    Trials use training rows only, of which some are held out and scored. A trial that starts from
    another run, such as a teacher, starts from that method's trial with factor 1. Held-out rows are
    therefore never trained on.

    Args:
        tier: a tier with a ``rate_search``.

    Raises:
        ValueError: the tier does not have a rate search.
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
        "training_benchmark": None,
        "time_budget_benchmark": None,
        "inference_benchmarks": [],
    }
    return tier.model_copy(update=changed)


def trial_label(contender: str, factor: float) -> str:
    """The method's label in the record of a trial, such as ``lora-x0.333``."""
    return f"{contender}-x{factor:.3g}"


def with_factors(tier: Tier, factors: Mapping[str, float]) -> Tier:
    """The tier with learning rates scaled by the factors chosen on one task.

    Args:
        tier: configuration.
        factors: chosen factors by contender.

    Raises:
        ValueError: the factor of a contender is missing.
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
    """The contender whose rates a method takes, None without a search."""
    if tier.rate_search is None:
        return None
    if label in tier.rate_search.contenders:
        return label
    method = tier.methods.get(label)
    return None if method is None else method.rates_of


def search_of(tier: Tier) -> RateSearch:
    """The tier's rate search. Raises ValueError if there is none."""
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
