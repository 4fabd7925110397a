"""Plans of a compaction: of layers, blocks and a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from finegates.adapters import Experts, HeadSizes, Stream


@dataclass(frozen=True)
class LayerPlan:
    """Rows and columns that are kept of one linear layer.

    Attributes:
        path: module path in the unwrapped model; empty if the model is the layer itself.
        in_features: columns of the dense weight.
        out_features: rows of the dense weight.
        cols: int64, increasing: the kept columns. None keeps all.
        rows: int64, increasing: the kept rows. None keeps all.
        input_width: size of a narrow input; None if the input is dense.
        read: int64 (kept columns,), increasing: their positions in a narrow input; None if they are
            all of it. A dense input is read at ``cols``.
        output_width: size of a narrow output; None if the output is dense.
        write: int64 (kept rows,), increasing: their positions in a narrow output; None if they fill
            it. A dense output is written at ``rows``.
        scale: float64 (out_features,), extra factor of each row of weight and bias; None: 1.
        constants: float64 (in_features,), the constant inputs of removed columns, which move into
            the bias; None if all are zero.
        reasons: descriptions of the removals.
        seconds: predicted time of one token; None without a cost model.
    """

    path: str
    in_features: int
    out_features: int
    cols: Tensor | None = None
    rows: Tensor | None = None
    input_width: int | None = None
    read: Tensor | None = None
    output_width: int | None = None
    write: Tensor | None = None
    scale: Tensor | None = None
    constants: Tensor | None = None
    reasons: tuple[str, ...] = ()
    seconds: float | None = None

    @property
    def kept_in(self) -> int:
        """Number of kept columns."""
        return self.in_features if self.cols is None else self.cols.numel()

    @property
    def kept_out(self) -> int:
        """Number of kept rows."""
        return self.out_features if self.rows is None else self.rows.numel()

    @property
    def kept_weights(self) -> int:
        """Kept weights, equal to the MACs of one token."""
        return self.kept_out * self.kept_in

    @property
    def removed_weights(self) -> int:
        """Removed weights."""
        return self.out_features * self.in_features - self.kept_weights

    def __str__(self) -> str:
        sizes = f"{self.out_features}x{self.in_features} -> {self.kept_out}x{self.kept_in}"
        macs = f"{self.kept_weights:,} MACs a token"
        time = "" if self.seconds is None else f", {1e6 * self.seconds:.2f} us"
        why = "; ".join(self.reasons) or "all kept"
        return f"{self.path or '(the model)'}: {sizes}, {macs}{time}; {why}"


@dataclass(frozen=True)
class ExpertsPlan:
    """What is kept of the stacked experts of one layer.

    Attributes:
        part: the dense experts.
        kept: bool (experts, intermediate).
    """

    part: Experts
    kept: Tensor

    @property
    def width(self) -> int:
        """Width of every expert, which is what the widest needs."""
        return self.part.aligned(int(self.kept.sum(1).max()))

    def __str__(self) -> str:
        part = self.part
        return (
            f"{part.path}: {part.count} experts of width {part.width} -> {self.width}, "
            f"{part.macs(self.width):,} MACs a token in the {part.active} that it goes to"
        )


@dataclass(frozen=True)
class StreamPlan:
    """What is kept of the residual stream.

    Attributes:
        stream: the dense one.
        kept: int64 (k,), increasing.
        gate: (d,), values of the gate on it.
        removed: number of parameters outside of blocks that go.
    """

    stream: Stream
    kept: Tensor
    gate: Tensor
    removed: int

    def __str__(self) -> str:
        return f"residual stream: {self.stream.size} -> {self.kept.numel()} dimensions"


@dataclass(frozen=True)
class BlockPlan:
    """MACs of one transformer layer before and after, and its layer plans.

    Attributes:
        path: the layer's own module path.
        layers: paths of its planned linear layers, in order of use.
        attentions: paths of its attentions.
        feed_forward: path of its feed-forward module, if gate and up can be fused.
        macs: MACs per token in its linear layers, before and after.
        attention_macs: MACs per pair of a token and an attended token, before and after.
        seconds: predicted time of a token once compact: in the whole block if the costs are known
            for a length of sequences, otherwise in the planned layers; None without a cost model.
        experts: path of its stacked experts, or None.
    """

    path: str
    layers: tuple[str, ...]
    attentions: tuple[str, ...]
    feed_forward: str | None
    macs: tuple[int, int]
    attention_macs: tuple[int, int]
    seconds: float | None = None
    experts: str | None = None

    def __str__(self) -> str:
        return f"{self.path}: {_counted(self.macs, self.attention_macs, self.seconds)}"


def _counted(
    macs: tuple[int, int], attention: tuple[int, int], seconds: float | None = None
) -> str:
    before, after = macs
    share = f" ({100 * after / before:.1f} %)" if before else ""
    text = f"{before:,} -> {after:,} MACs a token{share}"
    if attention[0]:
        text += f" and {attention[0]:,} -> {attention[1]:,} for each token attended to"
    return text if seconds is None else f"{text}, {1e6 * seconds:.2f} us"


@dataclass(frozen=True)
class Times:
    """Predicted seconds of a token before and after compaction.

    Attributes:
        dense: before.
        kept: after.
        length: tokens of the sequences for which the costs were measured, and then the times are
            those of the whole model; None: of the planned linear layers alone.
    """

    dense: float
    kept: float
    length: int | None

    def __str__(self) -> str:
        of = "in linear layers" if self.length is None else f"in sequences of {self.length} tokens"
        return f"{1e6 * self.dense:.2f} -> {1e6 * self.kept:.2f} us a token predicted {of}"


@dataclass(frozen=True)
class Plan:
    """The layers that compaction rewrites, by path; all others do not change.

    ``print(plan)`` shows the MACs of all blocks before and after, then of each block with its
    layers: sizes, MACs, predicted times and reasons. Its last line is :meth:`summary`.

    Attributes:
        layers: plans by module path.
        heads: sizes of the attentions whose heads change, by module path.
        notes: removals that are not possible, and why.
        blocks: plans of the transformer layers; empty without an adapter.
        joined: paths of the feed-forward modules whose gate and up are fused.
        parameters: of the model before and after, without gates.
        times: predicted, before and after; None without a cost model.
        experts: plans of stacked experts by module path.
        stream: of the residual stream; None if it keeps its width.
    """

    layers: dict[str, LayerPlan]
    heads: dict[str, HeadSizes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    blocks: tuple[BlockPlan, ...] = ()
    joined: tuple[str, ...] = ()
    parameters: tuple[int, int] = (0, 0)
    times: Times | None = None
    experts: dict[str, ExpertsPlan] = field(default_factory=dict)
    stream: StreamPlan | None = None

    def summary(self) -> str:
        """One line: parameters, multiply-accumulates, predicted time, before and after."""
        before, after = self.parameters
        share = f" ({100 * after / before:.1f} %)" if before else ""
        text = f"{before:,} -> {after:,} parameters{share}; {_counted(*self._counts())}"
        return text if self.times is None else f"{text}; {self.times}"

    def __str__(self) -> str:
        lines = [self._total()] if self.blocks else []
        inside: set[str] = set()
        for block in self.blocks:
            inside.update(block.layers)
            lines.append(str(block))
            lines += [f"  {self.layers[path]}" for path in block.layers]
            lines += [f"  {self._heads(path)}" for path in block.attentions if path in self.heads]
            if block.feed_forward in self.joined:
                lines.append(f"  {block.feed_forward}: gate and up one product")
            if block.experts in self.experts:
                lines.append(f"  {self.experts[block.experts]}")
        lines += [str(layer) for path, layer in self.layers.items() if path not in inside]
        return "\n".join([*lines, *self.notes, self.summary()])

    def _total(self) -> str:
        known = [block.seconds for block in self.blocks if block.seconds is not None]
        seconds = sum(known) if known else None
        return f"{len(self.blocks)} blocks: {_counted(*self._counts(), seconds)}"

    def _counts(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """MACs per token, and per pair of tokens, over all blocks.

        Without an adapter they are those of the planned layers.
        """
        if not self.blocks:
            dense = sum(p.out_features * p.in_features for p in self.layers.values())
            kept = sum(p.kept_weights for p in self.layers.values())
            return (dense, kept), (0, 0)
        macs, attention = (
            (sum(before for before, _ in pairs), sum(after for _, after in pairs))
            for pairs in (
                [block.macs for block in self.blocks],
                [block.attention_macs for block in self.blocks],
            )
        )
        return macs, attention

    def _heads(self, path: str) -> str:
        sizes = self.heads[path]
        return (
            f"{path}: {len(sizes.heads)} heads, {len(sizes.kv_heads)} of keys and values, "
            f"width {sizes.head_dim} -> {sizes.width}{', one product' * sizes.fused}"
        )
