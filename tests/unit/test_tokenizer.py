"""Laws of the tokenizer and of pretraining on a corpus small enough for seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, RobertaForSequenceClassification

from finegates.pretrain import (
    EncodedDocuments,
    MarkerCollator,
    PretrainingSettings,
    pretrain_masked_lm,
)
from finegates.tasks.language import SEPARATOR, generate_corpus
from finegates.tasks.tokenizer import SPECIAL_TOKENS, save_tokenizer, train_tokenizer

TINY = {
    "hidden_size": 16,
    "layers": 1,
    "heads": 2,
    "intermediate_size": 32,
    "steps": 3,
    "batch_size": 4,
}


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return generate_corpus(1500, seed=0)


@pytest.fixture(scope="module")
def tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    return train_tokenizer(corpus)


def test_text_of_the_language_survives_the_round_trip(
    tokenizer: PreTrainedTokenizerFast, corpus: list[str]
) -> None:
    for document in corpus[:200]:
        text = document.replace(SEPARATOR, " ")
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_pair_is_encoded_in_the_format_of_roberta(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = tokenizer("The dog .", "who ?")
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == [
        *("<s>", "the", "dog", ".", "</s>"),
        *("</s>", "who", "?", "</s>"),
    ]


def test_special_tokens_have_the_numbers_of_roberta(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer("zyzzyva")["input_ids"][1] == tokenizer.unk_token_id


def test_a_saved_tokenizer_reloads_the_same(
    tokenizer: PreTrainedTokenizerFast, corpus: list[str], tmp_path: Path
) -> None:
    reloaded = AutoTokenizer.from_pretrained(save_tokenizer(tokenizer, tmp_path / "new"))
    passages = [document.split(SEPARATOR)[0] for document in corpus[:50]]
    assert reloaded(passages)["input_ids"] == tokenizer(passages)["input_ids"]
    assert reloaded.model_max_length == tokenizer.model_max_length == 64


def test_the_vocabulary_is_bounded_and_needs_room_for_words(corpus: list[str]) -> None:
    assert len(train_tokenizer(corpus, vocabulary=20)) == 20
    with pytest.raises(ValueError, match="must exceed the 5 special tokens"):
        train_tokenizer(corpus, vocabulary=5)


def test_pretraining_repeats_itself_and_its_folder_serves_classification(
    tokenizer: PreTrainedTokenizerFast, corpus: list[str], tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    first = pretrain_masked_lm(
        corpus[:40], tokenizer, TINY, seed=7, folder=tmp_path, progress=False
    )
    again = pretrain_masked_lm(corpus[:40], tokenizer, TINY, seed=7, progress=False)
    other = pretrain_masked_lm(corpus[:40], tokenizer, TINY, seed=8, progress=False)
    assert torch.get_num_threads() == threads
    weight = "roberta.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(first.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])
    classifier = RobertaForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert torch.equal(classifier.state_dict()[weight], first.state_dict()[weight])
    assert classifier.config.hidden_dropout_prob == PretrainingSettings().finetuning_dropout
    longest = tokenizer("dog " * 100, truncation=True, return_tensors="pt")
    assert longest["input_ids"].shape == (1, 64)
    assert classifier(**longest).logits.shape == (1, 3)


def test_markers_move_to_the_start_token_and_leave_the_rest_of_the_document(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    documents = [
        "the dog fears the cat .\tsurely the beast fears one cat .",
        "what a plot .\tbravo",
    ]
    settings = PretrainingSettings(mask_probability=1e-9, marker_probability=1.0)
    encoded = EncodedDocuments(documents, tokenizer, max_length=64)
    batch = MarkerCollator(tokenizer, settings)([encoded[0], encoded[1]])
    targets = [tokenizer.decode(row[:1]) for row in batch["labels"]]
    rows = [tokenizer.decode(row[row != tokenizer.pad_token_id]) for row in batch["input_ids"]]
    single, pair = sorted(zip(targets, rows, strict=True))
    assert (batch["labels"][:, 1:] == -100).all()
    assert single == ("bravo", "<s> what a plot . </s>")
    assert pair[0] == "surely"
    assert "surely" not in pair[1]
    stays = MarkerCollator(tokenizer, PretrainingSettings(marker_probability=0.0))
    assert (stays([encoded[0], encoded[1]])["labels"][:, 0] == -100).all()


def test_settings_that_cannot_be_are_refused(
    tokenizer: PreTrainedTokenizerFast, corpus: list[str]
) -> None:
    with pytest.raises(ValueError, match="'hidden'; did you mean 'hidden_size'"):
        PretrainingSettings.from_mapping({"hidden": 64})
    with pytest.raises(ValueError, match="multiple of heads"):
        PretrainingSettings(hidden_size=10, heads=4)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        PretrainingSettings(steps=0)
    with pytest.raises(ValueError, match="no documents"):
        pretrain_masked_lm([], tokenizer, TINY, seed=0)
