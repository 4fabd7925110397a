"""How gates are attached and trained."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from finegates.arguments import check_number, check_whole
from finegates.gates.presets import (
    SCHEDULE,
    GatePreset,
    check_reachable,
    check_schedule,
    preset_named,
)
from finegates.gates.prices import Cost, check_cost, check_length

PenaltyName = Literal["hinge", "target"]
"""Penalties of independent gates, see :mod:`finegates.gates.penalty`."""

Dimensions = Literal["all", "inner"]
"""Dimensions that shared gates may close: all, or only heads and feed-forward dimensions."""

TARGET = 0.4
"""Default of ``GateConfig.target``."""

TargetOf = Literal["given", "original"]
"""The model whose MACs a target is a fraction of, if it was compact when gates were attached."""


@dataclass(frozen=True)
class GateConfig:
    """How gates are attached and trained.

    Attributes:
        preset: ``"structured"`` (shared gates under a budget on MACs), ``"reference"`` (the paper's
            released code) or ``"paper_v1"``; see ``finegates.gates.presets.PRESETS``. None selects
            ``"structured"``, or ``"reference"`` if ``penalty``, ``kurtosis``, ``rows``, ``cols`` or
            ``modules`` is set, which only independent gates have. The attribute holds the resolved
            name.
        target: target sparsity s in [0, 1): the fraction of rows, and of columns, to close. It is
            not the realised sparsity; ``finegates.budget`` measures that. With ``"structured"``,
            the fraction of the encoder's MACs to remove, which is met; with ``cost``, of the
            predicted time. None selects ``1 - target_time``, or 0.4; the attribute holds the
            number. Next to ``target_time`` only a number is taken with which it adds up to 1.
        target_time: with ``"structured"`` and ``cost``: the wanted time of a forward pass of the
            compact model, as a fraction in (0, 1] of the dense model's. It is a fraction, because a
            fraction means the same for every batch size, and is measured by dividing two times.
            Divide milliseconds by the dense model's: ``target_time=20 / dense_milliseconds``.
            Instead of ``target``, which says what is removed: to change it, write
            ``dataclasses.replace(config, target=None, target_time=...)``. ``finegates.compact``
            must get the same ``cost``.
        cost: with ``"structured"``: measured costs (:func:`finegates.calibrate`). The budget is
            then on the time that they predict for the compact model, the moving of data between
            layers, softmax and activations included, and dimensions are closed by importance per
            second. None puts it on MACs. Not with ``uniform``.
        target_of: of which model's MACs ``target`` is a fraction if the model is compact already:
            of ``"given"``, the compact one, or of ``"original"``, the dense one that it was made
            from.
        penalty_weight: lambda, the factor of the penalty in the loss.
        penalty: ``"target"`` or ``"hinge"``; None selects the preset's. Not with ``"structured"``.
        kurtosis: weight the penalty by the kurtosis of the activations in rows and columns.
        noise_std: overrides the preset's training noise.
        rows: gate the outputs of layers.
        cols: gate the inputs of layers.
        modules: patterns (``fnmatch``) of the module names to gate, instead of the adapter's
            choice; required for an architecture without an adapter.
        dimensions: with ``"structured"``, ``"all"`` or ``"inner"``: gates on heads and feed-forward
            dimensions alone. After :func:`finegates.compact` every layer is then contiguous,
            without a gather before or a scatter after its matmul.
        uniform: with ``"structured"``: inner dimensions, of which every layer keeps the same
            numbers, as far as the configuration of the model has names for them
            (:mod:`finegates.gates.equal_sizes`). :func:`finegates.uniform` then pads nothing. Where
            it has none, dimensions are not gated, which is logged.
        multiple_of: with ``uniform``, feed-forward dimensions are a multiple of it. None selects
            the largest of 64, 32, 16, ... whose steps are fine enough for any target.
        width: with ``"structured"``: also gates on the residual stream, one for each hidden
            dimension of the whole model: of embeddings, norms, inputs and outputs of all layers,
            and the head. With ``dimensions="inner"`` they are next to heads and feed-forward
            dimensions, and layers stay contiguous. Not with ``uniform`` or ``shrink``. A model is
            refused unless all its tensors of that size are described
            (:class:`finegates.specs.StreamSpec`).
        parts: with ``"structured"``: also a gate on each attention and feed-forward part as a
            whole, in the same budget. After :func:`finegates.compact`, the layers of a closed part
            multiply nothing: its residual branch adds zero.
        train_biases: train the biases of gated layers, with ``dimensions="inner"`` of all layers
            of the blocks; None takes the preset's.
        train_head: train the task head (:func:`head_parameters`). If no head is found, because the
            model does not have the layout of transformers, set ``requires_grad`` after attaching.
        train_weights: train all weights together with the gates.
        sequence_length: with ``"structured"``, tokens of a sequence, for the MACs of attention.
        schedule: with ``"structured"``, four fractions of the training in [0, 1]: the budget starts
            to fall; it reaches its target; the choice of closed gates is final; every gate is zero
            or one. While the budget falls, the dimensions with the least importance per MAC are
            closed, once per hundredth of the training. Between the last two fractions the gates
            move linearly to zero or one; afterwards only the other parameters train.
        shrink: with ``"structured"``: :class:`finegates.GateTrainer` removes dimensions from the
            running model once they are closed for good, so that later steps multiply less. Weights,
            gates, low-rank factors and the optimizer's moments lose them. Up to rounding, the
            training is the one with ``shrink=False`` and the same ``final_at``; only the masks of a
            dropout on removed heads or dimensions differ.
        final_at: with ``"structured"``: fractions of the training in [0, 1] at which the dimensions
            that are closed are closed for good. With ``shrink`` the default is three points while
            the budget falls, and ``schedule[2]``; otherwise there are none. If there are any, gates
            are also final at ``schedule[3]``.
        random_biases: give gated layers without a bias a random, frozen one, drawn as torch
            initialises biases. The released code does this to every linear layer of a Llama, by
            mistake, which changes the outputs from the first step on. For audits only.
        seed: of the gates' initial latents; each gate's random stream is derived from its module's
            name.
    """

    preset: str | None = None
    target: float | None = None
    target_of: TargetOf = "given"
    penalty_weight: float = 50.0
    penalty: PenaltyName | None = None
    kurtosis: bool = False
    noise_std: float | None = None
    rows: bool = True
    cols: bool = True
    modules: tuple[str, ...] | None = None
    dimensions: Dimensions = "all"
    uniform: bool = False
    multiple_of: int | None = None
    width: bool = False
    parts: bool = False
    train_biases: bool | None = None
    train_head: bool = True
    train_weights: bool = False
    sequence_length: int = 128
    schedule: tuple[float, float, float, float] = SCHEDULE
    shrink: bool = False
    final_at: tuple[float, ...] | None = None
    random_biases: bool = False
    seed: int = 0
    target_time: float | None = None
    cost: Cost | None = None

    def __post_init__(self) -> None:
        asked = self._only_independent()
        if self.preset is None:
            # The class is frozen for its users; None is resolved once, here.
            object.__setattr__(self, "preset", "reference" if asked else "structured")
        self._check_types()
        preset = self.gate_preset()
        if self.penalty is not None and self.penalty not in get_args(PenaltyName):
            raise ValueError(
                f"unknown penalty {self.penalty!r}; choose one of {list(get_args(PenaltyName))}"
            )
        if not self.penalty_weight >= 0:
            raise ValueError(f"penalty_weight must be at least 0, got {self.penalty_weight}")
        if not (self.rows or self.cols):
            raise ValueError("rows and cols are both off, so there are no gates; turn one on")
        if self.uniform and self.dimensions == "all":
            object.__setattr__(self, "dimensions", "inner")
        if self.multiple_of is not None and not (self.uniform and self.multiple_of >= 1):
            raise ValueError(
                "multiple_of is a positive multiple of feed-forward dimensions with uniform=True, "
                f"got {self.multiple_of} with uniform={self.uniform}"
            )
        for name, kinds in (("dimensions", Dimensions), ("target_of", TargetOf)):
            value, known = getattr(self, name), list(get_args(kinds))
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; choose one of {known}")
        target = resolved_target(self.target, self.target_time, self.cost)
        object.__setattr__(self, "target", target)
        check_reachable(preset, self.removed())
        if preset.penalty == "macs":
            if asked:
                raise ValueError(
                    f"{asked[0]} cannot be chosen with preset {self.preset!r}, whose gates follow "
                    "the structure of the model; independent gates can: preset='reference'"
                )
            self._check_structured()
        elif self.dimensions != "all":
            option = "uniform" if self.uniform else f"dimensions={self.dimensions!r}"
            raise ValueError(
                f"{option} cannot be chosen with preset {self.preset!r}, whose gates are "
                "independent; shared gates can: preset='structured'"
            )
        elif self.width or self.parts:
            raise ValueError(
                f"{'width' if self.width else 'parts'} cannot be chosen with preset "
                f"{self.preset!r}, whose gates are independent; shared gates can: "
                "preset='structured'"
            )
        elif self.cost is not None:
            raise ValueError(
                f"{'cost' if self.target_time is None else 'target_time'} cannot be chosen with "
                f"preset {self.preset!r}, whose gates are independent; shared gates can: "
                "preset='structured'"
            )
        elif self.shrink or self.final_at is not None:
            raise ValueError(
                f"{'shrink' if self.shrink else 'final_at'} cannot be chosen with preset "
                f"{self.preset!r}: its gates can open again at any step, so that none is closed "
                "for good; those of preset='structured' are"
            )

    def removed(self) -> float:
        """The fraction to remove: ``target``, resolved."""
        assert self.target is not None
        return self.target

    def finals(self) -> tuple[float, ...]:
        """Fractions of the training at which closed dimensions are final."""
        begin, end, decide, _ = self.schedule
        if self.final_at is not None:
            return self.final_at
        if not self.shrink:
            return ()
        return (*(begin + (end - begin) * part / 4 for part in (1, 2, 3)), decide)

    def gate_preset(self) -> GatePreset:
        """The preset's constants, with the noise of the configuration."""
        assert self.preset is not None
        return preset_named(self.preset, self.noise_std)

    def _check_types(self) -> None:
        check_number("penalty_weight", self.penalty_weight)
        if self.noise_std is not None:
            check_number("noise_std", self.noise_std)
        check_whole("sequence_length", self.sequence_length)

    def _only_independent(self) -> list[str]:
        """Names of the given options that shared gates do not have."""
        given = {
            "penalty": self.penalty is not None,
            "kurtosis": self.kurtosis,
            "rows": not self.rows,
            "cols": not self.cols,
            "modules": self.modules is not None,
        }
        return [name for name, asked in given.items() if asked]

    def _check_structured(self) -> None:
        check_schedule(self.schedule)
        if self.parts and self.uniform:
            raise ValueError(
                "parts cannot be combined with uniform: no configuration says that a layer lacks "
                "its attention or feed-forward part; leave one out"
            )
        if self.cost is not None:
            if self.uniform:
                raise ValueError(
                    "cost cannot be combined with uniform, whose sizes are chosen by MACs; leave "
                    "one out"
                )
            check_length(self.cost, self.sequence_length)
        if self.width and (self.uniform or self.shrink):
            option, why = (
                ("uniform", "which chooses equal sizes of layers alone")
                if self.uniform
                else ("shrink", "which removes dimensions of layers alone")
            )
            raise ValueError(f"width cannot be combined with {option}, {why}; leave one out")
        points = (0.0, *(self.final_at or ()), 1.0)
        if list(points) != sorted(points):
            raise ValueError(f"final_at must increase within [0, 1], got {self.final_at}")

    def as_dict(self) -> dict[str, Any]:
        """The configuration as plain values.

        A budget on MACs has no entries on time.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        cost, target_time = values.pop("cost"), values.pop("target_time")
        if target_time is not None:
            values["target_time"] = target_time
        return values if cost is None else {**values, "cost": cost.as_dict()}


def resolved_target(target: float | None, target_time: float | None, cost: Cost | None) -> float:
    """The fraction to remove, of the MACs or, with a cost model, of the predicted time.

    Args:
        target: see :class:`GateConfig`; so are the others.
        target_time: see there.
        cost: see there.

    Raises:
        ValueError: both are given and do not add up to 1, ``target_time`` is not in (0, 1], or the
            costs are missing.
        TypeError: a fraction is not a number, or ``cost`` is not a cost model.
    """
    if cost is not None:
        check_cost(cost)
    for name, value in (("target", target), ("target_time", target_time)):
        if value is not None:
            check_number(name, value)
    if target_time is None:
        return TARGET if target is None else target
    if not 0.0 < target_time <= 1.0:
        raise ValueError(f"target_time must be a fraction in (0, 1], got {target_time}")
    if cost is None:
        raise ValueError(
            f"target_time={target_time} needs measured costs: cost=finegates.calibrate(model)"
        )
    if target is not None and target + target_time != 1.0:
        raise ValueError(
            f"target={target:.6g} and target_time={target_time:.6g} are two budgets: target is the "
            "fraction to remove, and target_time the fraction of the time that stays, so they add "
            "up to 1; leave one of them out. A configuration holds both, so change both: "
            "dataclasses.replace(config, target=None, target_time=...)"
        )
    return 1.0 - target_time
