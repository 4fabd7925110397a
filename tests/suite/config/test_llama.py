"""The Llama section of a tier: refused settings and their error messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from finegates.suite.config.llama import CausalTraining
from finegates.suite.config.llama_runs import pretraining_runs, study
from finegates.suite.config.load import CONFIG, ConfigError, load_tier
from support.causal_tier import TRAINING, causal_tier, llama_section


def changed(folder: Path, *keys: str, **values: object) -> dict:
    section = llama_section(folder)
    place = section
    for key in keys:
        place = place[key]
    place.update(values)
    return section


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        (("text",), {"hub": "allenai/c4"}, "exactly one of generated, path, hub"),
        (("text",), {"pth": "x"}, "unknown key 'llama.text.pth'; did you mean 'path'"),
        (("posttraining",), {"match": ["nobody"]}, "match: 'nobody' is none of the methods"),
        (
            ("posttraining", "models", "tiny"),
            {"dense": "huge", "path": None},
            "dense: 'huge' is not a size of llama.pretraining",
        ),
        (("posttraining", "training"), {"batch_size": 5, "micro_batch_size": 2}, "multiple of"),
        (("posttraining", "training"), {"save_every": 3}, "save_every .3. must be a multiple of"),
        (("posttraining", "methods", "reference"), {"targets": [0.9]}, "cannot be reached"),
        (("posttraining", "methods", "structured"), {"start_step": 3}, "cannot be chosen with"),
        (("pretraining", "methods"), {"dense": {"title": "x", "targets": [0.1]}}, "'dense' names"),
        (("pretraining", "methods", "gated"), {"random_biases": True}, "for pretrained models"),
        (("pretraining", "sizes", "tiny"), {"heads": 5}, "must be a multiple of heads"),
        (("pretraining", "sizes"), {"a b": {}}, "sizes.a b"),
        (("on_task",), {"tasks": ["colla"]}, "unknown task 'colla'; did you mean 'cola'"),
        (("on_task", "methods"), {"x": {"experiment": "ful"}}, "llama.on_task.methods.x: no exper"),
    ],
)
def test_a_faulty_section_is_refused_with_place_and_remedy(tmp_path, keys, values, message):
    with pytest.raises(ConfigError, match=message):
        causal_tier(tmp_path, changed(tmp_path, *keys, **values))


def test_a_streamed_text_must_be_pinned_and_bounded(tmp_path):
    text = {"name": "C4", "hub": "allenai/c4", "path": None}
    with pytest.raises(ConfigError, match="revision pinned"):
        causal_tier(tmp_path, changed(tmp_path, "text", **text))
    text |= {"revision": "0" * 40, "validation_documents": None}
    with pytest.raises(ConfigError, match="needs validation_documents"):
        causal_tier(tmp_path, changed(tmp_path, "text", **text))


def test_labels_with_slashes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="label 'a/b'"):
        causal_tier(
            tmp_path,
            changed(
                tmp_path, "posttraining", "methods", **{"a/b": {"title": "x", "targets": [0.1]}}
            ),
        )


def test_a_batch_is_shared_between_devices_and_micro_batches():
    settings = CausalTraining(**{**TRAINING, "batch_size": 24, "processes": 2})
    assert (settings.per_device, settings.accumulation) == (12, 1)
    settings = CausalTraining(
        **{**TRAINING, "batch_size": 24, "processes": 2, "micro_batch_size": 3}
    )
    assert (settings.per_device, settings.accumulation) == (3, 4)


def test_the_paper_tier_has_the_protocol_and_the_whole_grid():
    tier = load_tier(CONFIG / "paper.yaml")
    pretraining, posttraining = study(tier).pretraining, study(tier).posttraining
    assert next(iter(pretraining.sizes)) == "9m"
    assert list(pretraining.sizes)[-1] == "7b"
    for settings, final in ((pretraining.training, 0.1), (posttraining.training, 0.5)):
        assert (settings.learning_rate, settings.beta1, settings.length) == (0.01, 0.0, 256)
        assert settings.final_rate == final
    assert (pretraining.training.batch_size, posttraining.training.batch_size) == (512, 256)
    gates = pretraining.methods["reference"]
    assert (gates.targets, gates.penalty_weight, gates.start_step) == ([0.4], 100, 1000)
    assert not any("down" in name for name in gates.modules)
    assert posttraining.methods["reference"].targets == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert {m.hub for m in posttraining.models.values()} == {
        "meta-llama/Llama-3.2-1B",
        "meta-llama/Llama-2-7b-hf",
    }


def test_the_rehearsal_has_a_stand_in_for_every_model_of_the_paper_tier():
    paper, rehearsal = (study(load_tier(CONFIG / f"{n}.yaml")) for n in ("paper", "rehearsal"))
    assert set(rehearsal.posttraining.models) == set(paper.posttraining.models)
    assert set(rehearsal.pretraining.sizes) <= set(paper.pretraining.sizes)
    assert rehearsal.pretraining.training.processes == 2


def test_tiers_without_the_section_have_no_such_runs(tmp_path):
    for name in ("paper_large", "structured"):
        assert load_tier(CONFIG / f"{name}.yaml").llama is None
    tier = causal_tier(tmp_path)
    only = {k: v for k, v in llama_section(tmp_path).items() if k != "pretraining"}
    assert pretraining_runs(causal_tier(tmp_path, only)) == []
    with pytest.raises(ValueError, match="no section 'llama'"):
        study(tier.model_copy(update={"llama": None}))
