"""One-shot pruning to a budget: measure importance, close, repeat."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from torch import nn
from tqdm.auto import tqdm

from finegates.adapters import adapter_for, unwrap
from finegates.adapters.registered import check_registered
from finegates.adapters.undescribed import warn_of_undescribed
from finegates.arguments import check_whole
from finegates.compaction import CostModel
from finegates.compaction.regating import in_dense_sizes_again
from finegates.compaction.reopening import has_constant_gates, is_compact
from finegates.gates.calls import LayerCalls, refuse_uncalled
from finegates.gates.closing import TOLERANCE
from finegates.gates.config import resolved_target
from finegates.gates.gateable import check_dense, check_gateable, check_trainable
from finegates.gates.gated_linear import gated_layers
from finegates.gates.parts import forget_attachment
from finegates.gates.prices import check_length
from finegates.gates.removed_before import record_of, set_record
from finegates.pruning.calibration import Batch, Collator, calibration_batches, left_unchanged
from finegates.pruning.groups import Dimensions, SharedGroups, Vectors
from finegates.pruning.removed_weights import measure_moments, removed_squares
from finegates.pruning.sensitivity import measure_sensitivity
from finegates.seeds import derive_seed
from finegates.wrappers import check_undispatched, without_containers

Criterion = Literal["taylor", "fisher", "second_moment", "magnitude", "random"]
"""Importance of a dimension, see :func:`prune`."""

_WITHOUT_DATA = ("magnitude", "random")


def prune(
    model: nn.Module,
    data: Iterable[Any] | None = None,
    *,
    target: float | None = None,
    criterion: Criterion = "taylor",
    steps: int = 1,
    dimensions: Dimensions = "all",
    uniform: bool = False,
    multiple_of: int | None = None,
    width: bool = False,
    parts: bool = False,
    collator: Collator | None = None,
    batch_size: int = 16,
    sequence_length: int = 128,
    cost: CostModel | None = None,
    target_time: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> nn.Module:
    """Prunes a model to a budget without training, in place.

    Dimensions are those of preset ``structured``: heads and their widths, feed-forward dimensions,
    inputs and outputs of layers. They are ordered by importance divided by the MACs that they cost,
    and closed from the least on until the budget is met (:mod:`finegates.gates.closing`).
    ``requires_grad`` does not change; the result can be trained further, gated or compact.

    >>> fg.prune(model, data_loader, target=0.4)  # doctest: +SKIP
    >>> small = fg.compact(model)  # doctest: +SKIP

    With c_i the contribution of row i of the calibration set to the mean loss, and g the gate of a
    dimension, the importance of the dimension is

    - ``"taylor"``: ``mean |dc_i / dg|``, the expected first-order change of a row's loss if the
      dimension were removed (Michel et al., arXiv 1905.10650);
    - ``"fisher"``: ``mean (dc_i / dg)^2``, the diagonal of the gates' empirical Fisher information
      (Kwon et al., arXiv 2204.09656);
    - ``"second_moment"``: the sum of ``W_ij^2 E x_j^2`` over the weights removed with it; needs no
      labels;
    - ``"magnitude"``: the sum of ``W_ij^2``; needs no data;
    - ``"random"``: a random number; needs no data.

    Args:
        model: a transformers model, or a ``peft`` model around one, of an architecture that has an
            adapter, already fine-tuned for the task: dense, compact, or with constant gates of
            zeros and ones, such as those of an earlier call.
        data: the calibration set: batches, each a mapping of the model's inputs (a ``DataLoader``,
            a list); with a ``collator``, rows (a dataset).
        target: the fraction of the encoder's MACs to remove, in [0, 1); with ``cost``, of its
            predicted time. If dimensions were removed before, of what is left. None selects
            ``1 - target_time``, or 0.4.
        criterion: see above.
        steps: number of equal steps toward the target; importance is measured before each.
        dimensions: ``"all"``, or ``"inner"`` for only heads and feed-forward dimensions, whose
            removal leaves plain layers without gathers and scatters.
        uniform: every layer keeps the same numbers of heads and feed-forward dimensions, as far as
            the configuration of the model has names for them, so that :func:`finegates.uniform`
            pads nothing; implies ``"inner"`` (see ``GateConfig.uniform``).
        multiple_of: with ``uniform``, of the feed-forward dimensions; None selects one.
        width: close hidden dimensions of the whole model, too (see ``GateConfig.width``). Their
            removal changes every layer, so measure importance in several ``steps``.
        parts: close attention and feed-forward parts as a whole, too (see ``GateConfig.parts``).
        collator: makes a batch from a list of rows, as in ``transformers.Trainer``.
        batch_size: rows of a batch, with a collator.
        sequence_length: tokens of a sequence, for the MACs of attention.
        cost: measured costs (:func:`finegates.calibrate`). The budget is then on the predicted time
            after :func:`finegates.compact` with the same ``cost``, and importance is divided by
            seconds.
        target_time: with ``cost``, instead of ``target``: the wanted time as a fraction of the
            given model's, see ``GateConfig.target_time``.
        seed: of criterion ``"random"``.
        progress: show a progress bar.

    Returns:
        the same model, with constant gates of zeros and ones around its layers.

    Raises:
        ValueError: ``target`` and ``target_time`` do not add up to 1; the costs were measured for
            another dtype, device or sequence length; the model has gates that are not constants of
            zeros and ones, is compact with narrower experts or fewer hidden dimensions, or has no
            adapter; no batch calls some of its layers; a layer of a compact model that gets other
            sizes has a hook, or a replaced forward; the target cannot be reached; an option is
            unknown; the criterion needs data or labels and gets none. After an error the model is
            unchanged.
        TypeError: not a model; a layer is quantised; a batch is not a mapping of tensors.
        FloatingPointError: a derivative of the loss is not finite.
    """
    target = resolved_target(target, target_time, cost)
    _check_options(target, criterion, steps, dimensions, sequence_length)
    if (uniform and cost is not None) or (multiple_of is not None and not uniform):
        raise ValueError("multiple_of needs uniform=True, whose budget is on MACs: leave cost out")
    inner = unwrap(model)
    again = has_constant_gates(inner) or (is_compact(inner) and not gated_layers(inner))
    with in_dense_sizes_again(model) if again else nullcontext():
        return _pruned(
            model, data, target, criterion, steps, dimensions, uniform, multiple_of, collator,
            batch_size, sequence_length, cost, seed, progress, width, parts,
        )  # fmt: skip


def _pruned(
    model: nn.Module,
    data: Iterable[Any] | None,
    target: float,
    criterion: Criterion,
    steps: int,
    dimensions: Dimensions,
    uniform: bool,
    multiple_of: int | None,
    collator: Collator | None,
    batch_size: int,
    sequence_length: int,
    cost: CostModel | None,
    seed: int,
    progress: bool,
    width: bool,
    parts: bool,
) -> nn.Module:
    """:func:`prune` of a model in its dense sizes."""
    inner = unwrap(model)
    _check_prunable(inner)
    warn_of_undescribed(adapter_for(inner).blocks(inner))
    if cost is not None:
        cost.check_model(inner)
        check_length(cost, sequence_length)
    if (width or parts) and uniform:
        option = "width" if width else "parts"
        raise ValueError(f"{option} cannot be combined with uniform; leave one out")
    groups = SharedGroups(
        inner,
        dimensions,
        sequence_length,
        equal=uniform,
        multiple=multiple_of,
        width=width,
        parts=parts,
    )
    if cost is not None:
        groups.count_time(cost, inner)
    groups.check_reachable(target)
    batches: list[Batch] = []
    runs = without_containers(model)
    restored = left_unchanged(runs) if criterion not in _WITHOUT_DATA else nullcontext()
    with restored:
        if criterion not in _WITHOUT_DATA:
            batches = calibration_batches(data, collator, batch_size, runs)
        with tqdm(
            total=steps * max(1, len(batches)), desc="pruning", disable=not progress, leave=False
        ) as bar:
            for step in range(1, steps + 1):
                worth = _worth(runs, groups, criterion, batches, seed, bar.update)
                goal = 1.0 - target * step / steps
                kept = groups.close(worth, goal)
    if abs(kept - goal) > TOLERANCE:
        what = "MACs" if cost is None else "predicted time"
        warnings.warn(
            f"{kept:.1%} of the {what} are kept, and target {target:g} asks for {goal:.1%}: the "
            "dimensions of this model are so coarse that closing one more, or one fewer, misses "
            "the target by as much; choose a target that is near what is kept",
            stacklevel=3,
        )
    record = record_of(inner)
    forget_attachment(inner)
    groups.attach(model)
    set_record(inner, record)
    return model


def _worth(
    model: nn.Module,
    groups: SharedGroups,
    criterion: Criterion,
    batches: Sequence[Batch],
    seed: int,
    tick: Callable[[], object],
) -> Vectors:
    """Importance, (n,) by gate; divided by MACs unless layers keep equal sizes."""
    if criterion == "random":
        tick()
        return _drawn(groups, seed)
    if criterion == "magnitude":
        importance = removed_squares(model, groups)
        tick()
    elif criterion == "second_moment":
        importance = removed_squares(model, groups, measure_moments(model, groups, batches, tick))
    else:
        layers = {path: unwrap(model).get_submodule(path) for path in groups.layers()}
        with LayerCalls(layers) as calls:
            found = measure_sensitivity(model, groups, batches, tick)
        refuse_uncalled(calls.missing(), "the calibration set")
        importance = found.absolute if criterion == "taylor" else found.square
    if groups.sizes is not None:
        return importance
    costs = groups.costs()
    return {
        gate: importance[gate] / costs[gate].clamp(min=1e-9 * groups.dense)
        for gate in groups.gates.values()
    }


def _drawn(groups: SharedGroups, seed: int) -> Vectors:
    worth = {}
    for name, gate in groups.gates.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, "random", name))
        worth[gate] = torch.rand(gate.size, generator=generator, dtype=torch.float32, device="cpu")
    return worth


def _check_options(
    target: float, criterion: str, steps: int, dimensions: str, sequence_length: int
) -> None:
    if not 0.0 <= target < 1.0:
        raise ValueError(f"target must be in [0, 1), got {target}")
    for name, value, known in (
        ("criterion", criterion, get_args(Criterion)),
        ("dimensions", dimensions, get_args(Dimensions)),
    ):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; choose one of {list(known)}")
    for name, number in (("steps", steps), ("sequence_length", sequence_length)):
        check_whole(name, number)


def _check_prunable(inner: nn.Module) -> None:
    """Raises ValueError or TypeError if shared gates cannot be attached."""
    if gated_layers(inner):
        raise ValueError("the model has gates already: compact it, or call finegates.detach first")
    check_dense(inner)
    check_undispatched(inner)
    check_trainable(inner)
    check_registered(inner)
    blocks = adapter_for(inner).blocks(inner)
    check_gateable(inner, [path for block in blocks for path in block.linears()])


__all__ = ["Criterion", "prune"]
