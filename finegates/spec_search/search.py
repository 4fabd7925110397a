"""Searches descriptions of the modules of layers: candidates by name, certified by replay."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

from finegates.adapters import AttentionSpec
from finegates.adapters.described import DescribedAdapter
from finegates.adapters.names import class_name
from finegates.modules.torch_layers import why_whole
from finegates.spec_search.candidates import attention_candidates, feed_candidates, linears_below
from finegates.spec_search.replay import Replay, Spec

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Layers in these are those of the module around them."""


@dataclass(frozen=True)
class Note:
    """What stays whole.

    Attributes:
        name: of the class.
        text: which part of it, and why.
    """

    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}{self.text}, so it stays whole"


@dataclass
class Search:
    """A search in the layers of a model.

    Layers of one class may hold different modules, as in hybrids. So every set of classes is
    searched once, and a class is tried in the layers that have it.

    Attributes:
        replays: one for every layer that is called.
        known: the descriptions that there are.
        cross: classes of modules that are named as those that attend to an encoder.
        specs: that were found.
        notes: classes of which no description is exact.
    """

    replays: list[Replay]
    known: DescribedAdapter
    cross: set[type]
    specs: list[Spec] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    _tried: dict[str, list[Spec]] = field(default_factory=dict)
    _named: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Searches every layer that holds other modules than those before."""
        seen: set[frozenset[type]] = set()
        for replay in self.replays:
            kinds = frozenset(map(type, replay.layer.modules()))
            if kinds not in seen:
                seen.add(kinds)
                self._search(replay.layer)
        self.notes = [note for note in self.notes if note.name not in self._named]

    def _search(self, layer: nn.Module) -> None:
        """Searches the modules of a layer from the inside out."""
        claimed: set[str] = set()  # layers that an inner module has
        inside_out = sorted(
            layer.named_modules(), key=lambda item: -item[0].count(".") - bool(item[0])
        )
        for path, module in inside_out:
            name = class_name(type(module))
            if self.known.knows(module) or name in self._named or why_whole(module):
                claimed |= linears_below(layer, path)
            elif not isinstance(module, CONTAINERS):
                found = [
                    self._try(name, what, candidates, kinds)
                    for what, candidates, kinds in (
                        (
                            "",
                            [*attention_candidates(layer, path, module, self.cross)],
                            ("scores", "values", "heads", "rows"),
                        ),
                        (
                            "'s feed-forward part",
                            [*feed_candidates(layer, path, module, claimed)],
                            ("hidden", "rows"),
                        ),
                    )
                ]
                if any(found):
                    claimed |= linears_below(layer, path)

    def _try(
        self, name: str, what: str, candidates: Sequence[Spec], kinds: tuple[str, ...]
    ) -> bool:
        """Whether one of the new candidates is exact; notes why not."""
        tried = self._tried.setdefault(name, [])
        new = [each for each in candidates if each not in tried]
        tried += new
        if not new:
            return False
        having = [replay for replay in self.replays if replay.has((name,))]
        replays = [*{id(r): r for r in (having[0], having[len(having) // 2], having[-1])}.values()]
        spec, reason = _first_exact(new, replays, kinds)
        if spec is None:
            if not any(note.name == name for note in self.notes):  # the likelier kind is first
                self.notes.append(Note(name, f"{what}: no description is exact ({reason})"))
            return False
        self.specs.append(_joint(spec, replays))
        self._named.add(name)
        return True


def less_free_forms(spec: Spec) -> Iterator[Spec]:
    """A spec, and the same with less freedom."""
    yield spec
    if isinstance(spec, AttentionSpec):
        for scores, heads, biased in itertools.product((False, True), repeat=3):
            yield dataclasses.replace(
                spec,
                fixed_scores=spec.fixed_scores or scores,
                fixed_heads=spec.fixed_heads or heads,
                value_bias=spec.value_bias or biased,
            )


def _first_exact(
    candidates: list[Spec], replays: list[Replay], kinds: tuple[str, ...]
) -> tuple[Spec | None, str]:
    """The first candidate that is exact in all replays; then those with less freedom.

    Returns:
        it, or None; and why the likeliest is not exact.
    """
    reason = ""
    for spec in candidates:
        for replay in replays:
            if not replay.certifies(spec, kinds):
                reason = reason or replay.reason
                break
        else:
            return spec, ""
    for scores, heads, fewer in (
        (True, False, ("values", "heads", "rows")),
        (False, True, ("scores", "values", "rows")),
        (True, True, ("values", "rows")),
    ):
        for spec, biased in itertools.product(candidates, (False, True)):
            if isinstance(spec, AttentionSpec):
                less = dataclasses.replace(
                    spec, fixed_scores=scores, fixed_heads=heads, value_bias=biased
                )
                if all(replay.certifies(less, fewer) for replay in replays):
                    return less, ""
    return None, reason


def _joint(spec: Spec, replays: list[Replay]) -> Spec:
    """The spec with one matmul for layers that read the same, where that is exact, too."""
    several = (
        spec.q != spec.k if isinstance(spec, AttentionSpec) else spec.gate not in (None, spec.up)
    )
    if several:
        joint = dataclasses.replace(spec, joint=True)
        if all(replay.certifies(joint, ("ends",)) for replay in replays):
            return joint
    return spec
