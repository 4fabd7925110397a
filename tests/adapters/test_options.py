"""Options and parts of described types that the conformance suite does not have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomModel,
    EsmConfig,
    EsmModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

import finegates as fg
from finegates.adapters import AttentionSpec, DescribedAdapter
from finegates.cli import main
from finegates.compaction import compact
from finegates.compaction.certificate import NotEqualError
from finegates.formats.compact import load, save
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.gated_experts import gated_experts
from finegates.gates.gated_linear import leaf_gates
from support import tiny
from support.described import (
    described_inputs,
    described_model,
    described_outputs,
    relative_difference,
)
from support.described_types import CONFIGURATIONS

ROUNDING = 1e-11  # as in test_described


def test_experts_alone_are_compacted_and_saved_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an architecture whose attention has no description."""
    config = Qwen2MoeConfig(
        vocab_size=48,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        intermediate_size=40,
        num_experts=4,
        num_experts_per_tok=2,
    )
    torch.manual_seed(0)
    model = Qwen2MoeForCausalLM(config).double().eval()
    model.set_experts_implementation("eager")
    attach(model, GateConfig(preset="structured", target=0.1, sequence_length=9))
    with torch.no_grad():
        for gate in leaf_gates(model):
            gate.latent[: gate.size // 2] = -1.0  # all dimensions of every second expert
    inputs = described_inputs("mixtral")
    before = described_outputs(model.eval(), inputs)
    small = compact(model)
    assert relative_difference(before, described_outputs(small, inputs)) < ROUNDING
    assert not gated_experts(small)
    save(small, tmp_path / "small")
    for again in (load(tmp_path / "small"), compact(small)):
        outputs = (described_outputs(m, inputs) for m in (small, again))
        assert relative_difference(*outputs) == 0.0
    assert main(["plan", str(tmp_path / "small"), "--length", "8"]) == 0
    assert "compact already: no weights in its compact layers" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"is compact \(.*experts became narrower\)"):
        fg.calibrate(small)
    with pytest.raises(ValueError, match="experts holds stacked experts that were compacted"):
        fg.attach(small, GateConfig(sequence_length=9))


def test_experts_in_adapters_are_refused_before_anything_changes() -> None:
    peft = pytest.importorskip("peft")
    base = described_model("mixtral", "causal")
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"]
    )
    model = peft.get_peft_model(base, config)
    with pytest.raises(ValueError, match=r"experts .*adapters of peft.*fg\.add_lora"):
        attach(model, GateConfig(preset="structured", sequence_length=9))
    described_outputs(model, described_inputs("mixtral", "causal"))


@pytest.mark.parametrize("share", [0.4, 0.63])
@pytest.mark.parametrize("name", ["nemotron", "glm4", "phi3", "qwen3_5_text"])
def test_a_table_of_angles_has_pairs_though_the_rotated_share_of_a_head_is_odd(
    name: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 dimensions 3 or 5, for which transformers makes a table of 4 or 6."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": share}
    configuration = {**CONFIGURATIONS[name], "rope_parameters": rope}
    configuration.pop("partial_rotary_factor", None)
    monkeypatch.setitem(CONFIGURATIONS, name, configuration)
    model, inputs = described_model(name), described_inputs(name)
    attach(model, GateConfig(target=0.05, sequence_length=9))
    tiny.scatter_gates(model, mean=0.7)
    before = described_outputs(model.eval(), inputs)
    small = compact(model)
    assert relative_difference(before, described_outputs(small, inputs)) < ROUNDING
    save(small, tmp_path / "small")
    outputs = (described_outputs(m, inputs) for m in (small, load(tmp_path / "small")))
    assert relative_difference(*outputs) == 0.0


def test_slices_of_weights_are_not_gated() -> None:
    config = BloomConfig(
        vocab_size=48, hidden_size=24, n_layer=2, n_head=4, pretraining_tp=2, slow_but_exact=True
    )
    with pytest.raises(ValueError, match="no module of this BloomModel"):
        attach(BloomModel(config), GateConfig(preset="structured"))


@torch.no_grad()
def test_a_class_that_attends_to_itself_and_to_others_is_both() -> None:
    config = EsmConfig(
        vocab_size=48,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=64,
        pad_token_id=0,
        mask_token_id=3,
        is_decoder=True,
        add_cross_attention=True,
    )
    torch.manual_seed(0)
    model = EsmModel(config).double().eval()
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.3)
    states = torch.randn(2, 7, 24, dtype=torch.float64)
    inputs = {"input_ids": torch.randint(4, 48, (2, 7)), "encoder_hidden_states": states}
    attach(model, GateConfig(preset="structured", sequence_length=7))
    tiny.scatter_gates(model)
    before = described_outputs(model.eval(), inputs)
    small = compact(model)
    assert relative_difference(before, described_outputs(small, inputs)) < ROUNDING


def test_a_description_that_cannot_run_is_an_error_of_the_certificate() -> None:
    wrong = DescribedAdapter(
        AttentionSpec(
            ("albert.AlbertAttention",),
            q="query",
            k="key",
            v="value",
            o="dense",
            width="attention_head_size",
            joint=True,
        )
    )
    model = described_model("albert")
    attach(model, GateConfig(preset="structured", sequence_length=9))
    tiny.scatter_gates(model, mean=0.7)
    with pytest.raises(NotEqualError, match="cannot be called on the inputs.*description"):
        compact(model.eval(), adapter=wrong, verify=described_inputs("albert"))
