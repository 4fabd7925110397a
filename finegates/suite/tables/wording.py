"""Words for captions: current titles, names and descriptions.

Results do not depend on them, so a change of words does not retrain anything. A record keeps the
words of the time of its run. Tables and figures replace them with the current ones, and are made
again when these change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from finegates.suite.config.llama import CausalModel, TextSource
from finegates.suite.config.llama_runs import Run, study, title_of
from finegates.suite.config.tier import DataSource, ModelSource, Tier
from finegates.suite.runs.llama_record import CausalRecord, Text
from finegates.suite.runs.record import Record, TaskTables
from finegates.suite.runs.run_record import Model

Words = dict[str, Any]


def words_of(tier: Tier, labels: Iterable[str]) -> Words:
    """Words of a table of these methods' runs: a rule's ``words``."""
    return {
        "description": tier.description,
        "data": _named(tier.data),
        "model": _named(tier.model),
        "titles": {label: tier.all_methods[label].title for label in sorted(labels)},
    }


def text_words_of(tier: Tier, runs: Iterable[Run]) -> Words:
    """Words of a table of these text runs: a rule's ``words``."""
    llama = study(tier)
    posttraining = llama.posttraining
    models = {} if posttraining is None else posttraining.models
    return {
        "description": llama.description,
        "data": _named(llama.text),
        "models": {name: _named(model) for name, model in sorted(models.items())},
        "titles": dict(sorted({run.method: title_of(tier, run) for run in runs}.items())),
    }


def reworded(records: Iterable[Record], words: Mapping[str, Any]) -> list[Record]:
    """Replaces the words of records with those of :func:`words_of`.

    A model or data set keeps its name if its source or revision differs from the configuration.
    """
    return [
        record.model_copy(
            update={
                "config": record.config.model_copy(
                    update={
                        "title": words["titles"].get(record.method, record.config.title),
                        "tier_description": words["description"],
                    }
                ),
                "model": _renamed(record.model, words["model"]),
                "data": _renamed(record.data, words["data"]),
            }
        )
        for record in records
    ]


def text_reworded(records: Sequence[CausalRecord], words: Mapping[str, Any]) -> list[CausalRecord]:
    """Same as :func:`reworded`, with the words of :func:`text_words_of`."""
    found = []
    for record in records:
        update: dict[str, Any] = {
            "title": words["titles"].get(record.method, record.title),
            "config": record.config.model_copy(update={"tier_description": words["description"]}),
            "data": _renamed(record.data, words["data"]),
        }
        # A model that is trained from random weights is named by its size, which is in the path.
        if record.experiment == "posttraining" and record.name in words["models"]:
            update["model"] = _renamed(record.model, words["models"][record.name])
        found.append(record.model_copy(update=update))
    return found


def _named(source: ModelSource | DataSource | CausalModel | TextSource) -> dict[str, str | None]:
    return {"name": source.name, "source": source.kind, "revision": source.revision}


_Described = TypeVar("_Described", Model, TaskTables, Text)


def _renamed(described: _Described, words: Mapping[str, str | None]) -> _Described:
    """Renames an entry if its source and revision are those of the configuration."""
    if (described.source, described.revision) != (words["source"], words["revision"]):
        return described
    return described.model_copy(update={"name": words["name"]})
