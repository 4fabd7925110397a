"""Adapters of a gated model are loaded switched as they were saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import finegates as fg
from support import tiny

CONFIG = fg.GateConfig(target=0.01, sequence_length=tiny.LENGTH)
LORA: dict[str, Any] = {
    "r": 2,
    "target_modules": ["query", "value"],
    "modules_to_save": ["classifier"],
}


def wrapped(model: nn.Module) -> Any:
    return get_peft_model(model, LoraConfig(**LORA))


def inside(model: Any) -> Any:
    model.add_adapter(LoraConfig(**LORA), "default")
    return model


def layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "lora_A")]


def off(model: Any) -> None:
    if hasattr(model, "disable_adapter_layers"):
        model.disable_adapter_layers()
    else:
        model.disable_adapters()


def on(model: Any) -> None:
    if hasattr(model, "enable_adapter_layers"):
        model.enable_adapter_layers()
    else:
        model.enable_adapters()


def one_off(model: Any) -> None:
    layers(model)[1].enable_adapters(False)


def one_with_the_second(model: Any) -> None:
    config = LoraConfig(**{**LORA, "r": 3})
    if hasattr(model, "disable_adapter_layers"):
        model.add_adapter("second", config)
    else:
        model.add_adapter(config, "second")
    model.set_adapter("default")
    layers(model)[0].set_adapter("second")
    layers(model)[1].set_adapter(["default", "second"])


def gated(how: Callable[[nn.Module], Any], switch: Callable[[Any], None], compact: bool) -> Any:
    torch.manual_seed(0)
    model = tiny.tiny_model("bert")
    if compact:
        fg.prune(model, target=0.3, criterion="magnitude", progress=False)
        model = fg.compact(model)
    model = how(model)
    switch(model)
    fg.attach(model.double(), CONFIG)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    tiny.scatter_gates(model, mean=0.5)
    return model.eval()


def output(model: nn.Module) -> torch.Tensor:
    return tiny.output(model, tiny.tokens())


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("switch", [off, one_off, one_with_the_second])
@pytest.mark.parametrize("how", [wrapped, inside])
def test_adapters_are_loaded_as_they_were_switched(
    how: Callable[[nn.Module], Any], switch: Callable[[Any], None], compact: bool, tmp_path: Path
) -> None:
    model = gated(how, switch, compact)
    fg.save(model, tmp_path / "model")
    loaded = fg.load(tmp_path / "model")
    expected = output(model)
    assert torch.equal(output(loaded), expected)
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (loaded, model)]
    assert trained[0] == trained[1]
    on(model)
    on(loaded)
    assert torch.equal(output(loaded), output(model))
    if switch is not one_with_the_second:
        assert not torch.equal(output(model), expected)
