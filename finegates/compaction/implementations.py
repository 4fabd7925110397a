"""Which functions compute attention and experts: by name, and only those that torch itself has.

Any other name could make transformers fetch code. Every configuration inside another one has names
of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TORCHS_OWN: dict[str, tuple[str, ...]] = {
    "attention": ("eager", "sdpa"),
    "experts": ("eager", "batched_mm"),
}
"""The names that are kept, by what the functions compute. Experts by ``grouped_mm`` are what
transformers takes by itself, wherever torch has it."""

_ATTRIBUTES = {"attention": "_attn_implementation", "experts": "_experts_implementation"}


def implementations(config: Any) -> dict[str, dict[str, str]]:
    """The names in a configuration and in those inside, as plain values; others are left out.

    Returns:
        by the path of the configuration (``""``, ``"text_config"``), names by what they compute.
    """
    found = {}
    for path, each in _configs(config):
        names = {
            kind: name
            for kind, attribute in _ATTRIBUTES.items()
            if (name := getattr(each, attribute, None)) in TORCHS_OWN[kind]
        }
        if names:
            found[path] = names
    return found


def set_implementations(config: Any, stored: Any) -> None:
    """Gives a configuration, and those inside, the names of :func:`implementations`.

    Raises:
        ValueError: not such names, or a configuration that is not there.
    """
    configs = dict(_configs(config))
    for path, names in sorted(dict(stored).items()):  # the outermost first: it passes its names on
        if path not in configs:
            raise ValueError(f"the configuration has no {path!r} that could name its functions")
        for kind, name in dict(names).items():
            if name not in TORCHS_OWN.get(kind, ()):
                raise ValueError(f"{name!r} is not a function of torch for {kind}")
            setattr(configs[path], _ATTRIBUTES[kind], name)


def _configs(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    from transformers import PreTrainedConfig

    yield path, config
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from _configs(value, f"{path}.{name}" if path else name)
