"""Type checks for the arguments of public functions."""

from __future__ import annotations

from numbers import Integral, Real


def check_config(config: object, kind: type) -> None:
    """Raises TypeError unless the argument is a configuration of this class, or None."""
    if config is None or isinstance(config, kind):
        return
    name = kind.__name__
    remedy = f"make one: {name}(...)"
    if isinstance(config, str):
        remedy = f"write {name}(preset={config!r})"
    elif isinstance(config, dict):
        remedy = f"write {name}(**config)"
    elif isinstance(config, type) and issubclass(config, kind):
        remedy = f"write {name}()"
    raise TypeError(f"a {name} is needed, got {named(config)}; {remedy}")


def check_number(name: str, value: object) -> None:
    """Raises TypeError unless an argument is a real number, which a truth value is not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {named(value)}")


def check_whole(name: str, value: object, remedy: str = "") -> None:
    """Checks that an argument is an integer of at least 1.

    Args:
        name: of the argument.
        value: of it.
        remedy: what to give instead, for the message.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is below 1.
    """
    end = f"; {remedy}" if remedy else ""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {named(value)}{end}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}{end}")


def named(value: object) -> str:
    """What an argument is, for messages about its type."""
    if isinstance(value, str):
        return f"the string {value!r}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool):
        return str(value)
    return f"a {type(value).__name__}"
