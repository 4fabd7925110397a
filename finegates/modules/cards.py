"""Model cards that ``save_pretrained`` writes next to a stock model."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakKeyDictionary

from torch import nn

from finegates.files import write_text

CARD = "README.md"
"""The file that the model hub shows."""

WRITTEN = (
    "<!-- Written with the model, and again when it is saved again; delete this line to edit. -->"
)
"""The line by which a card of this library is told from one of a user."""

_CARDS: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def set_card(model: nn.Module, card: str) -> None:
    """Makes ``save_pretrained`` write a card for a model, unless it is empty."""
    if card:
        _CARDS[model] = card


def card_of(model: nn.Module) -> str | None:
    """The card that was set for a model."""
    return _CARDS.get(model)


def write_card(folder: str | Path, card: str) -> None:
    """Writes a card into a folder, unless a card of a user is there.

    Args:
        folder: an existing one.
        card: Markdown; if empty, an earlier card of this library is removed.
    """
    file = Path(folder) / CARD
    if file.exists() and read_card(folder) is None:
        return
    if card:
        write_text(file, card)
    else:
        file.unlink(missing_ok=True)


def read_card(folder: str | Path) -> str | None:
    """The card in a folder, if this library wrote it and nobody edited it; None otherwise."""
    try:
        card = (Path(folder) / CARD).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return card if WRITTEN in card.splitlines() else None
