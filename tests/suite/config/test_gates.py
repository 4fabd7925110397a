"""Gate settings are defined once: the suite's are those of the library's configuration."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest

from finegates.gates.config import GateConfig
from finegates.gates.presets import PRESETS
from finegates.suite.config.gates import GateFields, PresetName
from finegates.suite.config.llama import CausalGates
from finegates.suite.config.methods import GateSettings

SECTIONS: dict[type[GateFields], dict[str, object]] = {
    GateSettings: {"preset": "reference", "target": 0.3},
    CausalGates: {"title": "Gates", "targets": [0.3]},
}
COST = {
    "product": 1e-11,
    "gather": 2e-10,
    "scatter": 2e-10,
    "onednn_from": None,
    "head_multiple": 8,
}
OWN = {GateSettings: {"match"}, CausalGates: {"title", "targets", "start_step"}}
"""Fields that the library's configuration does not have."""


@pytest.mark.parametrize("section", SECTIONS)
def test_every_default_is_the_librarys_and_every_field_its_own_or_the_librarys(section):
    library = {field.name: field.default for field in fields(GateConfig)}
    for name, field in section.model_fields.items():
        if name in OWN[section]:
            assert name not in library
        elif name not in ("preset", "target"):  # a tier must choose these
            assert field.default == library[name], name


def test_a_methods_gates_reach_the_library_as_they_were_asked_for():
    asked = {
        **{"preset": "reference", "target": 0.3, "penalty_weight": 7.0, "penalty": "hinge"},
        **{"kurtosis": True, "noise_std": 0.2, "train_weights": True, "sequence_length": 64},
        "schedule": (0.0, 0.1, 0.2, 0.3),
        **{"dimensions": "all", "uniform": False, "multiple_of": None, "width": False},
        "parts": False,
    }
    assert set(asked) == set(GateSettings.model_fields) - {"match", "target_time", "cost"}
    found = GateSettings.model_validate(asked).gate_config(seed=3).as_dict()
    assert {name: found[name] for name in asked} == asked
    assert found["seed"] == 3


def test_sizes_of_shared_gates_reach_the_library_and_change_no_parameter_of_other_runs():
    plain = {"preset": "structured", "target": 0.3}
    before = set(GateSettings.model_validate(plain).model_dump())
    later = {"dimensions", "uniform", "multiple_of", "width", "parts", "target_time", "cost"}
    assert not before & later
    for further in (
        {"dimensions": "inner"},
        {"uniform": True, "multiple_of": 16},
        {"width": True},
        {"parts": True},
        {"cost": COST},
    ):
        settings = GateSettings.model_validate({**plain, **further})
        assert set(settings.model_dump()) == before | set(further)
        found = settings.gate_config().as_dict()
        assert {name: found[name] for name in further} == further
        assert GateSettings.model_validate(settings.model_dump()) == settings


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"preset": "reference", "uniform": True}, "uniform goes with preset 'structured'"),
        ({"preset": "structured", "multiple_of": 8}, "multiple_of goes with uniform"),
    ],
)
def test_sizes_that_independent_gates_do_not_have_are_refused(further, message):
    with pytest.raises(ValueError, match=message):
        GateSettings.model_validate({"target": 0.3, **further})


def test_a_time_budget_reaches_the_library_instead_of_a_target():
    given = {"preset": "structured", "target_time": 0.6, "cost": {**COST, "rest": 1e-6}}
    settings = GateSettings.model_validate(given)
    config = settings.gate_config()
    assert (config.target_time, config.removed()) == (0.6, 0.4)
    assert config.as_dict()["cost"] == given["cost"]
    assert GateSettings.model_validate(settings.model_dump()) == settings
    for wrong, message in (
        ({**given, "target": 0.4}, "exactly one of target, match, target_time"),
        ({**given, "cost": None}, "target_time goes with cost"),
        ({**given, "cost": {**COST, "product": -1.0}}, "product must be positive"),
        ({**given, "uniform": True}, "cost does not go with uniform"),
        ({**given, "preset": "reference"}, "goes with preset 'structured'"),
        ({**given, "target_time": None, "match": "other"}, "match counts MACs"),
    ):
        with pytest.raises(ValueError, match=message):
            GateSettings.model_validate(wrong)
    with pytest.raises(ValueError, match="leave target_time out"):
        CausalGates.model_validate({**given, "title": "Gates", "targets": [0.3]})


def test_gates_of_a_llama_reach_the_library_with_the_target_of_the_run():
    gates = CausalGates(title="Gates", targets=[0.1, 0.2], modules=("a.*",), random_biases=True)
    found = gates.gate_config(0.2, train_head=False)
    assert (found.target, found.modules, found.random_biases) == (0.2, ("a.*",), True)
    assert (found.preset, found.train_head) == ("reference", False)


def test_every_preset_can_be_named_in_a_tier():
    assert set(get_args(PresetName)) == set(PRESETS)
