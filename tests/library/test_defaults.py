"""torch's default device and dtype have no effect on the library."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import finegates as fg
from finegates.gates.stochastic import StochasticGate
from support import tiny

ARCHITECTURES = sorted(tiny.ARCHITECTURES)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def defaults(name: str):
    return {"device": lambda: torch.device("meta"), "dtype": lambda: default_dtype(torch.bfloat16)}[
        name
    ]()


def attached(model: nn.Module, preset: str) -> nn.Module:
    return fg.attach(model, fg.GateConfig(preset=preset, random_biases=preset == "paper_v1"))


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach() for name, tensor in named}


def same(first: nn.Module, second: nn.Module) -> bool:
    mine, other = tensors(first), tensors(second)
    return mine.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype
        and tensor.device == other[name].device
        and torch.equal(tensor, other[name])
        for name, tensor in mine.items()
    )


@pytest.mark.sampled
@pytest.mark.parametrize("preset", ["structured", "reference", "paper_v1"])
@pytest.mark.parametrize("kind", ["device", "dtype"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gates_are_those_without_a_default(architecture, kind, preset):
    expected = attached(tiny.tiny_model(architecture), preset)
    model = tiny.tiny_model(architecture)
    with defaults(kind):
        attached(model, preset)
    assert same(model, expected)
    for module in model.modules():
        if isinstance(module, StochasticGate):
            assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["device", "dtype"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_follows_attaching_is_that_without_a_default(architecture, kind, tmp_path):
    model = attached(tiny.tiny_model(architecture, dtype=torch.float32), "structured")
    tiny.scatter_gates(model)
    model.eval()
    small = fg.compact(model)
    fg.save(small, tmp_path / "saved")
    cost = fg.CostModel(onednn_from=1)

    def everything() -> list[nn.Module]:
        again = fg.compact(model)
        fg.save(again, tmp_path / "again")
        return [
            again,
            fg.compact(model, cost=cost),
            fg.load(tmp_path / "saved"),
            fg.load(tmp_path / "again"),
            fg.uniform(small),
            fg.use_products(fg.compact(model), cost),
        ]

    expected, plan = everything(), str(fg.plan_compaction(model, cost=cost))
    summary = fg.summarise_gates(model)
    with defaults(kind):
        found = everything()
        assert str(fg.plan_compaction(model, cost=cost)) == plan
        assert fg.summarise_gates(model) == summary
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    outputs = [tiny.output(made, tiny.tokens()) for made in found]
    wanted = [tiny.output(made, tiny.tokens()) for made in expected]
    assert all(torch.equal(a, b) for a, b in zip(outputs, wanted, strict=True))


@pytest.mark.parametrize("kind", ["device", "dtype"])
@pytest.mark.parametrize("preset", ["structured", "reference"])
def test_penalties_and_closing_are_those_without_a_default(kind, preset):
    from finegates.gates.penalty import sparsity_penalty

    def values() -> list[float]:
        model = attached(tiny.tiny_model("llama"), preset)
        tiny.scatter_gates(model)
        penalty = sparsity_penalty(model)
        found = [float(penalty().detach())]
        if preset == "structured":
            for gate in penalty.gates():
                gate.importance.copy_(gate.latent.detach().abs())
            found.append(penalty.close_least())
        return found

    model = tiny.tiny_model("llama")  # transformers itself uses the defaults
    expected = values()
    made, tiny_model = model, tiny.tiny_model
    try:
        tiny.tiny_model = lambda *_: made
        with defaults(kind):
            assert values() == expected
    finally:
        tiny.tiny_model = tiny_model


def test_calibration_measures_the_cpu_whatever_the_default_device_is():
    with torch.device("meta"):
        cost = fg.calibrate(width=16, tokens=16, repeats=1)
    assert 0 < cost.product < 1


# torch's constructors; those of integers have no default precision.
_FLOATING = {
    "empty", "eye", "full", "linspace", "logspace", "normal", "ones", "rand", "randn", "tensor",
    "zeros", "scalar_tensor",
}  # fmt: skip
_WHOLE = {"arange", "as_tensor", "randint", "randperm"}
_MODULES = {"Linear", "Embedding", "LayerNorm"}
# Its jobs set the defaults of their own process.
_SUITE = "suite/"


def implicit(source: str) -> list[str]:
    """Calls that leave the device or the dtype of new tensors to torch's defaults."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        owner, _, name = ast.unparse(node.func).rpartition(".")
        given = {keyword.arg for keyword in node.keywords}
        if None in given:  # **settings
            continue
        floating = owner == "torch" and name in _FLOATING
        whole = owner == "torch" and name in _WHOLE
        module = owner in ("nn", "torch.nn") and name in _MODULES
        wanted = {"device"} if whole else {"device", "dtype"}
        if (floating or whole or module) and not wanted <= given:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_the_scan_finds_what_follows_a_default():
    assert implicit("torch.ones(3)\nnn.Linear(2, 3)") != []
    assert len(implicit("torch.zeros(3, device='cpu')")) == 1
    assert len(implicit("torch.arange(3)")) == 1
    clean = "torch.arange(3, device=x.device); torch.ones_like(x); x.new_zeros(3); torch.cat([x])"
    assert implicit(f"{clean}; torch.rand(3, dtype=d, device=e); torch.rand(3, **here)") == []


def test_no_tensor_of_the_library_follows_a_default(repository: Path):
    folder = repository / "finegates"
    found = {
        name: calls
        for path in sorted(folder.rglob("*.py"))
        if not (name := path.relative_to(folder).as_posix()).startswith(_SUITE)
        and (calls := implicit(path.read_text(encoding="utf-8")))
    }
    assert found == {}
