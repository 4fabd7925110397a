"""Captions use the words of the current configuration; results come from the records."""

from __future__ import annotations

import pytest

from finegates.suite.config.llama_runs import posttraining_runs, pretraining_runs, pruning_runs
from finegates.suite.tables.wording import reworded, text_reworded, text_words_of, words_of
from support.causal_tier import causal_tier
from support.records import make_causal_record, make_record
from support.tier import tiny_tier


def test_a_record_takes_the_words_of_the_configuration_and_keeps_its_results(tmp_path):
    tier = tiny_tier(tmp_path)
    model = make_record().model.model_copy(update={"source": "path"})
    record = make_record(method="gates", title="Old title", model=model)
    (found,) = reworded([record], words_of(tier, ["gates"]))
    assert found.config.title == tier.methods["gates"].title
    assert found.config.tier_description == "tiny files for tests"
    assert (found.model.name, found.data.name) == ("tiny", "tiny")
    same = found.model_copy(
        update={key: getattr(record, key) for key in ("config", "model", "data")}
    )
    assert same == record
    assert record.config.title == "Old title"


@pytest.mark.parametrize("other", [{"source": "path", "revision": "0" * 40}, {"source": "hub"}])
def test_a_model_of_another_source_or_revision_keeps_its_name(tmp_path, other):
    tier = tiny_tier(tmp_path)
    model = make_record().model.model_copy(update={"name": "the other", **other})
    (found,) = reworded([make_record(model=model)], words_of(tier, ["gates"]))
    assert found.model.name == "the other"


def test_unchanged_words_leave_a_record_as_it_is(tmp_path):
    tier = tiny_tier(tmp_path)
    words = words_of(tier, ["gates"])
    (once,) = reworded([make_record(method="gates")], words)
    assert reworded([once], words) == [once]


def test_records_on_text_take_the_words_of_the_configuration(tmp_path):
    tier = causal_tier(tmp_path)
    everything = [*pretraining_runs(tier), *posttraining_runs(tier), *pruning_runs(tier)]
    words = text_words_of(tier, everything)
    assert words["titles"]["magnitude-as-reference"] == "Magnitude, as many as Gates"
    records = [
        make_causal_record(experiment="posttraining", name="tiny", method="reference", title="Old"),
        make_causal_record(experiment="pretraining", name="tiny", method="gated", title="Old"),
    ]
    posttrained, pretrained = text_reworded(records, words)
    assert [posttrained.title, pretrained.title] == ["Gates", "Gates"]
    assert posttrained.model.name == "tiny Llama"
    assert pretrained.model.name == records[1].model.name
    assert {r.config.tier_description for r in (posttrained, pretrained)} == {
        "tiny Llama for tests"
    }
    assert {r.data.name for r in (posttrained, pretrained)} == {"tiny"}
