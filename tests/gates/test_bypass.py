"""Weights that a module uses without the gates around them: refused by the first forward pass."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

import finegates as fg
from finegates.adapters import adapter_for
from finegates.compaction.certificate import floats
from finegates.gates.attachment import attach, attach_fixed
from finegates.gates.bypass import stop_watching
from finegates.gates.config import GateConfig
from finegates.gates.detachment import detach
from finegates.gates.gated_linear import gated_layers
from support import tiny
from support.described import described_inputs, described_model
from support.described_types import CONFIGURATIONS


class Reads(nn.Module):
    """Two layers; the weight of the first is used in a way that a subclass has."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.prepare()

    def prepare(self) -> None: ...

    def use(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.use(x)))


class Parameters(Reads):
    def use(self, x):
        return x @ next(self.a.parameters()).T


class Operator(Reads):
    """A function that is not one of Python, so that no source shows what it reads."""

    def use(self, x):
        return x @ functools.reduce(getattr, ["a", "weight"], self).T


class State(Reads):
    def use(self, x):
        return x @ next(v for k, v in self.state_dict(keep_vars=True).items() if "weight" in k).T


class Sliced(Reads):
    def use(self, x):
        weight = next(self.a.parameters())
        parts = [functional.linear(x, weight[i : i + 3]) for i in (0, 3)]
        return torch.cat(parts, -1)


class Joined(Reads):
    def use(self, x):
        weights = [next(layer.parameters()) for layer in (self.a, self.b)]
        return functional.linear(x, torch.cat(weights))[..., :6]


class Bias(Reads):
    def use(self, x):
        return x + list(self.a.parameters())[1]


class CalledAndRead(Reads):
    """The layer is called, too; only a part of the result bypasses the gates."""

    def use(self, x):
        return self.a(x) + x @ next(self.a.parameters())


class ForwardOfAnotherClass(Reads):
    """Calls the forward of ``nn.Linear`` with the layer, which has gates around it now."""

    def use(self, x):
        return nn.Linear.forward(self.a, x)


ALIASES: dict[int, Tensor] = {}


class Alias(Reads):
    """Reads a view of the weight that is as old as the layer."""

    def prepare(self):
        ALIASES[id(self)] = self.a.weight.detach().T

    def use(self, x):
        return x @ ALIASES[id(self)]


READERS = [Alias, Parameters, Operator, State, Sliced, Joined, Bias, CalledAndRead]
READERS += [ForwardOfAnotherClass]


def gated(kind: type[nn.Module]) -> nn.Module:
    model = nn.Sequential(kind())
    return attach(model, GateConfig(preset="reference", modules=("0.a",)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", READERS)
def test_a_weight_that_is_used_without_its_gates_is_refused_at_the_first_forward_pass(
    kind, training
):
    model = gated(kind).train(training)
    message = rf"0\.a: {kind.__name__} \(0\) uses the weight of this layer directly"
    with pytest.raises(ValueError, match=message):
        model(torch.randn(2, 6))
    assert detach(model)(torch.randn(2, 6)).shape == (2, 6)  # the watch is over with the gates


def test_the_watch_ends_with_the_forward_pass_that_it_refuses():
    model = gated(Parameters)
    with pytest.raises(ValueError, match="directly"):
        model(torch.randn(2, 6))
    assert not torch.overrides._get_current_function_mode_stack()


class InEvaluation(Reads):
    """Bypasses its gates in evaluation only; the layer's source does not show it."""

    def use(self, x):
        return self.a(x) if self.training else x @ next(self.a.parameters())


class OneToken(Reads):
    """Bypasses its gates for texts of one token, as decoding with a cache may."""

    def use(self, x):
        return self.a(x) if x.shape[1] > 1 else x @ next(self.a.parameters())


def test_every_kind_of_forward_pass_is_watched():
    model = gated(InEvaluation).train()
    model(torch.randn(2, 6))
    with pytest.raises(ValueError, match="directly"):
        model.eval()(torch.randn(2, 6))
    model = gated(OneToken)
    model(torch.randn(2, 3, 6))
    with pytest.raises(ValueError, match="directly"):
        model(torch.randn(2, 1, 6))


class Looks(Reads):
    """Reads what the weight is like, as T5 does."""

    def use(self, x):
        weight = next(self.a.parameters())
        x = x.to(weight.dtype).to(weight).to(weight.device)
        assert weight.shape == (6, 6)
        assert weight.numel() == 36
        return self.a(x)


class Tied(Reads):
    """Two layers with one weight, of which one has gates."""

    def prepare(self):
        self.c = nn.Linear(6, 6)
        self.c.weight = self.a.weight

    def use(self, x):
        return self.a(x) + self.c(x)


class Reordered(Reads):
    """Calls the layer without its name."""

    def use(self, x):
        return next(iter(self.children()))(x)


@pytest.mark.parametrize("kind", [Looks, Tied, Reordered])
def test_what_uses_the_gates_is_not_refused(kind):
    model = gated(kind)
    for training in (True, False):
        assert model.train(training)(torch.randn(2, 6)).shape == (2, 6)


def test_the_weight_of_the_embeddings_may_be_used_by_all():
    """Gates of an output layer do not belong to the embeddings that share its weight."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
            self.head.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.words(ids)) + self.words(ids) @ self.words.weight.T

    model = attach(Model(), GateConfig(preset="reference", modules=("head",)))
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, 9)


def test_the_comparison_of_compact_and_gated_finds_it():
    model = attach_fixed(
        tiny.tiny_model("bert"),
        {"bert.encoder.layer.0.output.dense": (None, (torch.arange(20) % 2).float())},
    )
    layer = model.bert.encoder.layer[0].output

    def reading(x: Tensor, residual: Tensor) -> Tensor:
        weight = next(layer.dense.base.parameters())
        return layer.LayerNorm(functional.linear(x, weight) + residual)

    layer.forward = reading
    with pytest.raises(ValueError, match=r"layer\.0\.output\.dense: .* uses the weight"):
        fg.compact(model, verify=tiny.tokens())


def adapted(model: nn.Module) -> nn.Module:
    blocks = adapter_for(model).blocks(model)
    targets = [part.o for block in blocks for part in block.attentions]
    if not targets:
        pytest.skip("no layer of its attention is described")
    return get_peft_model(model, LoraConfig(target_modules=targets, r=2))


@pytest.mark.sampled(12)
@pytest.mark.parametrize("around", [None, adapted], ids=["plain", "lora"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_no_described_model_is_refused_and_its_numbers_do_not_change(name, around):
    """Outputs and gradients of the watched pass are those of the next, bit for bit."""
    model = described_model(name, dtype=torch.float32)
    inputs = described_inputs(name, dtype=torch.float32)
    if around is not None:
        model = around(model)
    attach(model, GateConfig(preset="structured", sequence_length=9))
    for training in (False, True):
        model.train(training)
        first, then = (numbers(model, inputs) for _ in range(2))
        assert len(first) == len(then) > 1
        assert all(torch.equal(a, b) for a, b in zip(first, then, strict=True))


def numbers(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    transformers.set_seed(0)  # numpy's too, which masks of waves are drawn from
    model.zero_grad()
    outputs = [t for t in floats(model(**copy.deepcopy(inputs))) if t.requires_grad]
    sum(out.square().sum() for out in outputs).backward()
    return outputs + [p.grad.clone() for p in model.parameters() if p.grad is not None]


def no_hooks(model: nn.Module) -> bool:
    return not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_neither_a_compact_nor_a_plain_model_is_watched():
    model = attach(tiny.tiny_model("bert"))
    assert not no_hooks(model)
    for inplace in (False, True):
        assert no_hooks(fg.compact(copy.deepcopy(model), inplace=inplace))
    assert no_hooks(detach(copy.deepcopy(model)))
    stop_watching(model)
    assert no_hooks(model)
    assert gated_layers(model)


def test_a_watched_model_can_be_stored_copied_and_compiled():
    model = gated(Reordered).eval()
    x = torch.randn(2, 6)
    copied = copy.deepcopy(model)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    loaded: Callable[..., Tensor] = torch.load(stream, weights_only=False)
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    for other in (copied, loaded, compiled):
        assert torch.equal(other(x), model(x))


def test_a_gated_model_may_run_in_several_threads_at_once() -> None:
    for _ in range(5):
        model = attach(tiny.tiny_model("bert"), GateConfig()).eval()
        expected = tiny.output(copy.deepcopy(model), tiny.tokens())
        with ThreadPoolExecutor(4) as pool:
            outputs = list(pool.map(tiny.output, [model] * 8, [tiny.tokens()] * 8))
        assert all(torch.equal(each, expected) for each in outputs)
        assert torch.overrides._len_torch_function_stack() == 0


def test_a_hook_may_look_at_weights() -> None:
    model = tiny.tiny_model("bert")
    seen: list[float] = []

    def log(module: nn.Module, args: object, output: object) -> None:
        seen.extend(p.norm().item() for p in module.parameters())

    for module in model.modules():
        module.register_forward_hook(log)
    attach(model, GateConfig())
    tiny.output(model.eval(), tiny.tokens())
    assert seen
