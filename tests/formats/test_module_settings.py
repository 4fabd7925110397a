"""Module settings outside tensors are restored by a save, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from transformers.activations import ACT2FN

from finegates.compaction import compact
from finegates.compaction.certificate import InFloat64
from finegates.formats.compact import load, save
from finegates.formats.module_settings import ModuleSettingsError
from finegates.formats.stock import uniform
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from support import tiny

ARCHITECTURES = sorted(tiny.ARCHITECTURES)


def small_model(
    architecture: str, variant: str = "classifier", preset: str = "structured", **overrides: object
) -> nn.Module:
    model = attach(tiny.tiny_model(architecture, variant, **overrides), GateConfig(preset=preset))
    tiny.scatter_gates(model)
    return compact(model.eval())


def comes_back(small: nn.Module, folder: Path) -> bool:
    save(small, folder)
    again = load(folder)
    return torch.equal(*(tiny.output(m.eval(), tiny.tokens()) for m in (again, small)))


def used(small: nn.Module, variant: str) -> None:
    """Uses a model as users do: checkpointing, a training step, other modes, generating."""
    checkpoints = bool(small.supports_gradient_checkpointing)
    if checkpoints:
        small.gradient_checkpointing_enable()  # type: ignore[operator]
    small.train()
    tiny.output(small, tiny.tokens()).sum().backward()
    if checkpoints:
        small.gradient_checkpointing_disable()  # type: ignore[operator]
    small.zero_grad()
    small.eval()
    if variant == "language" and small.can_generate():  # type: ignore[operator]
        prompt = tiny.tokens(1, 4)["input_ids"]
        small.generate(prompt, max_new_tokens=3, pad_token_id=0)  # type: ignore[operator]
    tiny.output(small, tiny.tokens())


def matrix(architectures: list[str]) -> list[object]:
    return [
        pytest.param(
            name,
            variant,
            preset,
            marks=[] if (name, variant) in FAST else [pytest.mark.slow],
        )
        for name in architectures
        for variant in tiny.VARIANTS
        for preset in ("reference", "paper_v1", "structured")
    ]


FAST = {("bert", "language"), ("llama", "language"), ("t5-gated", "language"), ("gpt2", "base")}


@pytest.mark.sampled
@pytest.mark.parametrize(("architecture", "variant", "preset"), matrix(ARCHITECTURES))
def test_a_model_in_use_is_saved_without_a_false_alarm(
    architecture: str, variant: str, preset: str, tmp_path: Path
) -> None:
    small = small_model(architecture, variant, preset)
    used(small, variant)
    assert comes_back(small, tmp_path / "double")
    small.to(torch.bfloat16)
    used(small, variant)
    assert comes_back(small, tmp_path / "half")


def change(path: str, name: str, value: object) -> Callable[[nn.Module], None]:
    def changed(model: nn.Module) -> None:
        owner = model.get_submodule(path)
        assert hasattr(owner, name)
        if name in owner._modules:
            delattr(owner, name)
        setattr(owner, name, value)

    return changed


BERT = "bert.encoder.layer.1"
LLAMA = "model.layers.1"
T5 = "transformer.encoder.block.0.layer.1"
CHANGES = {
    "bert activation": ("bert", change(f"{BERT}.intermediate", "intermediate_act_fn", nn.ReLU())),
    "bert eps": ("bert", change(f"{BERT}.output.LayerNorm", "eps", 0.1)),
    "bert scale": ("bert", change(f"{BERT}.attention.self", "scaling", 3.0)),
    "bert dropout": ("bert", change(f"{BERT}.output.dropout", "p", 0.7)),
    "bert no dropout": ("bert", change(f"{BERT}.output", "dropout", nn.Identity())),
    "roberta scale": (
        "roberta",
        change("roberta.encoder.layer.0.attention.self", "scaling", 3.0),
    ),
    "deberta activation": (
        "deberta-v2",
        change("deberta.encoder.layer.0.intermediate", "intermediate_act_fn", ACT2FN["relu"]),
    ),
    "deberta terms": (
        "deberta-v2",
        change("deberta.encoder.layer.0.attention.self", "pos_att_type", ["p2c"]),
    ),
    "llama activation": ("llama", change(f"{LLAMA}.mlp", "act_fn", nn.Tanh())),
    "llama eps": ("llama", change("model.norm", "variance_epsilon", 0.1)),
    "llama scale": ("llama", change(f"{LLAMA}.self_attn", "scaling", 3.0)),
    "qwen2 eps": ("qwen2", change("model.norm", "variance_epsilon", 0.1)),
    "qwen3 eps": ("qwen3", change(f"{LLAMA}.self_attn.q_norm", "variance_epsilon", 0.1)),
    "mistral scale": ("mistral", change(f"{LLAMA}.self_attn", "scaling", 3.0)),
    "rotary scale": ("llama", change("model.rotary_emb", "attention_scaling", 2.0)),
    "t5 activation": ("t5", change(f"{T5}.DenseReluDense", "act", torch.tanh)),
    "t5 eps": ("t5", change(f"{T5}.layer_norm", "variance_epsilon", 0.1)),
    "gpt2 activation": ("gpt2", change("transformer.h.0.mlp", "act", nn.ReLU())),
    "gpt2 scale": ("gpt2", change("transformer.h.0.attn", "scaling", 3.0)),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_setting_that_the_configuration_does_not_give_is_neither_saved_nor_exported(
    case: str, tmp_path: Path
) -> None:
    architecture, changed = CHANGES[case]
    small = small_model(architecture)
    assert comes_back(small, tmp_path / "before")
    changed(small)
    place = r"(\.\d\.|norm|rotary_emb).*the configuration of \w+ gives .*which would be loaded"
    with pytest.raises(ModuleSettingsError, match=place):
        save(small, tmp_path / "small")
    with pytest.raises(ModuleSettingsError, match=place):
        uniform(small)
    assert [path.name for path in tmp_path.iterdir()] == ["before"]


NUMBERS: dict[str, Callable[[float], object]] = {
    "numpy single": np.float32,
    "numpy half": np.float16,
    "numpy double": np.float64,
    "numpy array": np.array,
    "tensor": torch.tensor,
    "tensor of one": lambda number: torch.tensor([number]),
    "fraction": Fraction,
}
"""Types of values that a module can compute with as with a number."""


@pytest.mark.sampled
@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("case", ["bert scale", "bert eps", "llama eps", "llama scale"])
def test_a_changed_number_is_found_in_every_type(case: str, kind: str, tmp_path: Path) -> None:
    architecture, path, name = {
        "bert scale": ("bert", f"{BERT}.attention.self", "scaling"),
        "bert eps": ("bert", f"{BERT}.output.LayerNorm", "eps"),
        "llama eps": ("llama", "model.norm", "variance_epsilon"),
        "llama scale": ("llama", f"{LLAMA}.self_attn", "scaling"),
    }[case]
    gated = attach(tiny.tiny_model(architecture), GateConfig(preset="structured"))
    small = small_model(architecture)
    for model in (gated, small):
        change(path, name, NUMBERS[kind](0.75))(model)
        with pytest.raises(ModuleSettingsError, match=rf"{re.escape(path)}\.{name} is "):
            save(model, tmp_path / "model")
    with pytest.raises(ModuleSettingsError, match=rf"{re.escape(path)}\.{name} is "):
        uniform(small)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["numpy single", "numpy double", "tensor"])
def test_the_configurations_number_in_another_type_is_no_change(kind: str, tmp_path: Path) -> None:
    small = small_model("llama", rms_norm_eps=2.0**-10)  # exact in every dtype
    change("model.norm", "variance_epsilon", NUMBERS[kind](2.0**-10))(small)
    assert comes_back(small, tmp_path / "small")


def test_the_message_names_both_values() -> None:
    small = small_model("bert")
    small.bert.encoder.layer[1].output.LayerNorm.eps = 0.5  # type: ignore[union-attr, index]
    said = r"bert\.encoder\.layer\.1\.output\.LayerNorm\.eps is 0\.5, .* gives 1e-12"
    with pytest.raises(ModuleSettingsError, match=said):
        uniform(small)


def test_a_module_that_was_put_in_or_taken_out_is_named(tmp_path: Path) -> None:
    small = small_model("bert")
    small.more = nn.Dropout(0.5)
    with pytest.raises(ModuleSettingsError, match=r"more \(Dropout\) is not among the modules"):
        save(small, tmp_path / "small")
    del small.more, small.bert.encoder.layer[0].output.dropout  # type: ignore[union-attr, index]
    with pytest.raises(ModuleSettingsError, match=r"layer\.0\.output\.dropout is missing"):
        save(small, tmp_path / "small")


@pytest.mark.parametrize("write", [save, lambda model, _: uniform(model)])
def test_a_forward_that_one_module_has_for_itself_is_neither_saved_nor_exported(
    write: Callable[[nn.Module, Path], object], tmp_path: Path
) -> None:
    small = small_model("bert")
    norm = small.bert.embeddings.LayerNorm  # type: ignore[union-attr]
    norm.forward = lambda hidden: 2 * hidden  # type: ignore[method-assign, union-attr]
    with pytest.raises(ModuleSettingsError, match=r"embeddings\.LayerNorm\.forward was replaced"):
        write(small, tmp_path / "small")
    assert not (tmp_path / "small").exists()
    del norm.forward  # type: ignore[union-attr]
    assert comes_back(small, tmp_path / "small")


def test_the_autocast_that_accelerate_puts_around_a_forward_is_none_of_its_own(
    tmp_path: Path,
) -> None:
    small = small_model("bert", dtype=torch.float32)
    plain = tiny.output(small, tiny.tokens())
    AcceleratorState._reset_state()  # other tests may have created one in another precision
    try:
        Accelerator(cpu=True, mixed_precision="bf16").prepare(small)
    finally:
        AcceleratorState._reset_state()
    assert "forward" in vars(small)
    save(small, tmp_path / "small")
    assert torch.equal(tiny.output(load(tmp_path / "small"), tiny.tokens()), plain)


def test_a_change_that_the_configuration_says_too_is_saved(tmp_path: Path) -> None:
    small = small_model("bert")
    for layer in small.bert.encoder.layer:  # type: ignore[union-attr]
        layer.output.LayerNorm.eps = layer.attention.output.LayerNorm.eps = 0.1
    small.bert.embeddings.LayerNorm.eps = small.config.layer_norm_eps = 0.1  # type: ignore[union-attr]
    assert comes_back(small, tmp_path / "small")


ROTARY = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.5, 2.0],
        "long_factor": [3.0, 4.0, 5.0],
        "original_max_position_embeddings": 16,
        "factor": 4.0,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@torch.no_grad()
@pytest.mark.parametrize("kind", ROTARY)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_rotary_embeddings_that_have_seen_a_long_input_come_back_as_they_are(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    small = small_model(architecture, "language", rope_parameters=ROTARY[kind])
    lengths = (40, 30, 20, 7, 30)  # the table of 40 serves 30 and 20; 7 restores the first one

    def run(model: nn.Module, length: int) -> torch.Tensor:
        with InFloat64():  # the norms of queries and keys are computed in float32
            return tiny.output(model, tiny.tokens(1, length))

    fresh = run(small, 30)
    run(small, lengths[0])
    # Older transformers store the longest input under a name that nothing reads.
    remembers = any(getattr(m, "max_seq_len_cached", 0) == lengths[0] for m in small.modules())
    if kind == "dynamic" and remembers:
        assert not torch.equal(run(small, 30), fresh), "the table depends on what was seen"
    save(small, tmp_path / "small")
    again, stock = load(tmp_path / "small"), uniform(small)
    for length in lengths[1:]:
        expected = run(small, length)
        assert torch.equal(run(again, length), expected)
        assert torch.allclose(run(stock, length), expected, rtol=1e-9, atol=1e-9)
