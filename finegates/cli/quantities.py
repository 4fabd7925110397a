"""Human-readable numbers and times."""

from __future__ import annotations


def large(number: float) -> str:
    """Three digits and a unit: 1,234,567 is ``1.23 M``."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # A value that rounds up to a thousand gets the next unit.
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def change(before: float, after: float) -> str:
    """Both numbers and the percentage that is left."""
    return f"{large(before)} -> {large(after)} ({100 * after / before:.1f} %)"


def milliseconds(seconds: float) -> str:
    """A time of three digits, or of as many as whole milliseconds have."""
    value = 1e3 * seconds
    return f"{value:.0f} ms" if value >= 999.5 else f"{value:.3g} ms"
