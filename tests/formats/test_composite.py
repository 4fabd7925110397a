"""Composite models: one part is compact, and the whole model is saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertLMHeadModel,
    BertModel,
    CLIPVisionConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2LMHeadModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

from finegates.budget import macs, planned_macs
from finegates.compaction import CompactLinear, compact
from finegates.formats.compact import load, save
from finegates.formats.structure import CompactFormatError
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from support import tiny
from support.saved import edit

VISION = {
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "projection_dim": 12,
}


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model.double().eval()


def shrink(part: nn.Module, *, inplace: bool = False) -> nn.Module:
    attach(part, GateConfig(preset="structured"))
    tiny.scatter_gates(part)
    small = compact(part.eval(), inplace=inplace)
    assert any(isinstance(module, CompactLinear) for module in small.modules())
    return small


def encoder_decoder() -> tuple[nn.Module, list[str]]:
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        tiny.ARCHITECTURES["bert"](), tiny.ARCHITECTURES["bert"]()
    )
    return randomised(EncoderDecoderModel(config)), ["encoder", "decoder"]


def llava(architecture: str) -> Callable[[], tuple[nn.Module, list[str]]]:
    def make() -> tuple[nn.Module, list[str]]:
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=tiny.ARCHITECTURES[architecture](),
            image_token_index=39,
            vision_feature_layer=-1,
        )
        model = randomised(LlavaForConditionalGeneration(config))
        return model, ["model.language_model"]

    return make


def dual_encoder() -> tuple[nn.Module, list[str]]:
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        CLIPVisionConfig(**VISION), tiny.ARCHITECTURES["bert"](), projection_dim=6
    )
    return randomised(VisionTextDualEncoderModel(config)), ["text_model"]


def of_instances(decoder: str) -> Callable[[], tuple[nn.Module, list[str]]]:
    def make() -> tuple[nn.Module, list[str]]:
        config = tiny.ARCHITECTURES[decoder]()
        config.is_decoder = config.add_cross_attention = True
        language = (BertLMHeadModel if decoder == "bert" else GPT2LMHeadModel)(config)
        encoder = BertModel(tiny.ARCHITECTURES["bert"]())
        model = EncoderDecoderModel(encoder=encoder, decoder=language)
        # It passes a configuration to the decoder, and the model keeps its own decoder
        # configuration.
        assert language.base_model.config is not language.config
        language.base_model.config._attn_implementation = "eager"
        return randomised(model), ["encoder"]

    return make


def captions() -> tuple[nn.Module, list[str]]:
    """Images to text: the decoder has one kind of attention only, and keeps its heads."""
    decoder = TrOCRConfig(
        vocab_size=tiny.VOCABULARY,
        d_model=12,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
    )
    vision = ViTConfig(**{k: v for k, v in VISION.items() if k != "projection_dim"})
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, decoder)
    return randomised(VisionEncoderDecoderModel(config)), ["encoder"]


KINDS: dict[str, Callable[[], tuple[nn.Module, list[str]]]] = {
    "encoder-decoder": encoder_decoder,
    "encoder-decoder of a bert instance": of_instances("bert"),
    "encoder-decoder of a gpt2 instance": of_instances("gpt2"),
    "llava of llama": llava("llama"),
    "llava of mistral": llava("mistral"),
    "llava of qwen2": llava("qwen2"),
    "dual encoder": dual_encoder,
    "captions": captions,
}


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    tokens = tiny.tokens()
    pixels = torch.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=torch.float64).view(2, 3, 8, 8)
    found: Tensor
    if isinstance(model, EncoderDecoderModel):
        found = model(**tokens, decoder_input_ids=tokens["input_ids"]).logits
    elif isinstance(model, VisionEncoderDecoderModel):
        found = model(pixel_values=pixels, decoder_input_ids=tokens["input_ids"]).logits
    elif isinstance(model, LlavaForConditionalGeneration):
        ids = torch.cat([torch.full((2, 4), 39), tokens["input_ids"] % 39], dim=1)
        found = model(input_ids=ids, pixel_values=pixels).logits
    else:
        found = model(**tokens, pixel_values=pixels).logits_per_text
    return found


@pytest.mark.sampled(5)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_a_compact_part_is_saved_and_loaded(
    kind: str, inplace: bool, tmp_path: Path
) -> None:
    model, paths = KINDS[kind]()
    for path in paths:
        small = shrink(model.get_submodule(path), inplace=inplace)
        model.set_submodule(path, small)
    save(model, tmp_path / "whole")
    again = load(tmp_path / "whole")
    assert type(again) is type(model)
    assert torch.equal(output(again), output(model))
    save(again, tmp_path / "again")
    assert torch.equal(output(load(tmp_path / "again")), output(model))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_gated_as_a_whole_and_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    model, _ = KINDS[kind]()
    attach(model, GateConfig(target=0.5, sequence_length=7))
    tiny.scatter_gates(model)
    expected = output(model.eval())
    planned = planned_macs(model, 1, 7)
    small = compact(model)
    torch.testing.assert_close(output(small), expected, rtol=1e-9, atol=1e-9)
    assert macs(small, 1, 7) == planned
    parts = [path for path, m in small.named_modules() if isinstance(m, CompactLinear)]
    assert len({path.partition(".layer")[0] for path in parts}) > 1, "of both models"
    save(small, tmp_path / "whole")
    assert torch.equal(output(load(tmp_path / "whole")), output(small))


def test_a_part_of_a_loaded_model_can_be_compacted_further(tmp_path: Path) -> None:
    model, _ = encoder_decoder()
    model.encoder = shrink(model.encoder)  # type: ignore[arg-type]
    save(model, tmp_path / "whole")
    again = load(tmp_path / "whole")
    again.decoder = shrink(again.decoder)  # type: ignore[arg-type]
    save(again, tmp_path / "whole")
    assert torch.equal(output(load(tmp_path / "whole")), output(again))


def test_a_class_of_ones_own_is_refused_with_the_way_that_works(tmp_path: Path) -> None:
    class Tower(PreTrainedModel):
        config_class = tiny.ARCHITECTURES["bert"]().__class__
        _supports_sdpa = True

        def __init__(self, inner: nn.Module) -> None:
            super().__init__(inner.config)  # type: ignore[arg-type]
            self.inner = inner

    tower = Tower(shrink(tiny.tiny_model("bert", "base")))
    with pytest.raises(ValueError, match=r"save inner by itself.*finegates\.load"):
        save(tower, tmp_path / "whole")
    save(tower.inner, tmp_path / "inner")
    found, expected = (
        tiny.output(m, tiny.tokens()) for m in (load(tmp_path / "inner"), tower.inner)
    )
    assert torch.equal(found, expected)


def test_each_part_keeps_the_function_of_its_attention(tmp_path: Path) -> None:
    model, _ = encoder_decoder()
    model.encoder.set_attn_implementation("eager")  # type: ignore[union-attr, operator]
    model.encoder = shrink(model.encoder)  # type: ignore[arg-type]
    save(model, tmp_path / "whole")
    again = load(tmp_path / "whole")
    assert again.encoder.config._attn_implementation == "eager"  # type: ignore[union-attr]
    assert again.decoder.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    assert torch.equal(output(again), output(model))


def mixture() -> nn.Module:
    config = MixtralConfig(
        vocab_size=40,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        pad_token_id=0,
    )
    model = randomised(MixtralForCausalLM(config)).float()
    attach(model, GateConfig(preset="reference", modules=("*o_proj",)))
    tiny.scatter_gates(model)
    return compact(model.eval())


@pytest.mark.parametrize("name", ["eager", "batched_mm", "grouped_mm"])
def test_a_mixture_of_experts_keeps_the_function_of_its_experts(name: str, tmp_path: Path) -> None:
    small = mixture()
    small.set_experts_implementation(name)  # type: ignore[operator]
    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert again.config._experts_implementation == name  # type: ignore[union-attr]
    assert torch.equal(tiny.output(again, tiny.tokens()), tiny.output(small, tiny.tokens()))


@pytest.mark.parametrize(
    "stored",
    [
        {"": {"experts": "someone/some-kernel"}},
        {"": {"attention": "flash_attention_2"}},
        {"": {"surprise": "eager"}},
        {"model.norm": {"attention": "eager"}},
        {"": "eager"},
        {"": {"experts": ["eager"]}},
    ],
)
def test_functions_that_are_not_torchs_own_are_not_taken_from_a_file(
    stored: object, tmp_path: Path
) -> None:
    save(mixture(), tmp_path / "small")
    edit(tmp_path / "small", lambda s: s.update(implementations=stored))
    with pytest.raises(CompactFormatError, match="does not describe a model"):
        load(tmp_path / "small")
