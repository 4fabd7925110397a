"""Names and paths of a configuration cannot lead outside its folders."""

from __future__ import annotations

import json

import pytest
import yaml
from transformers import AutoConfig, AutoModelForSequenceClassification

from finegates.suite.config.load import CONFIG, ConfigError, configured_tier, load_tier
from finegates.suite.models.pretrained import ModelError, load_pretrained
from support.causal_tier import llama_section
from support.tier import tiny_tier, write_encoder

CLIMBING = ["..", "../x", "a/../../x", "/etc/x", "a/b", ".", ".x", "", "a b", "a\nb", "a\0b", "{x}"]
HASH = "0" * 40


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A valid tier as plain values."""
    folder = tmp_path_factory.mktemp("sound")
    raw = tiny_tier(folder).model_dump(mode="json")
    raw["methods"] = {"full": {"experiment": "full"}}
    raw["llama"] = llama_section(folder)
    raw["results"] = "results/tiny"
    return raw


def changed(sound, place, value):
    """A copy with a value, or with an entry of that name, at a place."""
    raw = json.loads(json.dumps(sound))
    *parents, last = place.split(".")
    section = raw
    for part in parents:
        section = section[part]
    if last == "*":
        section[value] = section.pop(next(iter(section)))
    else:
        section[last] = value
    return raw


def load(tmp_path, raw):
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(raw))
    return load_tier(path, CONFIG / "experiments")


@pytest.mark.parametrize("name", CLIMBING)
@pytest.mark.parametrize(
    "place",
    [
        "tier",
        "methods.*",
        "methods.full.experiment",
        "llama.pretraining.sizes.*",
        "llama.pretraining.methods.*",
        "llama.posttraining.models.*",
        "llama.on_task.methods.*",
        "llama.on_task.methods.full.experiment",
    ],
)
def test_a_name_that_becomes_part_of_a_path_is_one_name(tmp_path, sound, place, name):
    assert load(tmp_path, sound).tier == "tiny"
    with pytest.raises(ConfigError):
        load(tmp_path, changed(sound, place, name))


@pytest.mark.parametrize(
    "results", ["..", "../x", "results/../../x", "/", "", ".", "results/published/x", "a b", "{x}"]
)
def test_results_lie_where_the_configuration_says_openly(tmp_path, sound, results):
    with pytest.raises(ConfigError, match="results"):
        load(tmp_path, changed(sound, "results", results))


def test_results_may_lie_on_another_disk(tmp_path, sound):
    assert load(tmp_path, changed(sound, "results", "/scratch/me/t")).results == "/scratch/me/t"


@pytest.mark.parametrize("package", ["../x", "a/../x", "a//etc", "a/../../x", "a.b/c", "/a", ""])
def test_a_package_folder_stays_inside_the_package(tmp_path, sound, package):
    model = {"name": "m", "package": "torch/lib"}
    assert load(tmp_path, changed(sound, "model", model)).model.package == "torch/lib"
    with pytest.raises(ConfigError, match="package"):
        load(tmp_path, changed(sound, "model", {"name": "m", "package": package}))


@pytest.mark.parametrize("hub", ["../x", "/etc", "a/b/c", "a/../b", "a/..", "..", "a b", ""])
@pytest.mark.parametrize("place", ["model", "data", "llama.posttraining.models.tiny"])
def test_a_hub_entry_is_an_id_and_no_path(tmp_path, sound, place, hub):
    entry = {"name": "m", "hub": "owner/name", "revision": HASH}
    load(tmp_path, changed(sound, place, entry))
    with pytest.raises(ConfigError, match="owner/name"):
        load(tmp_path, changed(sound, place, {**entry, "hub": hub}))


@pytest.mark.parametrize("revision", ["main", "z" * 40, "../" + "0" * 37, HASH[:-1]])
def test_a_revision_is_a_commit(tmp_path, sound, revision):
    entry = {"name": "m", "hub": "owner/name", "revision": revision}
    with pytest.raises(ConfigError, match="40-digit commit hash"):
        load(tmp_path, changed(sound, "model", entry))


def test_the_encoder_is_a_dense_llama_of_a_known_size(tmp_path, sound):
    load(tmp_path, changed(sound, "model", {"name": "m", "dense": "tiny"}))
    with pytest.raises(ConfigError, match="not a size of"):
        load(tmp_path, changed(sound, "model", {"name": "m", "dense": "../../x"}))


def test_the_command_line_takes_names_of_the_tier_only(tmp_path, sound):
    load(tmp_path, sound)
    for key in ("tasks", "methods"):
        with pytest.raises(ConfigError, match="is not in"):
            configured_tier({"tier": str(tmp_path / "t.yaml"), key: "../x"})


def test_a_folder_does_not_pass_for_a_hub_id(tmp_path, monkeypatch):
    write_encoder(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert load_pretrained(AutoConfig, "owner/name", "m").model_type == "roberta"
    with pytest.raises(ModelError, match="a folder of that name exists here"):
        load_pretrained(AutoConfig, "owner/name", "m", from_hub=True)


@pytest.mark.parametrize("file", ["../other/model.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_of_weights_names_files_of_its_folder_only(tmp_path, file):
    write_encoder(tmp_path / "other")
    write_encoder(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    index = tmp_path / "model" / "model.safetensors.index.json"
    from safetensors.torch import load_file

    names = list(load_file(weights))

    def point(name):
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, name)}))

    weights.rename(tmp_path / "model" / "part.safetensors")
    point("part.safetensors")
    load_pretrained(AutoModelForSequenceClassification, tmp_path / "model", "m")
    point(file)
    with pytest.raises(ModelError, match="not a file of its folder"):
        load_pretrained(AutoModelForSequenceClassification, tmp_path / "model", "m")
