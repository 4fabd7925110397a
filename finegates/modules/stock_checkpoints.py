"""Stops ``save_pretrained`` from writing what ``from_pretrained`` could not read.

A configuration of transformers has one size for all layers. With weights of other sizes or names,
``from_pretrained`` would initialise the missing ones at random. A gated or compact model may be a
part of another model, a copy, or loaded from a file. So the methods of transformers themselves
check for it before they write anything. A stock model that came from a compact one gets a model
card (:mod:`finegates.modules.cards`).
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from finegates.modules.cards import card_of, write_card
from finegates.modules.kinds import CompactLayer, GatedLayer, has_gates
from finegates.modules.own_classes import has_config, is_of_transformers, way_to_save
from finegates.wrappers import without_containers

ASKED = ("save_pretrained", "push_to_hub")
"""Methods of ``PreTrainedModel`` and ``PeftModel`` that write a stock checkpoint."""


class StockCheckpointError(ValueError):
    """``save_pretrained`` cannot write a model that ``from_pretrained`` could read."""


def stock_obstacle(model: nn.Module) -> str | None:
    """Names the part of a model that a stock checkpoint cannot hold, or None.

    Args:
        model: any; its parts are checked, too.

    Returns:
        a sentence that names the part and the ways that work.
    """
    for path, module in model.named_modules():
        if isinstance(module, GatedLayer):
            return (
                f"{path or 'the model'} has gates, which change the names that "
                "from_pretrained expects, so it would initialise the layer at random. Write the "
                "gated model with finegates.save(model, folder) and read it with "
                "finegates.load(folder), or write the small one, "
                "finegates.save(finegates.compact(model), folder). A trainer around "
                "it: train with finegates.GateTrainer, whose checkpoints finegates.load reads, or "
                "with save_strategy='no' and call finegates.save at the end"
            )
        compact = isinstance(module, CompactLayer) and not module.keeps_stock_layout
        changed = hasattr(module, "finegates_heads") or hasattr(module, "finegates_joined")
        if compact or changed:
            return (
                f"{path or 'the model'} is compact, which the configuration of "
                f"{type(model).__name__} cannot describe, so from_pretrained would initialise it "
                "at random. Write it with finegates.save(model, folder) and read it with "
                "finegates.load(folder), or write the stock model "
                "finegates.uniform(model).save_pretrained(folder). A trainer or a "
                "SentenceTransformer around it: give it finegates.uniform(model), or train with "
                "finegates.GateTrainer, whose checkpoints are of finegates.save, or with "
                "save_strategy='no' and call finegates.save at the end"
            )
    return None


def _of_own_class(model: nn.Module) -> str:
    """What finegates.save needs for a model of a class that is not of transformers."""
    given: Any = without_containers(model)
    plain: nn.Module = given.get_base_model() if hasattr(given, "get_base_model") else given
    if is_of_transformers(plain):
        return ""
    kind = type(plain).__name__
    if not has_config(plain):
        return f". finegates.save does not take the {kind}, which has no configuration: " + (
            way_to_save(plain)
        )
    return f". finegates.save takes the {kind} once its class is known: {way_to_save(plain)}"


def check_stock_checkpoint(model: nn.Module) -> None:
    """Raises StockCheckpointError unless ``from_pretrained`` could read the checkpoint.

    A model with adapters, of ``peft`` or of transformers, writes only these. That is right for a
    compact model, but not if gates are between the adapters and their layers.
    """
    adapters = hasattr(model, "get_base_model") or getattr(model, "_hf_peft_config_loaded", False)
    if adapters and not has_gates(model):
        return
    obstacle = stock_obstacle(model)
    if obstacle is not None:
        raise StockCheckpointError(f"nothing was written: {obstacle}{_of_own_class(model)}")


def guard_stock_checkpoints() -> None:
    """Patches the methods that write a stock checkpoint to check the model first.

    They are ``save_pretrained`` and ``push_to_hub`` of ``PreTrainedModel`` and ``PeftModel``, and
    ``save_model`` of accelerate's ``Accelerator``, which writes weights without a configuration.

    Called whenever a layer of this library is added to a model. Further calls change nothing.
    Models without such layers are written as before.
    """
    # transformers is not imported here, because models without it need not wait for its import.
    # peft may wrap these layers in adapters later, and would then write only the adapters.
    if "transformers.modeling_utils" in sys.modules:
        with suppress(ImportError):
            importlib.import_module("peft.peft_model")
    for module, kind in (
        ("transformers.modeling_utils", "PreTrainedModel"),
        ("peft.peft_model", "PeftModel"),
    ):
        owner = getattr(sys.modules.get(module), kind, None)
        for name in ASKED if owner is not None else ():
            method = getattr(owner, name)
            if not hasattr(method, "finegates_checks"):
                setattr(owner, name, _checking(method))
    accelerator = getattr(sys.modules.get("accelerate.accelerator"), "Accelerator", None)
    if accelerator is not None and not hasattr(accelerator.save_model, "finegates_checks"):
        accelerator.save_model = _checking_the_argument(accelerator.save_model)


def _checking(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def checked(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        check_stock_checkpoint(self)
        result = method(self, *args, **kwargs)
        folder = kwargs.get("save_directory", args[0] if args else None)
        card = card_of(self)
        if card and method.__name__ == "save_pretrained" and Path(folder or "").is_dir():
            write_card(str(folder), card)
        return result

    checked.finegates_checks = True  # type: ignore[attr-defined]
    return checked


def _checking_the_argument(method: Callable[..., Any]) -> Callable[..., Any]:
    """Checks the model that a method writes all weights of, adapters or not."""

    @functools.wraps(method)
    def checked(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        obstacle = stock_obstacle(without_containers(model))
        if obstacle is not None:
            raise StockCheckpointError(
                f"nothing was written: {obstacle}{_of_own_class(model)}. Accelerator.save_state, "
                "which load_state reads back into a model of the same gates or sizes, does work"
            )
        return method(self, model, *args, **kwargs)

    checked.finegates_checks = True  # type: ignore[attr-defined]
    return checked
