"""Trainers wrap models in containers, autocast and device hooks; finegates finds the model."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.nn.parallel import DataParallel

import finegates as fg
from finegates.adapters import unwrap
from finegates.compaction import compact
from finegates.formats.compact import load, save
from finegates.formats.stock import uniform
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.wrappers import autocast_removed, remove_autocast, without_containers
from support.tiny import output, scatter_gates, tiny_model, tokens

CONFIG = GateConfig(preset="structured", target=0.4, sequence_length=7)


def gated(architecture="bert"):
    model = tiny_model(architecture, dtype=torch.float32)
    attach(model, CONFIG)
    scatter_gates(model)
    return model.eval()


@pytest.fixture
def accelerator():
    def of(precision):
        from accelerate.state import AcceleratorState, PartialState

        AcceleratorState._reset_state()
        PartialState._reset_state()
        made = Accelerator(mixed_precision=precision, cpu=True)
        return made

    yield of
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state()
    PartialState._reset_state()


@torch.no_grad()
def logits(model):
    return output(model, tokens())


def prepared(model, accelerator, precision, times=1):
    """A model as ``Trainer`` and ``Accelerator.prepare`` leave it."""
    for _ in range(times):
        assert accelerator(precision).prepare_model(model) is model
    return model


@pytest.mark.parametrize("architecture", ["bert", "llama", "t5", "gpt2"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_compact_model_computes_in_float32_after_training_under_autocast(
    architecture, times, accelerator
):
    expected = logits(compact(gated(architecture)))
    model = prepared(gated(architecture), accelerator, "bf16", times)
    assert not torch.equal(logits(model), expected)  # autocast was active
    small = compact(model)
    assert torch.equal(logits(small), expected)
    assert {"forward", "_original_forward"}.isdisjoint(vars(small))
    # The given model is still under autocast.
    assert {"forward", "_original_forward"} <= vars(model).keys()


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_compacting_in_place_takes_autocast_off_too(precision, accelerator):
    expected = logits(compact(gated()))
    try:
        model = prepared(gated(), accelerator, precision)
    except ValueError:
        pytest.skip("accelerate has no such precision on this machine")
    assert torch.equal(logits(compact(model, inplace=True)), expected)


def test_saving_and_padding_a_model_trained_under_autocast_keep_its_outputs(accelerator, tmp_path):
    small = compact(prepared(gated(), accelerator, "bf16"))
    save(small, tmp_path / "small")
    assert torch.equal(logits(load(tmp_path / "small")), logits(small))
    torch.testing.assert_close(logits(uniform(small)), logits(small))


def test_removing_autocast_keeps_a_forward_that_others_have_set(accelerator):
    model = nn.Linear(2, 2)
    model.forward = lambda x: torch.full_like(x, 7.0)
    prepared(model, accelerator, "bf16")
    x = torch.ones(1, 2)
    remove_autocast(model)
    assert torch.equal(model(x), torch.full_like(x, 7.0))


def test_autocast_comes_back_after_the_block(accelerator):
    model = prepared(gated(), accelerator, "bf16")
    before, there = dict(vars(model)), logits(model)
    with autocast_removed(model):
        assert not torch.equal(logits(model), there)
    assert vars(model).keys() == before.keys()
    assert torch.equal(logits(model), there)


@pytest.mark.thorough
def test_a_gated_model_trained_under_autocast_is_exported_in_float32(accelerator, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    small = prepared(compact(gated()), accelerator, "bf16")
    assert fg.export_onnx(small, tmp_path / "small.onnx", tokens()) < 1e-4
    assert "_original_forward" in vars(small)


def ddp(model):
    """A distributed container as after ``init_process_group``, but without a process group."""
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    return wrapped


def compiled(model):
    return torch.compile(model, backend="eager")


CONTAINERS = {
    "distributed": ddp,
    "parallel": DataParallel,
    "compiled": compiled,
    "compiled in a container": lambda model: ddp(compiled(model)),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_of_trainers_are_taken_off(container):
    model = gated()
    wrapped = CONTAINERS[container](model)
    assert without_containers(wrapped) is unwrap(wrapped) is model
    expected = logits(compact(model))
    assert torch.equal(logits(compact(wrapped)), expected)
    assert fg.measure_budget(wrapped) == fg.measure_budget(model)
    small = compact(model)
    torch.testing.assert_close(logits(uniform(CONTAINERS[container](small))), expected)
    fg.detach(wrapped)
    assert not fg.gated_layers(model)


def test_a_model_compiled_in_place_is_compacted_to_a_plain_one():
    model = gated()
    model.compile(backend="eager")
    expected = logits(compact(copy.deepcopy(model)))
    small = compact(model, inplace=True)
    assert small._compiled_call_impl is None
    assert torch.equal(logits(small), expected)


def test_a_model_spread_by_device_hooks_is_refused_before_anything_changes():
    model = gated()
    there = logits(model)
    add_hook_to_module(model.bert.encoder.layer[0], AlignDevicesHook())
    with pytest.raises(ValueError, match=r"module bert\.encoder\.layer\.0 .*device_map"):
        compact(model, inplace=True)
    assert fg.gated_layers(model)
    assert torch.equal(logits(model), there)
