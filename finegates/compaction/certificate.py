"""Whether a compact model computes what the gated one does, on the inputs of a user.

Exactness is proved rule by rule and tested on tiny models of every described type. A configuration
may still have an option that no test has, so the models themselves can be compared.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from finegates.adapters import Adapter, adapter_for, has_module
from finegates.adapters.registered import Spec, label
from finegates.modules.experts import compute_experts_by
from finegates.wrappers import has_autocast, remove_autocast

LOGGER = logging.getLogger(__name__)

TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.05,
}
"""Largest difference that passes for rounding, relative to the numbers of an output."""


class NotEqualError(ValueError):
    """A compact model does not compute what the gated one does; names where they differ."""


@dataclass
class Recording:
    """The outputs of a model and of some of its layers for given inputs.

    Attributes:
        outputs: all floating-point numbers, in order.
        inside: by path, outputs of the layers that write to the residual stream, in order of use.
        dtype: of the computation.
    """

    outputs: list[Tensor]
    inside: dict[str, Tensor] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


def check_inputs(inputs: Any, dtype: torch.dtype | None) -> None:
    """Raises ValueError unless models can be compared on these inputs in that dtype."""
    if not isinstance(inputs, Mapping):
        raise ValueError(
            "verify must be the keyword arguments of the model's forward, as a tokenizer gives "
            f"them, got {type(inputs).__name__}"
        )
    for name, value in inputs.items():
        held = getattr(value, "get_seq_length", None)
        if held is not None and held():
            raise ValueError(
                f"verify has a cache ({name}) that holds {held()} positions, whose keys have the "
                "sizes of one model; leave it out, or give an empty one"
            )
    if dtype not in (None, torch.float64):
        raise ValueError(f"verify_dtype must be torch.float64 or None, got {dtype}")


def record(
    model: nn.Module, inputs: Mapping[str, Any], paths: list[str], *, strict: bool = False
) -> Recording:
    """Runs a model in evaluation mode; it and the inputs are left as they were.

    Random numbers that its forward draws are the same in every recording.

    Args:
        model: gated or compact, plain.
        inputs: keyword arguments of its forward.
        paths: of modules whose outputs are wanted.
        strict: whether a float64 model computes everything in float64, also where its code rounds.
    """
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    runs = model
    if has_autocast(model):
        runs = copy.deepcopy(model)
        remove_autocast(runs)
    device = next(runs.parameters()).device
    given = {name: _placed(value, device, dtype) for name, value in inputs.items()}
    recording = Recording([], dtype=dtype)
    handles = [
        runs.get_submodule(path).register_forward_hook(_keep(recording.inside, path))
        for path in paths
        if has_module(runs, path)
    ]
    try:
        with (
            _same_random_numbers(device),
            torch.no_grad(),
            _evaluation(runs),
            InFloat64() if strict else nullcontext(),
        ):
            recording.outputs = [t.detach().cpu() for t in floats(runs(**given))]
    finally:
        for handle in handles:
            handle.remove()
    return recording


def check_recorded(recording: Recording, model: nn.Module) -> Recording:
    """Returns a recording of a gated model, unless it has no numbers to compare.

    Raises:
        ValueError: no output is a finite floating-point number.
    """
    if any(bool(output.isfinite().any()) for output in recording.outputs):
        return recording
    what = "numbers that are not finite" if recording.outputs else "no floating-point numbers"
    raise ValueError(
        f"{type(model).__name__} gives {what} on the inputs of verify, so there is nothing to "
        "compare; let its forward return tensors, in a tuple, a list, a mapping or a dataclass, "
        "and give inputs with finite outputs"
    )


def record_compact(
    model: nn.Module, inputs: Mapping[str, Any], paths: list[str], *, strict: bool = False
) -> Recording:
    """Records a compact model whose description may be wrong, as :func:`record` does.

    Raises:
        NotEqualError: the model cannot be called on the inputs.
    """
    try:
        return record(model, inputs, paths, strict=strict)
    except Exception as error:  # a wrong description can fail in any way
        raise NotEqualError(
            f"the compact {type(model).__name__} cannot be called on the inputs that the gated one "
            f"takes: {type(error).__name__}: {error}. A description of its modules does not fit "
            "them; compare it with their code, or leave it out"
        ) from error


def writing_layers(model: nn.Module, adapter: Adapter | None) -> list[str]:
    """Paths of the layers that write to the residual stream, in order; empty without an adapter."""
    try:
        adapter = adapter or adapter_for(model)
    except ValueError:
        return []
    paths = []
    for block in adapter.blocks(model):
        paths += [part.o for part in block.attentions]
        paths += [path for part in block.mixers for path in part.writes]
        if block.feed_forward is not None:
            paths.append(block.feed_forward.down)
        if block.experts is not None:
            paths.append(block.experts.path)
    return paths


def check_equal(
    gated: Recording,
    small: Recording,
    kept: Tensor | None = None,
    specs: Sequence[Spec] = (),
) -> float:
    """Compares two recordings and returns their largest relative difference.

    Args:
        gated: of the gated model.
        small: of the compact one.
        kept: int64, the dimensions that are left of the residual stream; None if it keeps its
            width. Where the stream is an output, the others must be zero.
        specs: descriptions of the model that were registered, for messages.

    Raises:
        NotEqualError: it is more than rounding; names the first layer that differs.
    """
    tolerance = TOLERANCES.get(gated.dtype, TOLERANCES[torch.float32])
    outputs = gated.outputs
    if kept is not None:
        pairs = zip(gated.outputs, small.outputs, strict=False)
        outputs = [_without_zeros(mine, theirs, kept) for mine, theirs in pairs]
    worst = relative_difference(outputs, small.outputs)
    if worst <= tolerance:
        LOGGER.info("compact equals gated to %.1e on the given inputs (%s)", worst, gated.dtype)
        return worst
    apart = {
        path: _difference(given, small.inside[path])
        for path, given in gated.inside.items()
        if path in small.inside
    }
    where = next(
        (
            f"; they part at {path} (relative difference {difference:.1e})"
            for path, difference in apart.items()
            if not difference <= tolerance
        ),
        "; no described layer differs before the output",
    )
    raise NotEqualError(
        f"the compact model differs from the gated one by {worst:.1e} of its outputs; "
        f"rounding alone gives at most {tolerance:.0e} in {gated.dtype}{where}. {_advice(specs)}"
    )


def _advice(specs: Sequence[Spec]) -> str:
    """What to do about a description that does not cover what a model computes."""
    out = "or leave that part out with GateConfig(preset='reference', modules=...)"
    if not specs:
        return (
            "The description of the architecture does not cover all that it computes; "
            f"{out.removeprefix('or ')}, and please report it with the configuration"
        )
    named = "; ".join(map(label, specs))
    return (
        f"A registered description ({named}) is wrong. Compare its fields with the forward of the "
        "class: first scaled_by_width (True if forward divides scores by the root of the width "
        "that it finds, not by a stored number), then layout, sizes, rotary, norm, value_bias, "
        f"per_head, cross, joint, and phi or activation; {out}"
    )


def _without_zeros(mine: Tensor, theirs: Tensor, kept: Tensor) -> Tensor:
    """Selects the kept dimensions if the other output has only those and the rest is zero."""
    narrower = mine.shape[:-1] == theirs.shape[:-1] and mine.shape[-1] > theirs.shape[-1]
    if not narrower or theirs.shape[-1] != kept.numel() or int(kept[-1]) >= mine.shape[-1]:
        return mine
    chosen = mine.index_select(-1, kept)
    return chosen if int(mine.count_nonzero()) == int(chosen.count_nonzero()) else mine


def floats(values: Any) -> Iterator[Tensor]:
    """The floating-point tensors among the outputs of a model."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from floats(value)
    elif isinstance(values, tuple | list):
        for value in values:
            yield from floats(value)
    elif is_dataclass(values) and not isinstance(values, type):
        for each in fields(values):
            yield from floats(getattr(values, each.name))


def float64_copy(model: nn.Module) -> nn.Module:
    """A copy in float64; its experts are multiplied one by one, as torch groups no such products.

    Complex buffers stay complex.
    """
    double = copy.deepcopy(model).double()
    compute_experts_by(double, "eager")
    return double


class InFloat64(TorchFunctionMode):
    """Computes in float64 what architectures round to float32 on the way."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.float:  # of positions, too, which meet numbers in float64
            return args[0].double()
        doubles = any(isinstance(a, Tensor) and a.dtype is torch.float64 for a in args)
        if doubles:
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return func(*args, **kwargs)


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Seeds the generators of the CPU and of a device, and restores their states afterwards."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(0)
        if on_gpu:
            torch.cuda.default_generators[device.index].manual_seed(0)
        yield


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, and every module back to the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _placed(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)  # such as an empty cache, which a forward pass fills
    if value.is_floating_point():
        return value.to(device, dtype)
    return value.to(device)


def _keep(found: dict[str, Tensor], path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        first = next(floats(output), None)
        if first is not None:
            found[path] = first.detach().cpu()  # a layer that is used several times: its last

    return hook


def relative_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference of two rows of outputs, each relative to its numbers.

    A difference counts relative to the number itself, or to the largest number of its tensor if
    that is larger; numbers that only mark places (:func:`_largest`) are not counted as largest.
    Infinite if their shapes, or the places of numbers that are not finite, differ.
    """
    if len(one) != len(other):
        return float("inf")
    return max((_difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest difference relative to the numbers of a tensor; inf if shapes or gaps differ."""
    if one.shape != other.shape or not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    there = one.isfinite()
    if not bool(there.any()):
        return 0.0
    a, b = one[there].double(), other[there].double()
    return float(((a - b).abs() / a.abs().clamp(min=_largest(a.abs()))).max())


_MARKS = 1e3
"""Numbers above this may mark places, such as the logits of forbidden tokens, -10000 or -1e9."""


def _largest(sizes: Tensor) -> float:
    """The largest of some absolute values, without those that mark places.

    Of the values from :data:`_MARKS` on, those count as marks that are more than ten times as large
    as any smaller one; otherwise every difference would be small relative to a mark.
    """
    largest = float(sizes.max())
    if largest >= _MARKS:
        ordered = sizes[sizes > 0].sort().values
        jumps = (ordered[1:] >= _MARKS) & (ordered[1:] > 10 * ordered[:-1])
        if bool(jumps.any()):
            largest = float(ordered[int(jumps.nonzero()[0])])
    return max(largest, 1e-30)
