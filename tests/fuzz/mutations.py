"""Inputs for readers: valid files with changed bytes or values."""

from __future__ import annotations

import json
from typing import Any

import yaml
from hypothesis import strategies as st
from target import Target

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just([]),
    st.just({}), st.just(-1), st.just(2**70), st.just("../../etc/passwd"),
)  # fmt: skip


@st.composite
def edited(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with bytes replaced, removed or inserted at a few places."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 8)))
        content = content[:start] + draw(st.binary(max_size=8)) + content[end:]
    return content


def nodes(tree: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    return [place] * bool(place) + [p for key, child in items for p in nodes(child, (*place, key))]


@st.composite
def regrown(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with values replaced or removed."""
    for _ in range(draw(st.integers(1, 3))):
        places = nodes(tree)
        if not places:
            return tree
        *path, last = draw(st.sampled_from(places))
        parent = tree
        for key in path:
            parent = parent[key]
        if draw(st.booleans()):
            parent[last] = draw(SCALARS)
        else:
            del parent[last]
    return tree


@st.composite
def inputs(draw: st.DrawFn, target: Target) -> bytes:
    """A valid file with changed bytes, or, if the format is a tree, with changed values."""
    seed = draw(st.sampled_from(target.seeds))
    if target.tree is None or draw(st.integers(0, 3)) == 0:
        return draw(edited(seed))
    if target.tree == "yaml":
        tree = draw(regrown(yaml.safe_load(seed)))
        return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", errors="replace")
    return json.dumps(draw(regrown(json.loads(seed)))).encode("utf-8", errors="replace")
