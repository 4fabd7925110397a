"""The experiment on a Llama as a classifier, as a tier of its own."""

from __future__ import annotations

from finegates.suite.config.llama_runs import study
from finegates.suite.config.tier import Tier


def task_tier(tier: Tier) -> Tier:
    """The tier with the settings of its section ``llama.on_task``.

    Raises:
        ValueError: the tier does not have this section.
    """
    on_task = study(tier).on_task
    if on_task is None:
        raise ValueError(f"tier {tier.tier!r} has no section 'llama.on_task'")
    return tier.model_copy(
        update={
            "description": study(tier).description,
            "model": on_task.model,
            "data": on_task.data or tier.data,
            "tasks": on_task.tasks,
            "training": on_task.training,
            "methods": on_task.methods,
        }
    )
