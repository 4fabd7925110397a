"""The feed-forward module of compact models with gate and up fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from finegates.modules.joint import fuse
from finegates.modules.likeness import check_like


class JoinedFeedForward(nn.Module):
    """``down(phi(gate(x)) * up(x))`` with gate and up fused.

    Args:
        module: the feed-forward part of transformers with ``gate_proj``, ``up_proj``, ``down_proj``
            and ``act_fn``, which are reused; the first two have the same inputs and equally many
            outputs.

    Attributes:
        classes: of transformers with this forward.

    Raises:
        ValueError: the module's class has another forward.
    """

    classes: ClassVar[tuple[str, ...]] = ("llama.LlamaMLP",)

    def __init__(self, module: nn.Module) -> None:
        check_like(module, self.classes)
        super().__init__()
        self.finegates_joined = True
        self.gate_up = fuse([module.get_submodule(name) for name in ("gate_proj", "up_proj")])
        self.down_proj = module.get_submodule("down_proj")
        self.act_fn: Callable[[Tensor], Tensor] = module.act_fn  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, hidden) to (B, L, hidden)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        result: Tensor = self.down_proj(self.act_fn(gate) * up)
        return result
