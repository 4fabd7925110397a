"""A job reads no setting that is not among its parameters, which decide whether it reruns."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

import finegates.suite.config.section
from finegates.suite.config.dependencies import pruning_settings, run_settings, text_run_settings
from finegates.suite.config.llama_runs import posttraining_runs, pretraining_runs, pruning_runs
from finegates.suite.config.tier import Tier
from finegates.suite.models.sources import load_classifier
from finegates.suite.runs.finetune import TaskData, finetune, load_tokenizer, predict
from finegates.suite.runs.prune_llama import prune_runs
from finegates.suite.runs.train_llama import train_run
from support.causal_tier import causal_tier
from support.changed_keys import changed, leaves
from support.tier import tiny_tier


class Reads:
    """Records the places of a configuration that are read while it is watched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tier: Tier) -> None:
        owners: dict[int, tuple[Any, ...]] = {}
        self.places: set[tuple[Any, ...]] = set()
        keep = []  # an id belongs to a live object

        def learn(section: BaseModel, at: tuple[Any, ...]) -> None:
            owners[id(section)] = at
            keep.append(section)
            for key in type(section).model_fields:
                value = getattr(section, key)
                if isinstance(value, BaseModel):
                    learn(value, (*at, key))
                elif isinstance(value, dict):
                    for name, entry in value.items():
                        if isinstance(entry, BaseModel):
                            learn(entry, (*at, key, name))

        learn(tier, ())
        plain = BaseModel.__getattribute__

        def watched(section: BaseModel, key: str) -> Any:
            at = owners.get(id(section))
            if at is not None and key in type(section).model_fields:
                self.places.add((*at, key))
            return plain(section, key)

        monkeypatch.setattr(
            finegates.suite.config.section.Section, "__getattribute__", watched, raising=False
        )
        self.keep = keep


def undeclared(tier: Tier, reads: Reads, settings: Any) -> set[str]:
    """Places that were read but are not in any parameter of the job."""
    before = repr(settings(tier))
    values = {place for place, _, _ in leaves(tier)}
    return {
        ".".join(map(str, place))
        for place in reads.places & values
        if repr(settings(changed(tier, place))) == before
    }


# Read for what a record says about its origin or the machine; see
# finegates.suite.config.dependencies.
QUOTED = {"tier", "description", "results"}


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
@pytest.mark.parametrize("label", ["full", "gates", "structured-lora", "distilled"])
def test_a_run_reads_no_setting_that_is_not_among_its_parameters(tmp_path, monkeypatch, label):
    tier = tiny_tier(tmp_path)
    start = tmp_path / "full.safetensors"
    with monkeypatch.context() as patch:
        reads = Reads(patch, tier)
        data = TaskData(tier, "cola", load_tokenizer(tier))
        if label == "distilled":
            finetune(tier, data, "full", 0, keep=start, progress=False)
        finetune(tier, data, label, 0, start=start, progress=False)
    found = undeclared(tier, reads, lambda t: run_settings(t, "cola", [label, "full"]))
    assert found <= QUOTED | {"model.name", "data.name", "training.eval_batch_size"}
    assert ("training", "batch_size") in reads.places


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
def test_a_run_on_text_reads_no_setting_that_is_not_among_its_parameters(tmp_path, monkeypatch):
    tier = causal_tier(tmp_path)
    assert tier.llama is not None
    for experiment, runs in (
        ("pretraining", pretraining_runs(tier)),
        ("posttraining", posttraining_runs(tier)),
    ):
        run = runs[-1]
        with monkeypatch.context() as patch:
            reads = Reads(patch, tier)
            train_run(tier, run, progress=False)
        found = undeclared(tier, reads, lambda t, run=run: text_run_settings(t, [run]))
        training = f"llama.{experiment}.training"
        of_the_machine = ("processes", "micro_batch_size", "gradient_checkpointing")
        of_the_machine += ("eval_batch_size", "save_every")
        assert found - QUOTED <= {
            *(f"{training}.{key}" for key in of_the_machine),
            *("llama.description", "llama.text.name", "llama.posttraining.models.tiny.name"),
            f"llama.{experiment}.methods.{run.method}.title",
            "seeds",
        }  # fmt: skip
        assert ("llama", experiment, "training", "steps") in reads.places


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
def test_one_shot_pruning_reads_no_setting_that_is_not_among_its_parameters(tmp_path, monkeypatch):
    tier = causal_tier(tmp_path)
    runs = [run for run in pruning_runs(tier) if run.criterion is None][:1]
    with monkeypatch.context() as patch:
        reads = Reads(patch, tier)
        prune_runs(tier, [(run, None) for run in runs])
    found = undeclared(tier, reads, lambda t: pruning_settings(t, "tiny"))
    assert found - QUOTED <= {
        "llama.description",
        "llama.text.name",
        "llama.posttraining.models.tiny.name",
        "llama.posttraining.training.eval_batch_size",
    }


def test_the_size_of_an_evaluation_batch_changes_logits_by_rounding_alone(tmp_path):
    """Why it is not a parameter of the runs.

    Two sums of n products in float32 in different orders differ by at most 2·n·eps of the sum of
    their magnitudes. A token passes 2 layers of 6 products of at most 24 terms, and logits are
    below 1.
    """
    tier = tiny_tier(tmp_path)
    tokenizer = load_tokenizer(tier)
    data = TaskData(tier, "cola", tokenizer)
    model = load_classifier(tier, "cola", 0)
    one, few, all_rows = (predict(model, tokenizer, data.validation, size) for size in (1, 7, 48))
    assert float(one.abs().max()) < 1
    rounding = 2 * (2 * 6 * 24) * 2.0**-23
    assert float((one - few).abs().max()) <= rounding
    assert float((one - all_rows).abs().max()) <= rounding
