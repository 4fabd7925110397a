"""Model cards: a ``README.md`` that says what was pruned from which model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from torch import nn

from finegates.adapters import Adapter, Block, adapter_for, unwrap
from finegates.budget import macs
from finegates.compaction.counts import block_weights
from finegates.compaction.filling import feed_forward_width, head_sizes
from finegates.formats.skeleton import empty_model
from finegates.formats.structure import bare_model, parts_of
from finegates.gates.gated_linear import gated_layers
from finegates.modules.cards import CARD, WRITTEN, card_of
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.narrow_stream import MARK

LENGTH = 128
"""Tokens of the sequence whose MACs a card gives."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(
    model: nn.Module,
    *,
    scores: Mapping[str, float] | None = None,
    base_model: str | None = None,
    license: str | None = None,
) -> str:
    """Describes a compact model in the format of the model hub.

    The card has the sizes of every block, MACs and parameters before and after, the given scores,
    the licence of the base model, and how to load the model. :func:`finegates.save` and the
    ``save_pretrained`` of :func:`finegates.uniform`'s result write it.

    Args:
        model: a result of :func:`finegates.compact`; it does not change.
        scores: of this model, by name and data; printed as they are.
        base_model: hub id of the dense model; by default the name that it was loaded from, if that
            is a hub id, or the one in the model card of its folder.
        license: identifier of the base model's licence, such as ``"apache-2.0"``; by default the
            one in the model card of the folder that it, or its compact form, was loaded from.

    Returns:
        Markdown with a YAML header.

    Raises:
        ValueError: the model has gates, or a score is not a finite number.
    """
    model = unwrap(model)
    if gated_layers(model):
        raise ValueError("the model has gates; compact it first")
    for name, score in (scores or {}).items():
        number = isinstance(score, Real) and not isinstance(score, bool)
        if not (number and math.isfinite(score)):
            raise ValueError(f"score {name!r} is {score!r}, which is not a number")
    dense, origin = _dense(model), _Origin(model, base_model, license)
    rows = _costs(model, dense)
    share, counted = rows[-1][-1], rows[-1][0].split()[0]
    parts = [
        origin.header(),
        WRITTEN,
        f"# {origin.title(type(model).__name__)}, pruned to {share} of its {counted}",
        f"{origin.sentence()} Dimensions were removed with "
        "[finegates](https://pypi.org/project/finegates/).",
        _table(("", "dense", "this model", "kept"), rows),
        "Parameters include embeddings. MACs are multiply-accumulates in the transformer layers.",
        "## What was pruned",
        _table(*_removed(model, dense)),
        "Each cell gives the kept size and the dense one.",
    ]
    if scores:
        parts += [
            "## Scores",
            _table(("measure", "score"), [(n, f"{s:g}") for n, s in scores.items()]),
        ]
    parts += ["## Use", _USE, "## Licence", origin.licence()]
    return "\n\n".join(parts) + "\n"


_USE = """\
```python
import finegates as fg

model = fg.load("folder of this card")
```"""

_STOCK_USE = """\
```python
from transformers import {name}

model = {name}.from_pretrained("folder of this card")
```"""


def stock_card(card: str, name: str, cost: object) -> str:
    """The card of the stock form of a compact model.

    Args:
        card: of the compact model.
        name: class of the stock model.
        cost: of padding, one line.

    Returns:
        the same card with other instructions and the cost.
    """
    use = _STOCK_USE.format(name=name)
    note = f"Its layers are padded to one size, which a configuration can express: {cost}."
    return card.replace(_USE, f"{note}\n\n{use}").replace(
        "library_name: finegates", "library_name: transformers"
    )


class _Origin:
    """The dense model that a model comes from, as far as it is known."""

    def __init__(self, model: nn.Module, base_model: str | None, license: str | None) -> None:
        config: Any = getattr(model, "config", None)
        name = str(getattr(config, "_name_or_path", "") or "")
        folder = Path(name)
        data = _data(folder / CARD) if name and folder.is_dir() else {}
        data |= _header(card_of(model) or "")  # of the folder that it was loaded from
        is_id = bool(_HUB_ID.fullmatch(name)) and not folder.exists()
        known = data.get("base_model")
        self.base = base_model or (name if is_id else known if isinstance(known, str) else None)
        found = license or data.get("license")
        self.license = found if isinstance(found, str) else None

    def header(self) -> str:
        """The YAML header."""
        from huggingface_hub import ModelCardData

        data = ModelCardData(
            base_model=self.base,
            license=self.license,
            library_name="finegates",
            tags=["finegates", "pruned"],
        )
        return f"---\n{data.to_yaml()}\n---"

    def title(self, name: str) -> str:
        """What a reader calls the model."""
        return self.base or name

    def sentence(self) -> str:
        """Where the model comes from."""
        if self.base is None:
            return "A pruned model; the name of its base model was not given."
        return f"A pruned version of [{self.base}](https://huggingface.co/{self.base})."

    def licence(self) -> str:
        """What is known about the licence."""
        if self.license is None:
            return (
                "Not given. A pruned model is derived from its base model, whose licence applies: "
                "look it up before you publish this one."
            )
        return f"{self.license}, that of the base model."


def _data(file: Path) -> dict[str, Any]:
    """The YAML header of a file, empty without one."""
    try:
        return _header(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _header(card: str) -> dict[str, Any]:
    """The YAML header of a model card, empty without a valid one."""
    from huggingface_hub import ModelCard

    if not card.startswith("---"):
        return {}
    try:
        values: dict[str, Any] = ModelCard(card, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # a header that somebody else wrote may be anything
        return {}
    return values


def _dense(model: nn.Module) -> nn.Module:
    """The dense model of the same class and configuration, without storage."""
    structure = parts_of(model)
    bare_model(structure, model)  # finds absent modules
    whole = {**structure, "heads": {}, "joined": [], "layers": {}, "experts": {}}
    whole.pop("stream", None)
    return empty_model(whole, type(model))


def _costs(model: nn.Module, dense: nn.Module) -> list[tuple[str, ...]]:
    """Rows of removed hidden dimensions, parameters and, if the layers are described, MACs."""
    counts = {}
    if hasattr(model, MARK):
        counts["hidden dimensions"] = sorted(getattr(model, MARK), reverse=True)
    counts["parameters"] = [sum(p.numel() for p in m.parameters()) for m in (dense, model)]
    adapter = _adapter(model)
    if adapter is not None:
        costs = [macs(m, 1, LENGTH, adapter=adapter).total for m in (dense, model)]
        counts[f"MACs of a sequence of {LENGTH} tokens"] = costs
    return [
        (name, f"{before:,}", f"{after:,}", f"{100 * after / before:.1f} %")
        for name, (before, after) in counts.items()
    ]


def _adapter(model: nn.Module) -> Adapter | None:
    """None if no layer is described: layers of any model can be gated one by one."""
    try:
        return adapter_for(model)
    except ValueError:
        return None


def _removed(model: nn.Module, dense: nn.Module) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Header and rows of the table of blocks, or of layers if no block is described."""
    adapter = _adapter(model)
    if adapter is None:
        layers = {p: m for p, m in model.named_modules() if isinstance(m, CompactLinear)}
        return ("layer", "outputs", "inputs"), [
            (path, *map("{} of {}".format, each.weight.shape, each.dense_shape))
            for path, each in layers.items()
        ]
    blocks = adapter.blocks(model)
    return ("block", *_parts(blocks), "weights"), _blocks(model, dense, blocks)


def _parts(blocks: Sequence[Block]) -> list[str]:
    """Names of the columns of :func:`_blocks`."""
    count = max((len(block.attentions) for block in blocks), default=0)
    heads = ["heads", "cross-attention heads", *(f"heads {i}" for i in range(3, count + 1))]
    return [*heads[:count], "feed-forward"]


def _blocks(model: nn.Module, dense: nn.Module, blocks: Sequence[Block]) -> list[tuple[str, ...]]:
    """Kept and dense sizes of every block."""
    count = len(_parts(blocks)) - 1
    rows = []
    for block in blocks:
        cells = [f"{len(head_sizes(model, a).heads)} of {a.heads}" for a in block.attentions]
        cells += [""] * (count - len(cells))
        feed = block.feed_forward
        if feed is None:
            cells.append("")
        else:
            widths = (feed_forward_width(m, feed) for m in (model, dense))
            cells.append("{} of {}".format(*widths))
        weights = [block_weights(m, block, {}) for m in (model, dense)]
        share = f"{100 * weights[0] / weights[1]:.1f} %" if weights[1] else ""
        rows.append((block.path, *cells, share))
    return rows


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
