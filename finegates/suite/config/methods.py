"""Configuration of a method: trained parameters, initial weights, rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from finegates.gates.config import GateConfig, PenaltyName
from finegates.gates.presets import check_reachable, check_schedule, preset_named
from finegates.suite.config.gates import GateFields
from finegates.suite.config.names import check_label
from finegates.suite.config.section import Section, exactly_one
from finegates.suite.config.suggest import nearest
from finegates.suite.config.tasks import TASKS


class GateSettings(GateFields):
    """Gates of a method.

    Every field except ``match`` is one of ``finegates.GateConfig``.

    Attributes:
        target: see ``finegates.GateConfig``; None with ``match`` or ``target_time``.
        match: with preset ``structured``, a gated method instead of a target: the run keeps as many
            MACs as that method's run on the same task and seed.
    """

    target: float | None = Field(default=None, ge=0, lt=1)
    match: str | None = None
    penalty: PenaltyName | None = GateConfig.penalty
    kurtosis: bool = GateConfig.kurtosis
    train_weights: bool = GateConfig.train_weights
    sequence_length: int = Field(default=GateConfig.sequence_length, gt=0)

    @model_validator(mode="after")
    def _reachable(self) -> GateSettings:
        exactly_one(self, ("target", "match", "target_time"))
        if self.match is not None and self.cost is not None:
            raise ValueError("match counts MACs; leave cost out")
        if self.match is not None and self.preset != "structured":
            raise ValueError(f"match goes with preset 'structured', not {self.preset!r}")
        preset = preset_named(self.preset, self.noise_std)
        if self.target is not None:
            check_reachable(preset, self.target)
        check_schedule(self.schedule)
        return self


class LoraSettings(Section):
    """LoRA (library ``peft``) on the layers that gates would be attached to.

    Attributes:
        rank: rank of the two factors.
        alpha: their product is scaled by ``alpha / rank``.
        dropout: dropout on the input of the factors.
    """

    rank: int = Field(default=8, gt=0)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class MagnitudeSettings(Section):
    """Magnitude pruning of rows and columns before training.

    Attributes:
        match: a gated method; each layer loses as many rows and columns as in its run on the same
            task and seed.
    """

    match: str


class PruningSettings(Section):
    """One-shot pruning of shared groups (``finegates.prune``) before training.

    Attributes:
        criterion: importance criterion.
        target: fraction of the encoder's MACs to remove.
        match: a method instead of a target: as many MACs are kept as in its run on the same task
            and seed.
        after: prune the fine-tuned model of this dense method on the same task and seed; None
            prunes the pretrained model, or the teacher's.
        steps: number of pruning steps; importance is measured again before each.
        rows: number of training rows, sampled by seed, on which importance is measured.
        dimensions: ``all``, ``inner`` for heads and feed-forward dimensions only, or
            ``independent`` for rows and columns that are not grouped (criterion ``taylor``).
    """

    criterion: Literal["taylor", "fisher", "second_moment", "magnitude", "random"]
    target: float | None = Field(default=None, ge=0, lt=1)
    match: str | None = None
    after: str | None = None
    steps: int = Field(default=1, gt=0)
    rows: int = Field(default=1024, gt=0)
    dimensions: Literal["all", "inner", "independent"] = "all"

    @model_validator(mode="after")
    def _one_budget(self) -> PruningSettings:
        exactly_one(self, ("target", "match"))
        if self.dimensions == "independent" and self.criterion != "taylor":
            raise ValueError("dimensions 'independent' goes with criterion 'taylor'")
        return self


class LayerSettings(Section):
    """A smaller dense encoder that keeps some of the layers.

    Attributes:
        count: number of kept layers.
        which: ``first``, or ``spread`` for evenly spaced layers, including the last.
    """

    count: int = Field(gt=0)
    which: Literal["first", "spread"] = "first"

    def kept(self, layers: int) -> list[int]:
        """Indices of the kept layers of an encoder with ``layers`` layers.

        Raises:
            ValueError: the encoder has too few layers.
        """
        if self.count > layers:
            raise ValueError(f"layers.count: {self.count} of {layers} layers cannot stay")
        if self.which == "first":
            return list(range(self.count))
        return [(place + 1) * layers // self.count - 1 for place in range(self.count)]


class DistillationSettings(Section):
    """Distillation that starts from the teacher's weights.

    Attributes:
        teacher: method whose run on the same task and seed is the teacher.
        weight: weight of the distillation term in the loss; see
            ``finegates.training.distillation``.
        temperature: divides the logits of both models.
    """

    teacher: str
    weight: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=2.0, gt=0)


class MaskSettings(Section):
    """A learnable 2:4 mask on the layers that gates would be attached to.

    See ``finegates.suite.baselines.two_of_four``.

    Attributes:
        scale: scale of the masks' logits.
    """

    scale: float = Field(default=10.0, gt=0)


class Continuation(Section):
    """Continues the training of a gated run on the same task and seed.

    Attributes:
        method: method of that run.
        hold: fix its gates as constants, without a penalty.
    """

    method: str
    hold: bool = False


class Method(Section):
    """A method of fine-tuning: trained parameters, initial weights, rates.

    Attributes:
        title: title for tables.
        gates: see :class:`GateSettings`; None: no gates.
        lora: see :class:`LoraSettings`; None: no adapter.
        magnitude: see :class:`MagnitudeSettings`; None: no magnitude pruning.
        prune: see :class:`PruningSettings`; None: no pruning before training.
        layers: see :class:`LayerSettings`; None: all layers.
        distillation: see :class:`DistillationSettings`; None: no teacher.
        mask: see :class:`MaskSettings`; None: no mask.
        continues: see :class:`Continuation`; None: starts from the pretrained model.
        init: initial weights of the encoder.
        learning_rate: AdamW's learning rate.
        rate_factor: multiplies ``learning_rate`` and ``gate_learning_rate``, not the head's; set
            by a rate search.
        rates_of: a contender of the tier's rate search; this method takes its factor on each task.
        gate_learning_rate: learning rate of gates, if it differs; 0 with shared gates leaves them
            untrained, so that importance alone selects them.
        head_learning_rate: learning rate of the task head, if it differs.
        schedule: overrides the tier's schedule.
        warmup: fraction of the steps with a linear warm-up.
        precision: overrides the tier's precision.
        epochs_factor: multiplies the tier's number of epochs, for a budget of several runs.
    """

    title: str
    gates: GateSettings | None = None
    lora: LoraSettings | None = None
    magnitude: MagnitudeSettings | None = None
    prune: PruningSettings | None = None
    layers: LayerSettings | None = None
    distillation: DistillationSettings | None = None
    mask: MaskSettings | None = None
    continues: Continuation | None = None
    init: Literal["pretrained", "random"] = "pretrained"
    learning_rate: float = Field(gt=0)
    rate_factor: float = Field(default=1.0, gt=0)
    rates_of: str | None = None
    gate_learning_rate: float | None = Field(default=None, ge=0)
    head_learning_rate: float | None = Field(default=None, gt=0)
    schedule: Literal["constant", "linear", "cosine"] | None = None
    warmup: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] | None = None
    epochs_factor: int = Field(default=1, gt=0)

    @property
    def rate(self) -> float:
        """AdamW's learning rate of parameters without a rate of their own."""
        return self.learning_rate * self.rate_factor

    @property
    def gate_rate(self) -> float | None:
        """AdamW's learning rate of gates, None for that of all other parameters."""
        rate = self.gate_learning_rate
        return None if rate is None else rate * self.rate_factor

    @property
    def trains_all(self) -> bool:
        """Whether every weight of the model is trained."""
        if self.gates is not None:
            return self.gates.train_weights
        return self.lora is None and self.mask is None

    @property
    def is_dense(self) -> bool:
        """Whether its runs end with a dense model of full size."""
        smaller = (self.gates, self.magnitude, self.prune, self.layers)
        return self.trains_all and all(section is None for section in smaller)

    @property
    def matched(self) -> str | None:
        """Label of the method that is matched, on the same task and seed."""
        if self.magnitude is not None:
            return self.magnitude.match
        if self.prune is not None:
            return self.prune.match
        return None if self.gates is None else self.gates.match

    @property
    def start(self) -> str | None:
        """Label of the method from whose run this one starts.

        That run, on the same task and seed, is the teacher, or is pruned or continued.
        """
        if self.distillation is not None:
            return self.distillation.teacher
        if self.prune is not None and self.prune.after is not None:
            return self.prune.after
        return None if self.continues is None else self.continues.method

    @property
    def needs(self) -> tuple[str, ...]:
        """Labels of the methods that must run first on the same task and seed."""
        return tuple(label for label in (self.matched, self.start) if label is not None)

    @model_validator(mode="after")
    def _one_way(self) -> Method:
        if self.magnitude is not None and self.gates is not None:
            raise ValueError("magnitude closes rows and columns itself; leave gates out")
        if self.prune is not None and (self.gates or self.magnitude or self.mask or self.layers):
            raise ValueError(
                "prune closes its groups itself; leave gates, magnitude, mask and layers out"
            )
        if self.prune is not None and self.prune.after is not None and self.distillation:
            raise ValueError("the teacher of distillation is pruned; leave prune.after out")
        if self.layers is not None and (self.gates or self.magnitude or self.mask):
            raise ValueError("layers is a smaller dense model; leave gates, magnitude and mask out")
        if self.mask is not None and (self.magnitude or self.gates or self.lora):
            raise ValueError("mask is a method of its own; leave gates, lora and magnitude out")
        if self.start is not None and self.init == "random":
            raise ValueError("the run starts from the weights of another; leave init out")
        if self.continues is not None and (self.gates is None or self.distillation is not None):
            raise ValueError("continues goes with the gates that it continues, and nothing else")
        return self


def first_of_each_kind(methods: Mapping[str, Method]) -> dict[str, Method]:
    """The first method of each kind, whose training steps are timed.

    Methods that need other runs are skipped.

    Returns:
        methods by kind: ``full``, ``lora``, ``gates``, ``gates and lora``, in the order of
        ``methods``.
    """
    chosen: dict[str, Method] = {}
    for method in methods.values():
        if method.needs or method.prune is not None or method.layers is not None:
            continue
        kind = {
            (False, False): "full",
            (False, True): "lora",
            (True, False): "gates",
            (True, True): "gates and lora",
        }[(method.gates is not None, method.lora is not None)]
        chosen.setdefault(kind, method)
    return chosen


def check_names(tasks: list[str], methods: dict[str, Method]) -> None:
    """Checks task names, labels, and references between methods.

    Raises:
        ValueError: an unknown or repeated task, an unusable label, or a reference to a method that
            does not exist.
    """
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}{nearest(task, TASKS)}")
    if len(set(tasks)) < len(tasks):
        raise ValueError("tasks and seeds must not repeat")
    for label, method in methods.items():
        check_label(label, "method label")
        _check_needs(label, method, methods)


def _check_needs(label: str, method: Method, methods: dict[str, Method]) -> None:
    found = {needed: methods.get(needed) for needed in method.needs}
    if method.prune is not None and method.prune.match is not None:
        if found[method.prune.match] is None:
            raise ValueError(
                f"methods.{label}.prune.match: {method.prune.match!r} is not a method of this "
                f"tier{nearest(method.prune.match, methods)}"
            )
    elif method.matched is not None:
        gated = found[method.matched]
        if gated is None or gated.gates is None:
            part = "gates" if method.magnitude is None else "magnitude"
            raise ValueError(
                f"methods.{label}.{part}.match: {method.matched!r} is not a gated method of this "
                f"tier{nearest(method.matched, methods)}"
            )
    if method.start is not None and method.continues is None:
        key = "prune.after" if method.distillation is None else "distillation.teacher"
        dense = found[method.start]
        if dense is None or not dense.is_dense:
            raise ValueError(
                f"methods.{label}.{key}: {method.start!r} is not a method of this tier that trains "
                f"every weight of the dense model{nearest(method.start, methods)}"
            )
    if method.continues is not None:
        earlier = found[method.continues.method]
        if earlier is None or not _same_trained(earlier, method):
            raise ValueError(
                f"methods.{label}.continues.method: {method.continues.method!r} is not a method of "
                "this tier with the same gates and low-rank factors on a frozen encoder"
                f"{nearest(method.continues.method, methods)}"
            )
    for needed in found:
        if list(methods).index(needed) >= list(methods).index(label):
            raise ValueError(f"method {label!r} must come after {needed!r}, which it needs")


def _same_trained(earlier: Method, later: Method) -> bool:
    """Whether weights that the earlier method trains can be loaded by the later one."""
    if earlier.gates is None or later.gates is None or earlier.trains_all:
        return False
    ranks = {None if method.lora is None else method.lora.rank for method in (earlier, later)}
    return earlier.gates.preset == later.gates.preset and len(ranks) == 1
