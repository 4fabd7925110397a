"""Refuses a training whose gated layers are never called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finegates.gates.bypass import is_compiled
from finegates.gates.calls import LayerCalls, refuse_uncalled
from finegates.modules.kinds import GatedLayer


class CalledLayers(TrainerCallback):
    """Callback that stops a training after its first whole epoch if a gated layer was not called.

    A whole epoch, because a router may skip a layer for many steps. Compiled models are not
    watched.

    Args:
        reduce: sums a tensor over all processes.
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor]) -> None:
        self._reduce = reduce
        self._calls: LayerCalls | None = None
        self._begun = 0.0

    @contextmanager
    def watching(self, model: nn.Module, *, compiled: bool) -> Iterator[None]:
        """Watches the training that runs inside.

        Args:
            model: with gates.
            compiled: whether the training compiles it.
        """
        named = {n: m for n, m in model.named_modules() if isinstance(m, GatedLayer)}
        if compiled or is_compiled(model):
            named = {}
        try:
            with LayerCalls(named) as self._calls:
                yield
        finally:
            self._calls = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Notes where in an epoch the training begins, or continues."""
        self._begun = state.epoch or 0.0

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Raises ValueError with the names of the layers that no process has called."""
        begun, self._begun = self._begun, 0.0
        if self._calls is None or not self._calls.names or begun != round(begun):
            return
        calls, self._calls = self._calls, None
        missing = calls.missing()
        uncalled = torch.tensor(
            [float(name in missing) for name in calls.names],
            dtype=torch.float32,
            device=args.device,
        )
        everywhere = self._reduce(uncalled) >= max(1, args.world_size)
        names = [n for n, each in zip(calls.names, everywhere.tolist(), strict=True) if each]
        refuse_uncalled(names, "an epoch of the training")
