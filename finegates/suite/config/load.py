"""Loads and validates the configuration of a tier.

A tier is one YAML file. Each of its methods names a file of ``config/experiments/`` and may
override its values. The whole configuration is checked here once, before any work. An error on an
unknown key names its place and the nearest known key.
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

# Keys that users may know from other tools and that are refused here, with the reason.
_REFUSED = {
    "trust_remote_code": "code that comes with a model is never run; remove the key and take a "
    "model that transformers has a class for",
}


def configured_tier(config: Mapping[str, Any], files: Sequence[str | Path] = ()) -> Tier:
    """Loads the tier of a command line.

    Args:
        config: Snakemake's configuration. ``tier`` selects the tier (see :func:`tier_path`).
            ``tasks`` and ``methods`` select parts of it, names separated by commas. ``without``
            names sections to leave out: ``llama``, ``studies``, ``theory``. Studies are left out,
            too, if some tasks or methods are. ``processes`` and ``nodes`` override those of
            training on plain text. ``lock=shared`` allows another run at the same time.
        files: Snakemake's configuration files, for messages; a tier must not be one of them.

    Raises:
        ConfigError: as :func:`load_tier`; also if the tier does not exist or would write into the
            folder of another tier, and for unknown keys.
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
    """Raises ConfigError if a tier's file was passed as Snakemake's ``--configfile``."""
    of_a_tier = [key for key in config if key in {*Tier.model_fields, "extends"} - {*known}]
    if not of_a_tier:
        return
    file = next((Path(name) for name in files if of_a_tier[0] in read_yaml(Path(name))), None)
    remedy = "NAME, or tier=PATH.yaml"
    if file is not None:
        # Snakemake has already merged --config into the values of the file.
        other = config.get("tier") not in (None, read_yaml(file).get("tier"))
        remedy = str(config["tier"]) if other else tier_name(file)
    raise ConfigError(
        f"--configfile{'' if file is None else f' {file}'}: the file of a tier is named by "
        f"--config, not read by Snakemake (it has the key {of_a_tier[0]!r}); give --config "
        f"tier={remedy} instead of --configfile"
    )


# Parallelism of a run on plain text: a property of the machine, not of the experiment.
_LAUNCH = ("processes", "nodes")


def _launched(llama: LlamaStudy, launch: dict[str, Any], path: Path) -> LlamaStudy:
    """Overrides processes and nodes of the experiments on plain text."""
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
    """Names of the command line under ``key`` in the tier's order, by default all."""
    if key not in config:
        return known
    given = config[key]  # a list, if it comes from a --configfile
    names = given if isinstance(given, list) else [n.strip() for n in str(given).split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--config {key}: {name!r} is not in {path}{nearest(str(name), known)}"
            )
    return [name for name in known if name in names]


def load_tier(path: str | Path, experiments: str | Path | None = None) -> Tier:
    """Reads and validates a tier file.

    A tier may extend another with ``extends: other.yaml`` (next to it, or else in this repository's
    ``config/``). Its keys are merged into the other's. The sections ``model``, ``data``,
    ``methods``, ``llama``, ``studies`` and ``rate_search`` are replaced as a whole. A tier with
    ``methods`` does not inherit ``studies`` and ``rate_search``, which refer to methods.

    Args:
        path: the YAML file.
        experiments: folder of the experiment files; if None, ``experiments/`` next to the tier
            file, or else this repository's ``config/experiments/``.

    Raises:
        ConfigError: the file is unreadable, is not YAML, has unknown or missing keys or wrong
            values. The message lists all problems of the file.
    """
    path = Path(path)
    raw = _extended(path)
    folder = Path(experiments) if experiments else path.parent / "experiments"
    if experiments is None and not folder.is_dir():
        folder = CONFIG / "experiments"
    return resolve_tier(raw, path, folder)


def resolve_tier(raw: dict[str, Any], path: Path, experiments: Path) -> Tier:
    """Same as :func:`load_tier`, from a mapping. ``path`` is used in messages."""
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
    """Merges studies with those that they extend, and resolves their methods.

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
    """Merges methods into the experiment files that they name."""
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
        for key in ("studies", "rate_search"):  # they refer to the other tier's methods
            kept.pop(key, None)
    return _merged(kept, raw)


# Sections that are replaced as a whole: each describes one thing, and half of it from another tier
# would describe something else.
_WHOLE = ("model", "data", "methods", "llama", "studies", "rate_search")


def validated(
    model: type[_Model], raw: dict[str, Any], path: Path | str, *, strict: bool = False
) -> _Model:
    """Validates ``raw``. ``strict`` does not convert text to numbers.

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
    """The known keys of the section at a place of the configuration."""
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
    """Merges ``overrides`` into ``base``, recursively for nested mappings."""
    merged = dict(base)
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged
