"""What torch prints during an export is left out, unless details are wanted."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LEDConfig, LEDForConditionalGeneration

from finegates.formats.onnx import OnnxExportError, export_onnx
from finegates.formats.onnx_messages import without_messages_of_torch

pytest.importorskip("onnxruntime")


def led() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model that torch cannot export, and inputs."""
    sizes = {"d_model": 16, "vocab_size": 40, "attention_window": 8}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": 2, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 16}
    config = LEDConfig(
        **sizes, max_encoder_position_embeddings=32, max_decoder_position_embeddings=32
    )
    ids = torch.arange(4, 36).view(2, 16)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["decoder_input_ids"] = ids[:, :8]
    return LEDForConditionalGeneration(config).eval(), inputs


@pytest.mark.parametrize("detail", [False, True])
def test_what_torch_prints_before_its_error_is_left_out_unless_details_are_wanted(
    detail: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, inputs = led()
    logger = logging.getLogger("finegates")
    before = logger.level
    logger.setLevel(logging.DEBUG if detail else logging.WARNING)
    try:
        with pytest.raises(OnnxExportError, match="cannot export this LEDFor"):
            export_onnx(model, tmp_path / "model.onnx", inputs)
    finally:
        logger.setLevel(before)
    captured = capsys.readouterr()
    assert ("def forward" in captured.err) == detail
    assert detail or not captured.err


def test_a_log_handler_that_is_made_during_an_export_writes_afterwards(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("torch.of_the_tests")
    logger.propagate = False
    with without_messages_of_torch():
        handler = logging.StreamHandler()
        logger.addHandler(handler)
        logger.warning("meanwhile")
    logger.warning("afterwards")
    logger.removeHandler(handler)
    assert capsys.readouterr().err == "afterwards\n"
