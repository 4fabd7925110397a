"""Detaching gates: the outputs from before, or those of the gated model with gates folded in."""

import pytest
import torch

from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.detachment import detach
from finegates.gates.gated_linear import gated_layers
from finegates.gates.parts import gate_config
from finegates.lora import add_lora
from support.tiny import output, set_latents, tiny_model, tokens

REFERENCE = GateConfig(preset="reference")


def test_detach_restores_the_outputs_from_before():
    base, inputs = tiny_model("bert"), tokens()
    before, names = output(base, inputs), [n for n, _ in base.named_parameters()]
    set_latents(attach(base, REFERENCE), 0.1)
    detach(base)
    assert torch.equal(output(base, inputs), before)
    assert [n for n, _ in base.named_parameters()] == names
    assert gate_config(base) is None


def test_detach_with_fold_keeps_what_the_gated_model_computed():
    model, inputs = attach(tiny_model("roberta"), REFERENCE), tokens()
    set_latents(model, -0.1)
    gated = output(model, inputs)
    folded = detach(model, fold=True)
    assert not gated_layers(folded)
    torch.testing.assert_close(output(folded, inputs), gated, rtol=1e-10, atol=1e-12)


def test_detach_refuses_to_fold_an_unmerged_adapter():
    with pytest.raises(ValueError, match="unmerged low-rank adapter"):
        detach(attach(add_lora(tiny_model("bert")), REFERENCE), fold=True)
