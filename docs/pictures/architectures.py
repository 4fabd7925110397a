"""Writes the table of docs/architectures.md, from the descriptions and tiny models."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from finegates.adapters import adapter_for  # noqa: E402
from support.described import described_model  # noqa: E402
from support.described_types import CONFIGURATIONS  # noqa: E402

PAGE = ROOT / "docs" / "architectures.md"
START, END = "<!-- table: make pictures -->\n", "<!-- end of table -->\n"


def row(kind: str, model: nn.Module) -> str:
    """The dimensions that shrink in a type."""
    blocks = adapter_for(model).blocks(model)
    attentions = [part for block in blocks for part in block.attentions]
    narrows = [part for part in attentions if part.narrows]
    cells = [
        "yes" if any(not part.fixed_heads for part in narrows) else "",
        "yes" if any(not part.fixed_scores for part in narrows) else "",
        "yes" if narrows else "",
        "yes" if any(block.feed_forward is not None for block in blocks) else "",
        "yes" if any(block.experts is not None for block in blocks) else "",
        "yes" if any(block.mixers for block in blocks) else "",
    ]
    return f"| `{kind}` | {' | '.join(cells)} |"


def table() -> str:
    """All types in alphabetical order."""
    rows = {name: row(name, described_model(name)) for name in CONFIGURATIONS if "/" not in name}
    head = "| `model_type` | heads | q, k dimensions | v dimensions | feed-forward | experts |"
    lines = [f"{head} ends only |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*lines, *(rows[kind] for kind in sorted(rows))]) + "\n"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + START + table() + END + after, encoding="utf-8")
