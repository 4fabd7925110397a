"""Watches forward passes for weights of gated layers that are used without their gates.

A module may use a weight in ways that its source does not show: through a list, a computed name,
or a reference that it holds. Therefore the first forward pass of every kind is watched: every
operation of torch that gets a tensor with the storage of a gated layer's weight or bias must be
called by the gated layer, or by another module that has the parameter as its own (tied weights).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from finegates.gates.held_layers import storage_of
from finegates.gates.weight_reads import HARMLESS, HARMLESS_CALLS
from finegates.modules.kinds import GatedLayer

# These give the same numbers, whose use is seen later, or none.
_NO_USE = {*HARMLESS, "data", "detach", "grad", "is_leaf", "grad_fn", "is_inference"}
_NO_USE |= {"empty_like", "zeros_like", "ones_like", "is_quantized", "is_sparse", "is_complex"}


def watch_weights(model: nn.Module) -> None:
    """Makes a model refuse forward passes that bypass its gates.

    A forward pass is watched if none before had its mode (training or evaluation, with or without
    gradients) and its arguments (their names, and whether the text has one token). Compiled,
    exported and traced models are not watched.

    Args:
        model: with gates; each forward pass that is watched raises ValueError at the first
            operation on a weight without its gates, and names the layer and the module.
    """
    if _watches(model):
        return
    watch = _Watch()
    model.register_forward_pre_hook(watch, with_kwargs=True, prepend=True)
    model.register_forward_hook(watch.stop, always_call=True)


def stop_watching(model: nn.Module) -> None:
    """Removes what :func:`watch_weights` added to a model and to models inside it."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", hook), _Watch):
                    del hooks[key]
                    module._forward_pre_hooks_with_kwargs.pop(key, None)
                    module._forward_hooks_always_called.pop(key, None)


def _watches(model: nn.Module) -> bool:
    return any(isinstance(hook, _Watch) for hook in model._forward_pre_hooks.values())


class _Modes(threading.local):
    """The modes of running forward passes, None for one that is not watched, of each thread."""

    def __init__(self) -> None:
        self.running: list[_WeightUses | None] = []

    def __reduce__(self) -> tuple[type[_Modes], tuple[()]]:
        return _Modes, ()  # a copy of a model runs nowhere yet


class _Watch:
    """A hook before and a hook after the forward pass of a model."""

    def __init__(self) -> None:
        self._known: set[tuple[Any, ...]] = set()
        # A mode of torch belongs to a thread, and several may run one model.
        self._modes = _Modes()

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        mode = None if self._is_known(model, args, kwargs) else _WeightUses(model)
        self._modes.running.append(mode)
        if mode is not None:
            mode.__enter__()

    def _is_known(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if torch._C._get_tracing_state() is not None:
            return True
        kind = _kind(model, args, kwargs)
        if kind in self._known or is_compiled(model):
            return True
        self._known.add(kind)
        return False

    def stop(self, model: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self._modes.running:
            return
        mode = self._modes.running.pop()
        if mode is not None:
            mode.__exit__(None, None, None)


def _kind(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[bool, bool, int, frozenset[str], bool]:
    given = frozenset(name for name, value in kwargs.items() if value is not None)
    single = any(
        isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] == 1
        for value in (*args, *kwargs.values())
    )
    return model.training, torch.is_grad_enabled(), len(args), given, single


def is_compiled(model: nn.Module) -> bool:
    """Whether operations of the model may be compiled; a torch mode would break that."""
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return implementation == "flex_attention" or any(
        module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
        for module in model.modules()
    )


class _WeightUses(TorchFunctionMode):
    """Raises ValueError at an operation on a weight whose gates its caller bypasses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._layers: dict[int, tuple[str, GatedLayer]] = {}
        embeddings = {
            id(p)
            for module in model.modules()
            if isinstance(module, nn.Embedding) or hasattr(module, "num_embeddings")
            for p in module._parameters.values()
        }
        for path, module in model.named_modules():
            if isinstance(module, GatedLayer):
                for parameter in module.base.parameters():
                    # The gates of an output layer do not belong to the embeddings that it shares.
                    if id(parameter) not in embeddings and storage_of(parameter):
                        self._layers[storage_of(parameter)] = path, module

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        if name not in _NO_USE:
            used = args[:1] if name in HARMLESS_CALLS else (*args, *kwargs.values())
            for tensor in _tensors(used):
                found = self._layers.get(storage_of(tensor))
                if found is not None:
                    self._check(*found, tensor)
        return func(*args, **kwargs)

    def _check(self, path: str, layer: GatedLayer, tensor: Tensor) -> None:
        inside = {id(module) for module in layer.base.modules()}
        reader: nn.Module | None = None
        for module, is_hook, code in _callers():
            if module is layer and _is_foreign(layer, code):
                continue
            if module is layer or (reader is None and is_hook):
                return
            reader = module if reader is None else reader
        if reader is None:  # not in a forward pass
            return
        own = any(tensor is parameter for parameter in reader._parameters.values())
        if own and id(reader) not in inside:
            return
        place = next((p for p, module in self._model.named_modules() if module is reader), "")
        where = f"{type(reader).__name__} ({place})" if place else type(reader).__name__
        if id(reader) in inside:
            where = "a module that holds a reference to it"
        raise ValueError(
            f"{path}: {where} uses the weight of this layer directly, so the gates around the "
            "layer are bypassed; call finegates.detach and exclude it: "
            "GateConfig(preset='reference', modules=...) with patterns that match the other layers"
        )


def _is_foreign(layer: nn.Module, code: CodeType) -> bool:
    """Whether a running function is the forward of another class, called with a gated layer."""
    return code.co_name == "forward" and code is not type(layer).forward.__code__


def _callers() -> Iterator[tuple[nn.Module, bool, CodeType]]:
    """Modules whose methods are running, the innermost first, with the code that runs.

    Also whether it is a hook of theirs.

    A forward that one module has for itself may be a function without the module as an argument.
    """
    frame = sys._getframe(1)
    codes = set()
    while frame is not None:
        codes.add(frame.f_code)
        if frame.f_code.co_varnames[:1] == ("self",):
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                forward = getattr(module.forward, "__code__", None)
                is_hook = frame.f_code.co_name == "_call_impl" and forward not in codes
                yield module, is_hook, frame.f_code
        frame = frame.f_back  # type: ignore[assignment]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
