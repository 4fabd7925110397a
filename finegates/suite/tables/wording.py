"""Words of a tier for captions: titles, names, descriptions, as the configuration has them today.

No result depends on them, so a change of words trains nothing. A record keeps the words of the day
that it was made; tables and figures replace them by those of the configuration, and are made again
when these change.
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
    """Words that a table of runs by these methods uses.

    They are a rule's parameter ``words``.
    """
    return {
        "description": tier.description,
        "data": _named(tier.data),
        "model": _named(tier.model),
        "titles": {label: tier.all_methods[label].title for label in sorted(labels)},
    }


def text_words_of(tier: Tier, runs: Iterable[Run]) -> Words:
    """The words that a table of these runs on plain text uses; a rule's parameter ``words``."""
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
    """The records with the words of :func:`words_of`.

    A model or a table of another source or revision than the configuration's keeps its own name.
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
    """The records with the words of :func:`text_words_of`, otherwise as :func:`reworded`."""
    found = []
    for record in records:
        update: dict[str, Any] = {
            "title": words["titles"].get(record.method, record.title),
            "config": record.config.model_copy(update={"tier_description": words["description"]}),
            "data": _renamed(record.data, words["data"]),
        }
        # A model that is trained from random weights is called by its size, which is in the path.
        if record.experiment == "posttraining" and record.name in words["models"]:
            update["model"] = _renamed(record.model, words["models"][record.name])
        found.append(record.model_copy(update=update))
    return found


def _named(source: ModelSource | DataSource | CausalModel | TextSource) -> dict[str, str | None]:
    return {"name": source.name, "source": source.kind, "revision": source.revision}


_Described = TypeVar("_Described", Model, TaskTables, Text)


def _renamed(described: _Described, words: Mapping[str, str | None]) -> _Described:
    """The entry with the name of the words, where both are of one source and revision."""
    if (described.source, described.revision) != (words["source"], words["revision"]):
        return described
    return described.model_copy(update={"name": words["name"]})
