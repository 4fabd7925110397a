"""Configuration: accepted files, and error messages for the others."""

from pathlib import Path

import pytest
import yaml

from finegates.suite.config.load import (
    CONFIG,
    ConfigError,
    configured_tier,
    load_tier,
    read_yaml,
    tier_path,
)
from support.paths import ROOT
from support.tier import TINY_SHAPE

EXPERIMENTS = ROOT / "config" / "experiments"


def tier_file(tmp_path, **changes) -> Path:
    raw = {
        "tier": "tiny",
        "description": "a tier for tests",
        "results": "results/tiny",
        "seeds": [0],
        "runs_per_process": "task",
        "threads": 1,
        "model": {"name": "m", "path": "somewhere"},
        "data": {"name": "d", "path": "elsewhere"},
        "tasks": ["cola"],
        "training": {"epochs": 1, "batch_size": 8, "max_length": 32},
        "methods": {
            "full": {"experiment": "full"},
            "gates": {"experiment": "reference", "gates": {"target": 0.2}},
        },
        "inference_benchmarks": [TINY_SHAPE],
    }
    for key, value in changes.items():
        target = raw
        *parents, last = key.split("__")
        for parent in parents:
            target = target[parent]
        if value is None:
            del target[last]
        else:
            target[last] = value
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def load(path):
    return load_tier(path, EXPERIMENTS)


TIERS = sorted(p for p in (ROOT / "config").glob("*.yaml") if p.stem != "claims")


@pytest.mark.parametrize("path", TIERS, ids=lambda p: p.stem)
def test_every_tier_that_ships_is_valid(path):
    tier = load_tier(path)
    assert tier.tier == path.stem
    assert tier.results == f"results/{path.stem}"


@pytest.mark.parametrize("tier", ["smoke", "local", "paper", "paper_large", "rehearsal"])
def test_every_tier_has_every_method_of_the_comparison(tier):
    methods = load_tier(ROOT / "config" / f"{tier}.yaml").methods
    gates = [m.gates for m in methods.values() if m.gates]
    reference = {
        g.target
        for m in methods.values()
        if (g := m.gates) and not m.lora and g.preset == "reference"
    }
    assert {0.0, 0.2, 0.4} <= reference
    assert any(m.trains_all and not m.magnitude for m in methods.values())
    assert any(m.lora and not m.gates for m in methods.values())
    assert any(m.lora and m.gates for m in methods.values())
    assert any(g.preset == "paper_v1" for g in gates)
    assert any(m.magnitude for m in methods.values())


def test_the_rehearsal_differs_from_the_paper_in_model_data_and_size_only():
    paper, rehearsal = (load_tier(ROOT / "config" / f"{t}.yaml") for t in ("paper", "rehearsal"))
    assert rehearsal.methods == paper.methods
    assert rehearsal.runs_per_process == paper.runs_per_process
    changed = {
        k for k, v in rehearsal.training.model_dump().items() if v != paper.training.model_dump()[k]
    }
    assert changed <= {"epochs"}


def test_overrides_are_laid_over_the_experiment_file(tmp_path):
    tier = load(tier_file(tmp_path))
    method = tier.methods["gates"]
    assert method.gates.target == 0.2
    assert method.gates.penalty_weight == 50
    assert method.title == yaml.safe_load((EXPERIMENTS / "reference.yaml").read_text())["title"]


def test_a_tier_extends_another_and_replaces_model_and_data_whole(tmp_path):
    tier_file(tmp_path)
    child = tmp_path / "child.yaml"
    child.write_text(
        "extends: tiny.yaml\ntier: child\ntraining: {epochs: 3}\n"
        f"data: {{name: x, hub: a/b, revision: {'a' * 40}}}\n"
    )
    tier = load(child)
    assert (tier.tier, tier.training.epochs, tier.training.batch_size) == ("child", 3, 8)
    assert (tier.data.hub, tier.data.path) == ("a/b", None)


def test_a_circle_of_extensions_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        load(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, r"unknown key 'seed'; did you mean 'seeds'\?"),
        ({"training__epoch": 3}, r"unknown key 'training.epoch'; did you mean 'epochs'\?"),
        (
            {"methods__gates__gates__targt": 0.1},
            r"unknown key 'methods.gates.gates.targt'; did you mean 'target'\?",
        ),
        ({"training__epochs": None}, r"missing key 'training.epochs'"),
        ({"tasks": ["colla"]}, r"unknown task 'colla'; did you mean 'cola'\?"),
        ({"tasks": ["cola", "cola"]}, r"must not repeat"),
        ({"methods__full": {"experiment": "ful"}}, r"no experiment 'ful' .*did you mean 'full'\?"),
        ({"methods__full": {}}, r"methods.full needs the key 'experiment'"),
        ({"methods__full": 3}, r"methods.full must be a mapping"),
        ({"methods": ["full"]}, r"methods must be a mapping"),
        ({"model": {"name": "m"}}, r"exactly one of pretraining, dense, pypi, path, package, hub"),
        ({"model": {"name": "m", "path": "a", "package": "b"}}, r"exactly one of"),
        ({"model": {"name": "m", "hub": "a/b"}}, r"needs a revision pinned"),
        ({"model": {"name": "m", "hub": "a/b", "revision": "main"}}, r"needs a revision pinned"),
        ({"model": {"name": "m", "path": "a", "revision": "0" * 40}}, r"belongs to a hub entry"),
        ({"methods__gates__gates__target": 1.2}, r"methods.gates.gates.target.*less than 1"),
        ({"training__precision": "float8"}, r"training.precision"),
        ({"methods__a b": {"experiment": "full"}}, r"use letters, digits"),
        (
            {"methods__m": {"experiment": "magnitude", "magnitude": {"match": "gate"}}},
            r"'gate' is not a gated method of this tier; did you mean 'gates'\?",
        ),
        (
            {"methods__d": {"experiment": "full", "distillation": {"teacher": "gates"}}},
            r"'gates' is not a method of this tier that trains every weight of the dense model",
        ),
        (
            {"methods__gates__gates": {"target": 0.2, "match": "full"}},
            "exactly one of target, match",
        ),
        ({"methods__gates__gates": {"match": "full"}}, "match goes with preset 'structured'"),
        (
            {"methods__s": {"experiment": "structured", "gates": {"match": "full"}}},
            r"methods.s.gates.match: 'full' is not a gated method of this tier",
        ),
        ({"training__epochs": True}, r"training: epochs is not a switch"),
        ({"seeds": [True]}, r"seeds is not a switch"),
        ({"seeds": [-1]}, r"seeds.0: .*greater than or equal to 0"),
        ({"training__epochs_by_task": {"rte": True}}, r"epochs_by_task is not a switch"),
        ({"training__epochs_by_task": {"rtee": 3}}, r"unknown task 'rtee'; did you mean 'rte'\?"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(tier_file(tmp_path, **changes))
    assert "tiny.yaml" in str(caught.value)


def test_a_target_that_gates_cannot_reach_is_refused_before_any_work(tmp_path):
    path = tier_file(tmp_path, methods__gates__gates__target=0.9)
    with pytest.raises(ConfigError, match=r"methods.gates.*targets end at 0.841"):
        load(path)


def test_a_magnitude_method_stands_after_the_one_it_matches(tmp_path):
    methods = {
        "m": {"experiment": "magnitude", "magnitude": {"match": "gates"}},
        "gates": {"experiment": "reference", "gates": {"target": 0.2}},
    }
    with pytest.raises(ConfigError, match="must come after 'gates'"):
        load(tier_file(tmp_path, methods=methods))


def test_all_faults_of_a_file_are_named_at_once(tmp_path):
    path = tier_file(tmp_path, training__epochs=0, threads=-1, surplus=1)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert all(word in str(caught.value) for word in ("training.epochs", "threads", "surplus"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not valid YAML"),
        (b"- 1\n- 2\n", "must hold a mapping"),
        (b"\xff\xfe\x00", "not UTF-8|not valid YAML"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path, content, message):
    path = tmp_path / "tiny.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="absent.yaml"):
        load(tmp_path / "absent.yaml")


def test_the_command_line_chooses_a_tier_and_a_part_of_its_tasks_and_methods():
    assert configured_tier({}).tier == "smoke"
    assert tier_path("local").name == "local.yaml"
    chosen = configured_tier({"tier": "paper", "tasks": "rte, cola", "methods": "lora,full"})
    assert chosen.tasks == ["cola", "rte"]
    assert list(chosen.methods) == ["full", "lora"]
    for section in ("llama", "studies", "theory"):
        assert getattr(configured_tier({}), section) is not None
        assert getattr(configured_tier({"without": section}), section) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"teir": "local"}, r"unknown key 'teir'; did you mean 'tier'\?"),
        ({"tasks": "colla"}, r"'colla' is not in .*did you mean 'cola'\?"),
        ({"methods": "lorra"}, r"'lorra' is not in .*did you mean 'lora'\?"),
        ({"methods": "magnitude-s0.4"}, r"'magnitude-s0.4' needs 'reference-s0.4'; name it"),
        ({"tier": "lokal"}, r"no tier of that name; did you mean 'local'\?"),
        ({"tier": "config/local"}, r"no tier of that name; did you mean 'local'\?"),
        ({"tier": None}, r"no tier of that name \(known: base, baselines, budgets, local, paper"),
        ({"tier": "absent/local.yaml"}, r"absent/local.yaml: no such file; .*mean 'local'\?"),
        ({"without": "lama"}, r"'lama' is not in .*did you mean 'llama'\?"),
    ],
)
def test_a_wrong_command_line_is_named(config, message):
    with pytest.raises(ConfigError, match=message):
        configured_tier(config)


def test_tasks_of_snakemake_s_own_file_may_be_a_list():
    assert configured_tier({"tasks": ["rte", "cola"]}).tasks == ["cola", "rte"]


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({}, r"--configfile .*local\.yaml: .*--config tier=local instead of --configfile"),
        ({"tier": "structured"}, r"give --config tier=structured instead"),
    ],
)
def test_the_file_of_a_tier_given_to_snakemake_is_refused_with_the_option_to_give(given, remedy):
    file = CONFIG / "local.yaml"
    config = {**read_yaml(file), **given}
    with pytest.raises(ConfigError, match=remedy):
        configured_tier(config, [file])
    with pytest.raises(ConfigError, match=r"--config tier=NAME, or tier=PATH\.yaml"):
        configured_tier(config)


def test_the_file_of_a_tier_elsewhere_is_named_by_its_path(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text((CONFIG / "local.yaml").read_text())
    with pytest.raises(ConfigError, match=f"--config tier={file} instead of --configfile"):
        configured_tier(read_yaml(file), [file])
