"""Finds layers that no forward pass calls.

A gate around such a layer does nothing, and closing it would count as savings MACs that were never
spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import TracebackType

from torch import nn
from torch.utils.hooks import RemovableHandle


class LayerCalls:
    """Context manager that notes which layers are called; each is watched up to its first call.

    Args:
        layers: by name.

    Attributes:
        names: of all of them.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = dict(layers)
        self.names = list(layers)
        self._hooks: dict[str, RemovableHandle] = {}

    def __enter__(self) -> LayerCalls:
        for name, layer in self._layers.items():
            seen = partial(self._see, name)
            self._hooks[name] = layer.register_forward_pre_hook(seen, with_kwargs=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks.values():
            hook.remove()

    def _see(self, name: str, layer: nn.Module, args: object, kwargs: object) -> None:
        hook = self._hooks.pop(name, None)
        if hook is not None:  # None in another thread of the same call
            hook.remove()

    def missing(self) -> list[str]:
        """Names of the layers that have not been called, in their order."""
        return list(self._hooks)


def refuse_uncalled(names: list[str], when: str) -> None:
    """Raises ValueError if there are layers that were not called.

    Args:
        names: of the layers.
        when: what ran, for the message.
    """
    if names:
        others = f" and {len(names) - 1} more layers" if len(names) > 1 else ""
        raise ValueError(
            f"{names[0]}{others}: never called in {when}, so gates there do nothing, and MACs that "
            "are never spent would count as removed; attach gates to the part of the model that is "
            "used, or name its layers (GateConfig.modules)"
        )
