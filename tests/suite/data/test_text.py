"""Text: refused inputs, packed sequences, and the positions from which streams resume."""

from __future__ import annotations

import hashlib
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finegates.suite.config.llama import TextSource
from finegates.suite.data.packing import IGNORED, HeldOut, PackedText, document_tokens
from finegates.suite.data.text import (
    Documents,
    StreamedDocuments,
    TextError,
    describe_text,
    held_out_documents,
    read_documents,
    text_file,
    training_documents,
)
from finegates.suite.data.tokenizer import train_tokenizer
from support.tier import WORDS

TOKENIZER = train_tokenizer([" ".join(WORDS)])
TEXTS = ["a b c", "d", "e f g h i j a", "b c", "d e f"]


def take(stream, count):
    return [item["input_ids"].tolist() for item in itertools.islice(iter(stream), count)]


def test_a_text_file_is_split_at_empty_lines_and_keeps_its_lines(tmp_path):
    (tmp_path / "t.txt").write_text("one\ntwo\n\n\n\nthree\r\n\r\nfour\n")
    assert read_documents(tmp_path / "t.txt") == ["one\ntwo", "three", "four"]
    assert read_documents(tmp_path / "t.txt", limit=1) == ["one\ntwo"]


def test_the_test_split_may_count_as_the_validation_split_and_the_record_says_its_digest(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(f"of {split}")
    source = TextSource(name="it", path=str(tmp_path), evaluated="test")
    assert held_out_documents(source, "") == ["of test"]
    assert training_documents(source, "", 0).texts == ["of train"]
    digest = hashlib.sha256(b"of test").hexdigest()
    assert describe_text(source, "")["sha256"]["validation"] == digest
    with pytest.raises(ValueError, match="evaluated: a generated text, or one with held_out"):
        TextSource(name="it", path=str(tmp_path), evaluated="test", held_out=1)


def test_held_out_documents_are_the_last_of_the_training_text_and_not_trained_on(tmp_path):
    (tmp_path / "train.txt").write_text("a\n\nb\n\nc\n\nd\n")
    (tmp_path / "validation.txt").write_text("reported\n")
    source = TextSource(name="tiny", path=str(tmp_path), held_out=2)
    assert training_documents(source, "", 0).texts == ["a", "b"]
    assert held_out_documents(source, "") == ["c", "d"]
    assert held_out_documents(source.model_copy(update={"validation_documents": 1}), "") == ["c"]
    described = describe_text(source, "")
    assert described["status"]["validation"] == "last 2 documents held out of train"
    assert described["sha256"]["validation"] == described["sha256"]["train"]
    with pytest.raises(TextError, match=r"held_out: 4 documents leave none of the 4 .*lower it"):
        training_documents(source.model_copy(update={"held_out": 4}), "", 0)
    with pytest.raises(ValueError, match="held_out cannot be chosen for a streamed text"):
        TextSource(name="t", hub="a/b", revision="0" * 40, validation_documents=1, held_out=1)


@pytest.mark.parametrize("content", ["", "\n\n \n", "\n"])
def test_an_empty_text_is_refused_by_name(tmp_path, content):
    path = tmp_path / "train.txt"
    path.write_text(content)
    with pytest.raises(TextError, match=r"train\.txt is empty; give a file"):
        read_documents(path)


def test_a_text_that_is_not_utf8_is_refused_with_its_line(tmp_path):
    path = tmp_path / "train.txt"
    path.write_bytes(b"fine\nna\xefve\n")
    with pytest.raises(TextError, match=r"not UTF-8: byte 0xef on line 2; convert it"):
        read_documents(path)


def test_parquet_faults_are_named(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"story": ["a"], "n": [1]}), path)
    with pytest.raises(TextError, match=r"no column 'text', only \['story', 'n'\]; set llama"):
        read_documents(path)
    with pytest.raises(TextError, match="column 'n' holds int64, not text"):
        read_documents(path, "n")
    assert read_documents(path, "story") == ["a"]
    path.write_bytes(b"no parquet")
    with pytest.raises(TextError, match="not a readable Parquet file"):
        read_documents(path)
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"text": broken}), path)
    with pytest.raises(TextError, match="not a readable Parquet file: .*UTF8"):
        read_documents(path)


def test_a_missing_text_says_what_to_set(tmp_path):
    with pytest.raises(TextError, match=r"cannot read text .*train.parquet.*set llama\.text\.path"):
        read_documents(text_file(tmp_path, "train"))


def test_documents_come_in_an_order_of_the_seed_and_all_of_them_each_round():
    first = list(itertools.islice(Documents(TEXTS, 1), 10))
    assert first == list(itertools.islice(Documents(TEXTS, 1), 10))
    assert sorted(first[:5]) == sorted(first[5:]) == sorted(TEXTS)
    assert first != list(itertools.islice(Documents(TEXTS, 2), 10))
    with pytest.raises(TextError, match="nothing to train on"):
        Documents([], 0)


def streamed():
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"text": [*TEXTS, " "]}).to_iterable_dataset(num_shards=2)


@pytest.mark.parametrize("source", ["list", "stream"])
@pytest.mark.parametrize("after", [0, 1, 4, 5, 7, 11])
def test_documents_continue_where_they_stood(source, after):
    def make():
        return Documents(TEXTS, 3) if source == "list" else StreamedDocuments(streamed())

    whole = list(itertools.islice(make(), 14))
    first = make()
    begun = list(itertools.islice(first, after))
    position = json.loads(json.dumps(first.position))
    other = make()
    other.seek(position)
    assert begun + list(itertools.islice(other, 14 - after)) == whole


def test_a_stream_without_the_column_or_without_rows_is_refused():
    datasets = pytest.importorskip("datasets")
    with pytest.raises(TextError, match="the stream has no column 'story'"):
        next(iter(StreamedDocuments(streamed(), "story")))
    empty = datasets.Dataset.from_dict({"text": ["", " "]}).to_iterable_dataset()
    with pytest.raises(TextError, match="the stream is empty"):
        next(iter(StreamedDocuments(empty)))


def test_a_hub_text_without_network_says_so(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = TextSource(name="C4", hub="allenai/c4", revision="0" * 40, validation_documents=1)
    with pytest.raises(TextError, match=r"cannot stream text 'C4'.*set llama\.text\.path"):
        training_documents(source, "results", 0)


@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9), min_size=1, max_size=6),
    st.integers(2, 9),
    st.integers(0, 12),
)
def test_packing_loses_nothing_and_continues_anywhere(documents, length, after):
    texts = [" ".join(words) for words in documents]
    whole = take(PackedText(Documents(texts, 5), TOKENIZER, length), 16)
    tokens = itertools.chain.from_iterable(
        document_tokens(TOKENIZER, text) for text in Documents(texts, 5)
    )
    assert list(itertools.chain(*whole)) == list(itertools.islice(tokens, 16 * length))
    stream = PackedText(Documents(texts, 5), TOKENIZER, length)
    take(stream, 14)  # a loader reads ahead of the trained batches
    position = json.loads(json.dumps(stream.position(after)))
    other = PackedText(Documents(texts, 5), TOKENIZER, length)
    other.seek(position)
    assert take(other, 16 - after) == whole[after:]


def test_a_position_that_was_never_reached_is_an_error():
    stream = PackedText(Documents(TEXTS, 0), TOKENIZER, 4)
    take(stream, 2)
    with pytest.raises(ValueError, match="no position after 9 sequences"):
        stream.position(9)


def test_a_tokenizer_without_marks_gets_an_end_between_documents():
    bare = train_tokenizer([" ".join(WORDS)])
    bare._tokenizer.post_processor = None
    ids = document_tokens(bare, "a b")
    assert ids[-1] == bare.eos_token_id
    assert len(ids) == 3
    assert document_tokens(TOKENIZER, "a b")[-1] == TOKENIZER.eos_token_id


@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9), min_size=1, max_size=6),
    st.integers(2, 9),
    st.booleans(),
)
def test_held_out_windows_predict_each_token_once(documents, length, alone):
    texts = [" ".join(words) for words in documents]
    held_out = HeldOut(texts, TOKENIZER, length, alone=alone)
    encoded = [document_tokens(TOKENIZER, text) for text in texts]
    if not alone:
        encoded = [list(itertools.chain(*encoded))]
    predicted = held_out.labels[held_out.labels != IGNORED].tolist()
    assert predicted == [token for ids in encoded for token in ids[1:]]
    assert held_out.tokens == len(predicted)
    assert held_out.characters == sum(map(len, texts))
    # Each label is the token after its input.
    shown = held_out.inputs[held_out.labels != IGNORED].tolist()
    assert shown == [token for ids in encoded for token in ids[:-1]]
    assert len(held_out) == len(held_out.inputs)
    assert torch.equal(held_out[0]["labels"], held_out.labels[0])


def test_held_out_text_of_nothing_is_refused():
    with pytest.raises(TextError, match="fewer than two tokens"):
        HeldOut([], TOKENIZER, 4)


def test_text_is_described_by_digests_and_status(tmp_path):
    for split in ("train", "validation"):
        table = pa.table({"text": ["a b", "c"]}).replace_schema_metadata({"split_status": "part"})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    source = TextSource(name="tiny", path=str(tmp_path), validation_documents=1)
    described = describe_text(source, "results")
    assert described["status"] == {"train": "part", "validation": "part"}
    assert len(described["sha256"]["train"]) == 64
    assert held_out_documents(source, "results") == ["a b"]
    assert next(iter(training_documents(source, "results", 0))) in ("a b", "c")


@pytest.mark.parametrize("word", [b"text", b"a story"])
def test_names_and_texts_of_a_table_that_are_no_utf8_are_refused(tmp_path, word):
    path = tmp_path / "train.parquet"
    table = pa.table({"text": ["a story"]})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    path.write_bytes(path.read_bytes().replace(word, word[:1] + b"\x9c" + word[2:]))
    with pytest.raises(TextError, match="not a readable Parquet file"):
        read_documents(path)
