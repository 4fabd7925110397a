"""Laws of the tokenizer and of pretraining on a corpus small enough for seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, RobertaForSequenceClassification

from finegates.suite.config.tier import Pretraining
from finegates.suite.data.language import CONNECTIVES, SEPARATOR, generate_corpus
from finegates.suite.data.tokenizer import SPECIAL_TOKENS, save_tokenizer, train_tokenizer
from finegates.suite.models.encoder import UNLABELLED, EncodedDocuments, pretrain, set_waves

TINY = Pretraining(
    hidden=16,
    layers=1,
    heads=2,
    feed_forward=32,
    max_length=64,
    documents=1,
    steps=3,
    batch_size=4,
    learning_rate=1e-3,
    threads=1,
)


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
    encoded = tokenizer("Dogs soon .", "who ?")
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == [
        *("<s>", "dogs", "soon", ".", "</s>"),
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
    first = pretrain(corpus[:40], tokenizer, TINY, seed=7, folder=tmp_path, progress=False)
    again = pretrain(corpus[:40], tokenizer, TINY, seed=7, progress=False)
    other = pretrain(corpus[:40], tokenizer, TINY, seed=8, progress=False)
    assert torch.get_num_threads() == threads
    weight = "roberta.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(first.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])
    classifier = RobertaForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert torch.equal(classifier.state_dict()[weight], first.state_dict()[weight])
    assert classifier.config.hidden_dropout_prob == TINY.finetuning_dropout
    longest = tokenizer("dog " * 100, truncation=True, return_tensors="pt")
    assert longest["input_ids"].shape == (1, 64)
    assert classifier(**longest).logits.shape == (1, 3)


def test_every_document_is_a_row_and_its_connective_is_taken_out(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    documents = [
        "dog finds ball .\tso hound finds toy .",
        "cats push drum .",
        "who finds ball ?\tdog finds ball .",
    ]
    encoded = EncodedDocuments(documents, tokenizer, max_length=64)
    rows = [
        tokenizer.decode(row[:length])
        for row, length in zip(encoded.tokens, encoded.lengths, strict=True)
    ]
    assert rows == [
        "<s> dog finds ball . </s> </s> hound finds toy . </s>",
        "<s> cats push drum . </s>",
        "<s> who finds ball ? </s> </s> dog finds ball . </s>",
    ]
    assert (encoded.tokens == tokenizer.pad_token_id).sum() == sum(
        encoded.tokens.shape[1] - encoded.lengths
    )
    so = tokenizer.convert_tokens_to_ids("so")
    assert encoded.connectives.tolist() == [so, UNLABELLED, UNLABELLED]


@pytest.mark.parametrize("shown", [0.0, 0.4, 1.0])
def test_a_batch_asks_for_hidden_words_and_for_the_connective_at_the_start(
    tokenizer: PreTrainedTokenizerFast, corpus: list[str], shown: float
) -> None:
    torch.manual_seed(0)
    encoded = EncodedDocuments(corpus[:1], tokenizer, max_length=64)
    (row,) = encoded.tokens
    settings = TINY.model_copy(update={"batch_size": 2000, "shown": shown})
    for connective in (encoded.connectives[0], tokenizer.convert_tokens_to_ids("so"), UNLABELLED):
        encoded.connectives[0] = connective
        tokens, labels = encoded.batch(settings)
        assert tokens.shape == labels.shape == (2000, len(row))
        assert labels[:, 0].eq(connective).all()
        asked = labels[:, 1:] != UNLABELLED
        assert (labels[:, 1:] == row[1:])[asked].all()
        assert (tokens[:, 1:] == row[1:])[~asked].all()
        assert not asked[:, row[1:] < len(SPECIAL_TOKENS)].any()
        words = asked[:, row[1:] >= len(SPECIAL_TOKENS)].float()
        masked = 1 - shown if connective != UNLABELLED else 1
        assert words.mean().item() == pytest.approx(TINY.mask_probability * masked, abs=0.02)
        if masked:
            hidden = (tokens[:, 1:] == tokenizer.mask_token_id)[asked].float().mean().item()
            assert hidden == pytest.approx(0.8, abs=0.03)
            kept = (tokens[:, 1:] == row[1:])[asked].float().mean().item()
            assert kept == pytest.approx(0.1, abs=0.03)


def test_the_start_learns_to_name_the_connective(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = ["dogs push .\tagain dogs push .", "dogs push .\tbut dogs drag ."]
    settings = TINY.model_copy(update={"steps": 150, "batch_size": 16, "learning_rate": 1e-2})
    model = pretrain(documents, tokenizer, settings, seed=0, progress=False)
    encoded = EncodedDocuments(documents, tokenizer, max_length=64)
    with torch.inference_mode():
        named = model(encoded.tokens).logits[:, 0].argmax(dim=-1)
    assert named.tolist() == encoded.connectives.tolist()


def test_no_sentence_begins_with_a_connective_of_its_own(corpus: list[str]) -> None:
    firsts = {document.split()[0] for document in corpus}
    assert not firsts & set(CONNECTIVES)


@pytest.mark.parametrize("hidden", [8, 7, 1])
def test_initial_positions_resemble_their_neighbours_most(hidden: int) -> None:
    positions = torch.full((30, hidden), torch.nan)
    set_waves(positions)
    assert positions.isfinite().all()
    if hidden > 1:
        distances = torch.cdist(positions, positions).fill_diagonal_(torch.inf)
        assert (distances.argmin(dim=1) - torch.arange(30)).abs().eq(1).all()


def test_an_empty_corpus_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="no documents"):
        pretrain([], tokenizer, TINY, seed=0)
