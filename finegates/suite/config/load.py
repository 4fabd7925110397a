"""Configuration of a tier: what runs on which model, data, tasks and methods.

A tier is one YAML file; each of its methods names a file of ``config/experiments/`` and may
override values of it. Everything is checked here, once, before any work: unknown keys fail with
their place and the nearest known key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from finegates.suite.config.llama import CausalTraining
from finegates.suite.config.searched import contender_of
from finegates.suite.config.strict_yaml import ConfigError as ConfigError
from finegates.suite.config.strict_yaml import read_yaml as read_yaml
from finegates.suite.config.suggest import nearest
from finegates.suite.config.tier import LlamaStudy, Tier
from finegates.suite.config.tier_files import CONFIG as CONFIG
from finegates.suite.config.tier_files import (
    check_distinct,
    configuration_file,
    tier_name,
    tier_path,
)

_Model = TypeVar("_Model", bound=BaseModel)

# Keys that are known elsewhere and refused here, each with its reason.
_REFUSED = {
    "trust_remote_code": "code that comes with a model is never run; remove the key and take a "
    "model that transformers has a class for",
}


def configured_tier(config: Mapping[str, Any], files: Sequence[str | Path] = ()) -> Tier:
    """The tier that a command line asks for.

    Args:
        config: Snakemake's configuration: ``tier`` (see :func:`tier_path`) and, to run a part of
            it, ``tasks`` and ``methods``, names separated by commas; ``without`` names sections to
            leave out: ``llama``, ``studies``, ``theory``. Studies are left out, too, where a task
            or method is. ``processes`` and ``nodes`` replace those of training on plain text;
            ``lock=shared`` works next to another run.
        files: Snakemake's configuration files, for messages: a tier is not given by one.

    Raises:
        ConfigError: as :func:`load_tier`; a tier that is not there, or that would write where
            another one does; also for any other key.
    """
    known = ("tier", "tasks", "methods", "without", "lock", *_LAUNCH)
    _refuse_configfile(config, known, files)
    for key in config:
        if key in _REFUSED:
            raise ConfigError(f"--config {key}: {_REFUSED[key]}")
        if key not in known:
            raise ConfigError(f"--config: unknown key {key!r}{nearest(key, known)}")
    path = tier_path("smoke" if "tier" not in config else str(config["tier"] or ""))
    tier = load_tier(path)
    check_distinct(tier.tier, tier.results, path)
    tasks = _chosen(config, "tasks", tier.tasks, path)
    methods = _chosen(config, "methods", list(tier.methods), path)
    for label in methods:
        for needed in (*tier.methods[label].needs, contender_of(tier, label)):
            if needed is not None and needed not in methods:
                raise ConfigError(f"--config methods: {label!r} needs {needed!r}; name it too")
    _chosen(config, "lock", ["shared"], path)
    chosen: dict[str, Any] = {
        "tasks": tasks,
        "methods": {label: tier.methods[label] for label in methods},
    }
    if tier.studies is not None and not (
        set(tier.studies.tasks) <= set(tasks) and set(tier.methods) == set(methods)
    ):
        chosen["studies"] = None
    if "without" in config:
        left_out = _chosen(config, "without", ["llama", "studies", "theory"], path)
        chosen.update(dict.fromkeys(left_out))
    launch = {key: config[key] for key in _LAUNCH if key in config}
    if launch and tier.llama is not None:
        chosen.setdefault("llama", _launched(tier.llama, launch, path))
    return tier.model_copy(update=chosen)


def _refuse_configfile(
    config: Mapping[str, Any], known: Sequence[str], files: Sequence[str | Path]
) -> None:
    """Raises ConfigError where a tier's file was given as Snakemake's own (``--configfile``)."""
    of_a_tier = [key for key in config if key in {*Tier.model_fields, "extends"} - {*known}]
    if not of_a_tier:
        return
    file = next((Path(name) for name in files if of_a_tier[0] in read_yaml(Path(name))), None)
    remedy = "NAME, or tier=PATH.yaml"
    if file is not None:
        # What was given by --config has been laid over what the file says.
        other = config.get("tier") not in (None, read_yaml(file).get("tier"))
        remedy = str(config["tier"]) if other else tier_name(file)
    raise ConfigError(
        f"--configfile{'' if file is None else f' {file}'}: the file of a tier is named by "
        f"--config, not read by Snakemake (it has the key {of_a_tier[0]!r}); give --config "
        f"tier={remedy} instead of --configfile"
    )


# How many processes a run on plain text is shared by: of the machine, not of the experiment.
_LAUNCH = ("processes", "nodes")


def _launched(llama: LlamaStudy, launch: dict[str, Any], path: Path) -> LlamaStudy:
    """The experiments on plain text with other numbers of processes and nodes."""
    changed = {}
    for name in ("pretraining", "posttraining"):
        section = getattr(llama, name)
        if section is not None:
            raw = {**section.training.model_dump(), **launch}
            place = f"{path}: --config {' '.join(launch)}: llama.{name}.training"
            training = validated(CausalTraining, raw, place)
            changed[name] = section.model_copy(update={"training": training})
    return llama.model_copy(update=changed)


def _chosen(config: Mapping[str, Any], key: str, known: list[str], path: Path) -> list[str]:
    """What the command line names under ``key``, in the tier's order; all if it names none."""
    if key not in config:
        return known
    given = config[key]  # a list in a file of Snakemake's
    names = given if isinstance(given, list) else [n.strip() for n in str(given).split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--config {key}: {name!r} is not in {path}{nearest(str(name), known)}"
            )
    return [name for name in known if name in names]


def load_tier(path: str | Path, experiments: str | Path | None = None) -> Tier:
    """Reads and checks a tier file.

    A tier may extend another with ``extends: other.yaml`` (next to it, or else in this repository's
    ``config/``): its keys are laid over the other's; ``model``, ``data``, ``methods``, ``llama``,
    ``studies`` and ``rate_search`` replace the other's whole. Studies and the search for rates go
    where methods do: a tier that names methods has its own or none.

    Args:
        path: the YAML file.
        experiments: folder of the experiment files; if None, ``experiments/`` next to the tier
            file, or else this repository's ``config/experiments/``.

    Raises:
        ConfigError: unreadable, not YAML, unknown or missing keys, wrong values; all problems of
            the file at once.
    """
    path = Path(path)
    raw = _extended(path)
    folder = Path(experiments) if experiments else path.parent / "experiments"
    if experiments is None and not folder.is_dir():
        folder = CONFIG / "experiments"
    return resolve_tier(raw, path, folder)


def resolve_tier(raw: dict[str, Any], path: Path, experiments: Path) -> Tier:
    """As :func:`load_tier`, from the mapping that a file held; ``path`` is for messages."""
    resolved = {**raw, "methods": _resolved(raw.get("methods"), "methods", path, experiments)}
    if isinstance(raw.get("studies"), dict):
        resolved["studies"] = _resolved_studies(raw["studies"], path, experiments)
    llama = raw.get("llama")
    if isinstance(llama, dict) and isinstance(llama.get("on_task"), dict):
        place, on_task = "llama.on_task.methods", llama["on_task"]
        methods = _resolved(on_task.get("methods"), place, path, experiments)
        resolved["llama"] = {**llama, "on_task": {**on_task, "methods": methods}}
    return validated(Tier, resolved, path)


def _resolved_studies(raw: dict[str, Any], path: Path, experiments: Path) -> dict[str, Any]:
    """Studies with the ones they extend, their methods resolved.

    ``gated`` is merged into every method with gates.
    """
    studies = dict(raw)
    if "extends" in studies:
        extended = configuration_file(str(studies.pop("extends")), path, "studies.extends")
        studies = _merged(read_yaml(extended), studies)
    gated = studies.pop("gated", {})
    if not isinstance(gated, dict):
        raise ConfigError(f"{path}: studies.gated must be a mapping")
    methods = _resolved(studies.get("methods", {}), "studies.methods", path, experiments)
    studies["methods"] = {
        label: _merged(method, gated) if method.get("gates") else method
        for label, method in methods.items()
    }
    return studies


def _resolved(methods: Any, place: str, path: Path, experiments: Path) -> dict[str, Any]:
    """Methods with the settings of the experiment files that they name."""
    if not isinstance(methods, dict):
        raise ConfigError(f"{path}: {place} must be a mapping from labels to settings")
    resolved = {}
    for label, settings in methods.items():
        settings = {} if settings is None else settings
        if not isinstance(settings, dict):
            raise ConfigError(f"{path}: {place}.{label} must be a mapping")
        overrides = dict(settings)
        name = overrides.pop("experiment", None)
        if name is None:
            raise ConfigError(f"{path}: {place}.{label} needs the key 'experiment'")
        file = experiments / f"{name}.yaml"
        if file.parent != experiments or not file.is_file():
            known = sorted(p.stem for p in experiments.glob("*.yaml"))
            raise ConfigError(
                f"{path}: {place}.{label}: no experiment {name!r} in {experiments}"
                f"{nearest(str(name), known)}"
            )
        resolved[str(label)] = _merged(read_yaml(file), overrides)
    return resolved


def _extended(path: Path, depth: int = 0) -> dict[str, Any]:
    raw = read_yaml(path)
    if "extends" not in raw:
        return raw
    if depth > 8:
        raise ConfigError(f"{path}: 'extends' goes round in a circle")
    base = _extended(configuration_file(str(raw.pop("extends")), path, "extends"), depth + 1)
    kept = {key: value for key, value in base.items() if key not in raw or key not in _WHOLE}
    if "methods" in raw:
        for key in ("studies", "rate_search"):  # of the other's methods
            kept.pop(key, None)
    return _merged(kept, raw)


# Sections that describe one thing: half of one and half of another would name a third. A tier that
# names methods names them all.
_WHOLE = ("model", "data", "methods", "llama", "studies", "rate_search")


def validated(
    model: type[_Model], raw: dict[str, Any], path: Path | str, *, strict: bool = False
) -> _Model:
    """``raw`` as a model; ``strict`` takes no text for a number.

    Raises:
        ConfigError: lists every problem with its place.
    """
    try:
        return model.model_validate(raw, strict=strict)
    except ValidationError as error:
        lines = [_explain(model, problem) for problem in error.errors()]
        raise ConfigError(f"{path}: " + "; ".join(lines)) from error


def _explain(model: type[BaseModel], problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        if key in _REFUSED:
            return f"{place}: {_REFUSED[key]}"
        return f"unknown key {place!r}{nearest(key, _keys_at(model, problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return f"missing key {place!r}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _keys_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The keys that the section at a place of the configuration knows."""
    current: Any = model
    for part in loc:
        fields = getattr(current, "model_fields", {})
        annotation = fields[part].annotation if part in fields else current
        current = next((m for m in _sections(annotation)), current)
    return list(getattr(current, "model_fields", {}))


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [s for arg in getattr(annotation, "__args__", ()) for s in _sections(arg)]


def _merged(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``overrides``; nested mappings are merged, not replaced."""
    merged = dict(base)
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged
