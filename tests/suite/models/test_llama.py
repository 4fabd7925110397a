"""Causal models: expected perplexity of a real checkpoint, padding of classifiers, memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.lora import add_lora
from finegates.suite.config.llama import CausalModel
from finegates.suite.config.llama_task import task_tier
from finegates.suite.data.packing import HeldOut
from finegates.suite.data.text import read_documents
from finegates.suite.data.tokenizer import train_tokenizer
from finegates.suite.models.llama import load_causal
from finegates.suite.models.sources import (
    ModelError,
    choose_padding,
    load_classifier,
    load_tokenizer,
)
from finegates.suite.runs.finetune import TaskData, finetune
from finegates.suite.runs.perplexity import held_out_prediction
from finegates.suite.tables.llama_step import step_table
from finegates.suite.timing.control import CONTROL
from finegates.suite.timing.llama_step import MEMORY_LIMIT, time_llama_steps
from finegates.suite.timing.memory import peak_tensor_bytes
from support.causal_tier import causal_tier, write_llama
from support.paths import SHARED

CHECKPOINT = SHARED / "checkpoints" / "stories260K"
STORIES = SHARED / "text" / "tinystories" / "validation.parquet"
STATED_LOSS, STATED_BITS = 1.2992, 0.906
"""Nats per token and bits per character on the first 512 tokens of each of the first 600 stories,
from the README of the data.
"""

needs_checkpoint = pytest.mark.skipif(
    not (CHECKPOINT.is_dir() and STORIES.is_file()),
    reason=f"no stories260K and TinyStories below {SHARED}",
)


def load_checkpoint():
    return load_causal(CausalModel(name="stories260K", path=str(CHECKPOINT)), "")


def beginnings(tokenizer, stories: int) -> HeldOut:
    """The start of each story, as far as the model has positions, as for the stated value."""
    ids = [tokenizer(text)["input_ids"] for text in read_documents(STORIES, limit=stories)]
    texts = [tokenizer.decode(story[:512], skip_special_tokens=True) for story in ids]
    return HeldOut(texts, tokenizer, 512, alone=True)


@pytest.mark.thorough
@needs_checkpoint
def test_the_real_checkpoint_has_its_stated_perplexity():
    model, tokenizer = load_checkpoint()
    # A fifth of the 600 stories is within one per cent of all; the slow test uses all.
    text = beginnings(tokenizer, 120)
    assert held_out_prediction(model, text).loss == pytest.approx(STATED_LOSS, rel=0.01)
    # The planted error: weights that differ from the checkpoint.
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.mul_(0.5)
    assert held_out_prediction(model, text).loss > 1.01 * STATED_LOSS


@needs_checkpoint
@pytest.mark.slow
def test_the_real_checkpoint_has_its_stated_perplexity_on_all_stories():
    model, tokenizer = load_checkpoint()
    found = held_out_prediction(model, beginnings(tokenizer, 600))
    assert found.loss == pytest.approx(STATED_LOSS, rel=1e-3)
    assert found.bits_per_character == pytest.approx(STATED_BITS, rel=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


def test_padding_is_never_the_end_of_a_text():
    tokenizer = train_tokenizer(["a b"])
    assert choose_padding(tokenizer) == tokenizer.pad_token_id
    tokenizer.pad_token = None
    tokenizer.add_tokens(["<|finetune_right_pad_id|>"])
    choose_padding(tokenizer)
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"


def test_without_a_reserved_token_padding_is_the_unknown_or_the_first():
    class Bare:
        pad_token = None
        unk_token = "<unk>"
        bos_token = "<s>"
        pad_token_id = 3

        def get_vocab(self):
            return {}

    bare = Bare()
    choose_padding(bare)
    assert bare.pad_token == "<unk>"
    bare = Bare()
    bare.unk_token = None
    choose_padding(bare)
    assert bare.pad_token == "<s>"
    bare = Bare()
    bare.unk_token = bare.bos_token = None
    with pytest.raises(ModelError, match="no token that could pad"):
        choose_padding(bare)


@pytest.mark.parametrize("gated", [False, True])
def test_a_classifier_reads_the_last_word_wherever_the_padding_is(tmp_path, gated):
    write_llama(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    if gated:
        attach(model, GateConfig(preset="reference"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model.config.pad_token_id = tokenizer.pad_token_id
    texts = ["a b c d e", "f g"]
    with torch.no_grad():
        alone = torch.cat([model(**tokenizer(t, return_tensors="pt")).logits for t in texts])
        for side in ("left", "right"):
            tokenizer.padding_side = side
            padded = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
            assert torch.allclose(padded, alone, atol=1e-5), side
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_a_model_without_padding_classifies_batches(tmp_path):
    tier = task_tier(causal_tier(tmp_path))
    config = tmp_path / "llama" / "config.json"
    config.write_text(config.read_text().replace('"pad_token_id": 1', '"pad_token_id": null'))
    model = load_classifier(tier, "cola", 0)
    assert model.config.pad_token_id == load_tokenizer(tier).pad_token_id
    assert model(input_ids=torch.randint(5, 15, (3, 6))).logits.shape == (3, 2)


def test_a_gated_llama_is_fine_tuned_on_a_task_and_counted_by_every_denominator(folder):
    tier = task_tier(causal_tier(folder))
    data = TaskData(tier, "cola", load_tokenizer(tier))
    record = finetune(tier, data, "gates", 0, progress=False)
    counts = record.budget.parameters
    assert counts.gated < counts.encoder < counts.all
    assert record.budget.removed_weights > 0
    assert counts.trainable == counts.gates + counts.head
    assert record.compact.max_abs_logit_difference < 1e-5
    assert record.config.tier_description == "tiny Llama for tests"


def test_without_the_experiment_there_is_no_task_tier(folder):
    tier = causal_tier(folder)
    llama = tier.llama.model_copy(update={"on_task": None})
    with pytest.raises(ValueError, match=r"no section 'llama\.on_task'"):
        task_tier(tier.model_copy(update={"llama": llama}))
    with pytest.raises(ValueError, match="no section 'llama'"):
        task_tier(tier.model_copy(update={"llama": None}))


def test_tensor_memory_is_counted_at_its_peak():
    def work() -> None:
        a = torch.ones(1000, 1000)
        b = a + 1
        del a
        del b
        torch.ones(10)

    assert peak_tensor_bytes(work) == pytest.approx(8e6, rel=0.01)


@pytest.mark.parametrize("preset", ["reference", "structured"])
def test_gates_hold_little_more_memory_than_lora(preset):
    from transformers import LlamaConfig, LlamaForCausalLM

    def peak(kind: str) -> float:
        torch.manual_seed(0)
        model: torch.nn.Module = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=512, hidden_size=64, num_hidden_layers=3, num_attention_heads=8,
                num_key_value_heads=4, intermediate_size=172, max_position_embeddings=256,
            )
        )  # fmt: skip
        if kind == "lora":
            model = add_lora(model, 8)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(".lora_" in name)
        else:
            attach(model, GateConfig(preset=kind, train_head=False))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained)
        ids = torch.randint(5, 512, (4, 128))

        def step() -> None:
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
        weights = sum(p.numel() for p in model.parameters()) + 2 * sum(map(torch.numel, trained))
        return 4 * weights + peak_tensor_bytes(step)

    assert peak(preset) <= MEMORY_LIMIT * peak("lora")


def test_steps_are_timed_and_their_ratios_judged(folder):
    tier = causal_tier(folder)
    frame = time_llama_steps(tier, threads=1)
    assert set(frame["experiment"]) == {"task", "posttraining", "pretraining"}
    assert "gates (reference)" in set(frame["contender"])
    assert "gates (biased)" not in set(frame["contender"])
    of_reference = frame[frame["contender"] == frame["to"]]
    assert (of_reference["time_ratio"] == 1).all()
    assert (frame["peak_mib"] > 0).all()
    control = frame["contender"] == CONTROL
    assert control.sum() == 3

    def printed(control_ratio: float) -> str:
        changed = frame.assign(time_ratio=frame["time_ratio"].where(~control, control_ratio))
        return step_table(changed, tier, {"cpu": "CPU", "threads": 1}).markdown()

    assert "limit 1.15" in printed(1.0)
    assert "limit 1.2" in printed(1.0)
    frame["time_ratio"] = 99.0
    assert "99.000 (limit 1.15: missed)" in printed(1.0)
    # The time limit is not judged if the control is noisy.
    assert "99.000 (noisy)" in printed(1.06)
    assert "99.000 (limit" not in printed(1.06)
