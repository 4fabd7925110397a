"""Heads that count labels differently: their steps, too, equal those of the whole batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    BioGptConfig,
    ElectraConfig,
    GPT2Config,
    PretrainedConfig,
    Wav2Vec2Config,
    XLMConfig,
    XLMRobertaXLConfig,
    XLNetConfig,
)

from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.penalty import penalty_of
from finegates.training.label_use import LabelUse, label_use
from finegates.training.micro_batches import count_items
from support.tiny import VOCABULARY
from support.tolerance import gamma
from support.training_rows import Row, trained

# Gates are float32, and the sums of a step have some hundred terms.
ROUNDING = gamma(1 << 10, torch.float32)
ROWS, LENGTH = 8, 7
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "num_labels": 2,
}
_XL = {"n_layer": 1, "d_model": 12, "n_head": 2, "d_inner": 16, "start_n_top": 2, "end_n_top": 2}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "ElectraForPreTraining": lambda: ElectraConfig(**_SIZES, embedding_size=12),
    "BioGptForTokenClassification": lambda: BioGptConfig(**_SIZES),
    "XLMRobertaXLForTokenClassification": lambda: XLMRobertaXLConfig(**_SIZES),
    "GPT2DoubleHeadsModel": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=12, n_layer=1, n_head=2, n_positions=32, pad_token_id=0
    ),
    "XLNetForQuestionAnswering": lambda: XLNetConfig(vocab_size=VOCABULARY, **_XL),
    "XLMForQuestionAnswering": lambda: XLMConfig(
        vocab_size=VOCABULARY, emb_dim=12, n_layers=1, n_heads=2, start_n_top=2, end_n_top=2
    ),
}
GATED = {
    "ElectraForPreTraining": "*.query",
    "BioGptForTokenClassification": "*.fc1",
    "XLMRobertaXLForTokenClassification": "*.query",
    "GPT2DoubleHeadsModel": "*.c_fc",
    "XLNetForQuestionAnswering": "*.layer_1",
    "XLMForQuestionAnswering": "*.lin1",
}


def gated(kind: str) -> nn.Module:
    settings = CONFIGS[kind]()
    for name, value in vars(settings).items():
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
            setattr(settings, name, 0.0)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(settings).double()
    attach(model, GateConfig(preset="reference", target=0.4, noise_std=0.0, modules=(GATED[kind],)))
    return model


def padded_rows(inside: int) -> list[Row]:
    """Sequences of two to seven tokens whose padding has labels as well."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(ROWS):
        length = 2 + (5 * number * number) % 6
        mask = [1] * length + [0] * (LENGTH - length)
        ids = torch.randint(3, VOCABULARY, (LENGTH,), generator=generator).tolist()
        labels = torch.randint(0, 2, (LENGTH,), generator=generator).tolist()
        if inside:  # some labels within the sequences are ignored as well
            labels[number % 2] = -100
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return rows


def two_headed_rows() -> list[Row]:
    """Rows with two choices; some ignore the first label, which is not a target."""
    rows = []
    for number in range(ROWS):
        ids = torch.randint(3, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(number))
        labels = ids.clone()
        labels[:, : 1 + number % 4] = -100
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def answers() -> list[Row]:
    """Answers, and whether there is one: means over the same rows."""
    return [
        {
            "input_ids": row["input_ids"],
            "start_positions": 1 + number % 3,
            "end_positions": 4,
            "cls_index": 0,
            "is_impossible": float(number < 3),
        }
        for number, row in enumerate(padded_rows(inside=0))
    ]


def stacked(rows: list[Row]) -> dict[str, Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def step(model: nn.Module, rows: list[Row], folder: Any, *cut: int) -> dict[str, Tensor]:
    def collated_by_rows(trainer: Any) -> None:
        trainer.data_collator = stacked

    (gradient,), _ = trained(copy.deepcopy(model), rows, folder, *cut, prepare=collated_by_rows)
    return gradient


def gradient_by_hand(model: nn.Module, rows: list[Row]) -> dict[str, Tensor]:
    model = copy.deepcopy(model).train()
    config = model.finegates_config
    loss = model(**stacked(rows))[0] + config.penalty_weight * penalty_of(model, config)()
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def check_alike(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert wanted
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) <= ROUNDING * scale, name


CASES: dict[str, tuple[str, list[Row]]] = {
    "the mask says what counts": ("ElectraForPreTraining", padded_rows(0)),
    "mask and label do": ("BioGptForTokenClassification", padded_rows(1)),
    "mask and label do, too": ("XLMRobertaXLForTokenClassification", padded_rows(1)),
    "a head shifts its labels": ("GPT2DoubleHeadsModel", two_headed_rows()),
    "answers and verdicts": ("XLNetForQuestionAnswering", answers()),
    "answers and verdicts, too": ("XLMForQuestionAnswering", answers()),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_step_has_the_gradient_of_its_whole_batch(case, tmp_path):
    kind, rows = CASES[case]
    model = gated(kind)
    wanted = gradient_by_hand(model, rows)
    for cut in ((8, 1), (4, 2), (2, 4)):
        check_alike(step(model, rows, tmp_path, *cut), wanted)


def test_a_mask_of_another_shape_than_the_labels_is_refused_in_several(tmp_path):
    class OfFrames(nn.Module):
        """Like speech heads: it has fewer labels than mask positions."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 2)

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
        ) -> dict[str, Tensor]:
            logits = self.layer(input_ids[..., None].float())
            loss = logits.sum()
            if labels is not None:
                loss = loss / attention_mask.sum()
            return {"loss": loss, "logits": logits}

    model = OfFrames()
    attach(model, GateConfig(preset="reference", modules=("layer",)))
    rows = padded_rows(0)
    for row in rows:
        row["labels"] = row["labels"][:3]
    step(model, rows, tmp_path, 8, 1)
    with pytest.raises(ValueError, match="OfFrames.*attention_mask.*gradient_accumulation_steps=1"):
        step(model, rows, tmp_path, 4, 2)


def test_a_mask_is_counted_only_where_the_loss_reads_it():
    batch = {"labels": torch.tensor([[1, 0, -100]]), "attention_mask": torch.tensor([[1, 0, 1]])}
    batch["input_ids"] = batch["labels"]
    assert count_items(batch, LabelUse()).tolist() == [2, 1]
    assert count_items(batch, LabelUse(masked=True)).tolist() == [1, 1]


def test_the_only_label_of_another_name_is_counted_as_labels_are():
    batch = {"input_ids": torch.zeros(3, 2), "mc_labels": torch.tensor([0, -100, 1])}
    assert count_items(batch, LabelUse()).tolist() == [2, 3]
    assert count_items({**batch, "sentence_label": torch.ones(3)}, LabelUse()).tolist() == [3, 3]


@pytest.mark.parametrize("speech", [Wav2Vec2Config()])
def test_what_a_head_does_with_its_labels_is_read_in_its_source(speech):
    with torch.device("meta"):
        models = {kind: getattr(transformers, kind)(CONFIGS[kind]()) for kind in CONFIGS}
        models["Wav2Vec2ForCTC"] = transformers.Wav2Vec2ForCTC(speech)
    masked = {kind for kind, model in models.items() if label_use(model).masked}
    assert masked == {
        "ElectraForPreTraining",
        "BioGptForTokenClassification",
        "XLMRobertaXLForTokenClassification",
        "Wav2Vec2ForCTC",
    }
    assert {kind for kind, model in models.items() if label_use(model).shifted} == {
        "GPT2DoubleHeadsModel"
    }
