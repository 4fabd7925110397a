"""Tasks on one encoder: each computes the same after loading as when it was saved."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

import finegates as fg
import finegates.formats.task as task_state_module
from finegates.formats.task import TaskStateError, load_task, save_task, task_state
from finegates.gates.gated_linear import leaf_gates
from finegates.gates.stochastic import HARDNESS
from support.tiny import ARCHITECTURES, LENGTH, VOCABULARY


def gated(preset="reference", lora=False, seed=0):
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(ARCHITECTURES["bert"]()).eval()
    if lora:
        model = fg.add_lora(model, rank=2, alpha=4)
    fg.attach(model, fg.GateConfig(preset=preset, target=0.3))
    return model.eval()


def train(model, seed):
    """Changes all values that belong to the task."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in task_state(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def outputs(model):
    tokens = torch.arange(2 * LENGTH).view(2, LENGTH) % VOCABULARY
    return model(input_ids=tokens).logits.clone()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("preset", ["reference", "structured"])
def test_a_task_put_in_again_gives_its_outputs_bit_for_bit(tmp_path, preset, lora):
    model = gated(preset, lora)
    seen, sizes = {}, {}
    for task in (1, 2):
        train(model, task)
        seen[task] = outputs(model)
        sizes[task] = save_task(model, tmp_path / f"{task}.safetensors")
    assert not torch.equal(seen[1], seen[2])
    for task in (1, 2, 1):
        load_task(model, tmp_path / f"{task}.safetensors")
        assert torch.equal(outputs(model), seen[task])
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    own = sum(p.numel() * p.element_size() for p in task_state(model).values())
    assert own < sizes[1] < whole


def test_gates_that_were_hardened_belong_to_the_task():
    model = gated("structured")
    before = set(task_state(model))
    for gate in {g for layer in fg.gated_layers(model).values() for _, g in layer.gates()}:
        for leaf in gate.leaves():
            leaf.harden(1.0)
    assert set(task_state(model)) == before


def test_a_task_of_another_encoder_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "task.safetensors"
    save_task(gated(), path)
    other = gated(seed=1)
    before = outputs(other)
    with pytest.raises(TaskStateError, match="another encoder"):
        load_task(other, path)
    assert torch.equal(outputs(other), before)


def test_a_task_with_other_gates_is_refused(tmp_path):
    path = tmp_path / "task.safetensors"
    save_task(gated(lora=True), path)
    with pytest.raises(TaskStateError, match="other gates, adapters or head"):
        load_task(gated(), path)


def test_files_that_hold_no_task_are_refused(tmp_path):
    model, path = gated(), tmp_path / "task.safetensors"
    with pytest.raises(TaskStateError, match="cannot be read"):
        load_task(model, path)
    save_task(model, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(TaskStateError, match="cannot be read"):
        load_task(model, path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(TaskStateError, match="is not a task"):
        load_task(model, path)


def test_a_task_with_one_bit_changed_is_refused_and_changes_nothing(tmp_path):
    model, path = gated(), tmp_path / "task.safetensors"
    save_task(model, path)
    before = outputs(model)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(TaskStateError, match="is corrupt"):
        load_task(model, path)
    assert torch.equal(outputs(model), before)


def test_without_gates_or_without_a_frozen_encoder_there_is_no_task():
    plain = AutoModelForSequenceClassification.from_config(ARCHITECTURES["bert"]())
    with pytest.raises(ValueError, match="no encoder to share"):
        task_state(plain)
    fg.attach(plain, fg.GateConfig(preset="reference", train_weights=True))
    with pytest.raises(ValueError, match="no encoder to share"):
        task_state(plain)


def test_the_file_is_the_same_bytes_whenever_it_is_written(tmp_path):
    model = gated()
    written = set()
    for _ in range(8):  # the writer's order of several entries would differ between calls
        save_task(model, tmp_path / "task.safetensors")
        written.add((tmp_path / "task.safetensors").read_bytes())
    assert len(written) == 1


@pytest.mark.parametrize("hardness", [0.0, 0.25, 1.0])
def test_a_task_put_in_again_is_as_far_hardened_as_it_was(tmp_path, hardness):
    model, path = gated("structured"), tmp_path / "task.safetensors"
    train(model, 1)
    for gate in leaf_gates(model):
        gate.harden(hardness)
    seen = outputs(model)
    save_task(model, path)
    again = gated("structured")
    for gate in leaf_gates(again):
        gate.harden(0.5)  # another task's
    load_task(again, path)
    assert torch.equal(outputs(again), seen)
    assert {gate.hardness for gate in leaf_gates(again)} == {hardness}
    assert all(gate.latent.requires_grad == (not hardness) for gate in leaf_gates(again))


def test_a_task_from_before_hardness_was_kept_still_loads(tmp_path):
    model, path = gated("structured"), tmp_path / "task.safetensors"
    train(model, 1)
    seen = outputs(model)
    save_task(model, path)
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["finegates"])
        old = {k: file.get_tensor(k) for k in file.keys() if not k.endswith(HARDNESS)}  # noqa: SIM118
    said |= {"format": "finegates-task-2", "tensors": task_state_module._digest(old)}
    save_file(old, path, metadata={"finegates": json.dumps(said)})
    again = gated("structured")
    load_task(again, path)
    assert torch.equal(outputs(again), seen)
