"""Quantised models are refused by layer, kind and remedy where their numbers are needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import finegates as fg
from finegates.modules.linear import codes_of
from support import tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
OPTIONS = {"criterion": "random", "sequence_length": tiny.LENGTH, "progress": False}
COMPACT, HEAD = "bert.encoder.layer.0.intermediate.dense", "classifier"


class Codes(Tensor):
    """An int8 weight of the shape and dtype of its numbers, as torchao's."""

    codes: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor) -> Codes:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)  # type: ignore[attr-defined, no-any-return]

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["codes"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, context: Any, size: Any, stride: Any) -> Codes:
        return Codes(inner["codes"])

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            return Codes(args[0].codes)
        raise NotImplementedError(f"{function} of int8")


def in_codes(layer: Any) -> None:
    codes = torch.zeros(layer.weight.shape, dtype=torch.int8)
    layer.weight = nn.Parameter(Codes(codes), requires_grad=False)


def dynamically(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)  # type: ignore[no-any-return]


def small() -> nn.Module:
    model = tiny.tiny_model("bert", dtype=torch.float32)
    return fg.compact(fg.prune(model, target=0.3, **OPTIONS))  # type: ignore[arg-type]


def attached(model: nn.Module) -> nn.Module:
    return fg.attach(model, fg.GateConfig(target=0.1, sequence_length=tiny.LENGTH))


USES: list[Callable[[nn.Module], object]] = [
    attached,
    lambda model: fg.prune(model, target=0.1, **OPTIONS),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("dense", [False, True])
def test_gates_name_a_quantised_layer(dense: bool, use: Callable[[nn.Module], object]) -> None:
    model = tiny.tiny_model("bert", dtype=torch.float32) if dense else small()
    in_codes(model.get_submodule(COMPACT) if dense else model.get_submodule(COMPACT).linear)
    modules = [*model.modules()]
    with pytest.raises(
        TypeError, match=rf"{COMPACT}: .*Codes of torch.int8.*before it was quantised"
    ):
        use(model)
    assert [*model.modules()] == modules


@pytest.mark.parametrize("use", USES)
def test_gates_name_a_layer_of_torchs_own_quantisation(use: Callable[[nn.Module], object]) -> None:
    with pytest.raises(TypeError, match=r"^bert\..*quantized.*Linear is quantised.*before it was"):
        use(dynamically(small()))


def test_layers_without_gates_may_be_quantised() -> None:
    model = small()
    in_codes(model.get_submodule(HEAD))
    assert fg.gated_layers(attached(model))


@pytest.mark.parametrize("path", [COMPACT, HEAD])
def test_saving_names_what_is_quantised_and_writes_nothing(path: str, tmp_path: Path) -> None:
    model = small()
    layer: Any = model.get_submodule(path)
    in_codes(layer if path == HEAD else layer.linear)
    assert codes_of(layer.weight) == "Codes of torch.int8"
    with pytest.raises(ValueError, match=rf"{path}.*Codes.*before it was quantised"):
        fg.save(model, tmp_path / "small")
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"layer bert\..* quantised .*before it was quantised"):
        fg.save(dynamically(small()), tmp_path / "small")
    assert not any(tmp_path.iterdir())


def test_quantised_compact_models_are_counted_as_before() -> None:
    model = small()
    costs, before = fg.macs(model, 1, tiny.LENGTH), fg.measure_budget(model)
    model = dynamically(model)
    after = fg.measure_budget(model)
    assert fg.macs(model, 1, tiny.LENGTH) == costs
    for name in ("gated_weights", "gated_biases", "removed_weights"):
        assert getattr(after, name) == getattr(before, name)


@pytest.mark.parametrize("use", USES)
def test_a_compact_model_that_has_gates_gets_no_others(use: Callable[[nn.Module], object]) -> None:
    model = attached(small())
    with pytest.raises(ValueError, match="has gates already"):
        use(model)
