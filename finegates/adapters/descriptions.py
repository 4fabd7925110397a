"""The specs of all architectures.

To add an architecture, name its attention and feed-forward classes in a spec that fits, or write a
spec of its own; then add a tiny configuration to ``CONFIGURATIONS`` in
``tests/support/described_types.py``, which takes it through the conformance suite.
"""

from __future__ import annotations

from finegates.adapters import decoders, encoders, towers
from finegates.adapters.streams import STREAMS as STREAMS
from finegates.specs import AttentionSpec, FeedForwardSpec, MixerSpec, RepeatSpec

ATTENTIONS: tuple[AttentionSpec, ...] = (
    *encoders.ATTENTIONS,
    *decoders.ATTENTIONS,
    *towers.ATTENTIONS,
)
FEED_FORWARDS: tuple[FeedForwardSpec, ...] = (
    *encoders.FEED_FORWARDS,
    *decoders.FEED_FORWARDS,
    *towers.FEED_FORWARDS,
)
MIXERS: tuple[MixerSpec, ...] = decoders.MIXERS
REPEATS: tuple[RepeatSpec, ...] = encoders.REPEATS
