"""Runs every Python block of README and docs on tiny models and compares the output."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

import finegates as fg
from finegates.budget import macs, planned_macs
from finegates.compaction import CompactLinear
from support.pages import FENCE, PageError, examples, run
from support.paths import ROOT
from support.tiny import scatter_gates, tiny_model

PAGES = [ROOT / "README.md", ROOT / "theory" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_CODE = [page for page in PAGES if examples(page.read_text())]

SENTENCE = "a charming film dull from beginning to end once upon time good bad plot [unk]"
WORDS = SENTENCE.split(" ")
# The padding token has the id that the architecture's configuration names.
SPECIAL = {"roberta": ["[CLS]", "[PAD]", "[SEP]"], "other": ["[PAD]", "[CLS]", "[SEP]"]}
# Wide enough that one dimension is much less than one percentage point of the budget.
SIZES = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4, "vocab_size": 24}
CHECKPOINTS = {
    "FacebookAI/roberta-base": ("roberta", "classifier"),
    "sentence-transformers/all-MiniLM-L6-v2": ("bert", "classifier"),
    "meta-llama/Llama-3.2-1B": ("llama", "language"),
}
"""Model names in pages: folders of the working directory that ``from_pretrained`` finds, with a
tiny model and a tokenizer.
"""


def tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """A whole-word tokenizer with an encoder's special tokens around a sentence."""
    special = SPECIAL.get(architecture, SPECIAL["other"])
    vocabulary = {word: place for place, word in enumerate(special + WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if architecture != "llama":
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")],
        )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[unk]", model_input_names=inputs, **names
    )


def sentences(count: int) -> dict[str, list[Any]]:
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(WORDS), (count, 5), generator=generator).tolist()
    return {
        "sentence": [" ".join(WORDS[place] for place in row) for row in picks],
        "label": [row[0] % 2 for row in picks],
        "idx": list(range(count)),
    }


def load_dataset(name: str, part: str, split: str | None = None) -> Any:
    """Replaces ``datasets.load_dataset``: a few rows with the real data's columns."""
    from datasets import Dataset, DatasetDict

    if "wikitext" in name:
        return Dataset.from_dict({"text": [" ".join(WORDS)] * 300})
    assert (name, part) == ("nyu-mll/glue", "sst2")
    found = DatasetDict(
        {"train": Dataset.from_dict(sentences(128)), "validation": Dataset.from_dict(sentences(16))}
    )
    return found[split.partition("[")[0]] if split else found


def save_small() -> None:
    """Saves a compact encoder with its tokenizer in ``small/``."""
    model = tiny_model("roberta", dtype=torch.float32, max_position_embeddings=40, **SIZES)
    fg.attach(model, fg.GateConfig(preset="structured", target=0.3))
    scatter_gates(model)
    fg.save(fg.compact(model), "small/")
    tokenizer("roberta").save_pretrained("small/")


def link_results() -> None:
    """Links the results, because the page's paths start at the repository."""
    os.symlink(ROOT / "results", "results")


PREPARED: dict[str, Callable[[], None]] = {
    "command-line.md": save_small,
    "onnx-and-int8.md": save_small,
    "stock-model.md": save_small,
    "read-the-claims.md": link_results,
}
"""Preparation that a page assumes, by page."""


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the checkpoints and tables that pages name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for name, (architecture, variant) in CHECKPOINTS.items():
        sizes = SIZES | ({} if architecture == "llama" else {"max_position_embeddings": 40})
        model = tiny_model(architecture, variant, dtype=torch.float32, **sizes)
        model.save_pretrained(name)
        tokenizer(architecture).save_pretrained(name)
    return tmp_path


def ran(page: Path) -> dict[str, Any]:
    PREPARED.get(page.name, lambda: None)()
    text = page.read_text()
    if importlib.util.find_spec("torchao") is None:  # runs with it in test_torchao.py
        text = FENCE.sub(lambda found: "" if "torchao" in found[2] else found[0], text)
    return run(text, measured=page.name == "README.md")


def test_the_pages_of_tasks_have_code():
    assert {page.stem for page in WITH_CODE} >= {
        "README", "fine-tune-and-prune", "prune-a-llama", "lora", "onnx-and-int8", "stock-model",
        "add-an-architecture", "read-the-claims",
    }  # fmt: skip


@pytest.mark.sampled(5)
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs_and_prints_what_the_page_shows(page, reader):
    if page.name == "onnx-and-int8.md":
        pytest.importorskip("onnxscript")
    assert ran(page)


def test_the_readme_makes_a_smaller_model_of_the_asked_cost_that_reloads(reader):
    given = ran(ROOT / "README.md")
    small, gated = given["small"], given["model"].eval()
    dense = AutoModelForSequenceClassification.from_pretrained(given["name"])
    assert any(isinstance(module, CompactLinear) for module in small.modules())
    # Sides that would not pay stay dense in such a small model, so it may cost more.
    assert macs(small, 1, 128).total / macs(dense, 1, 128).total >= 0.58
    kept = planned_macs(gated, 1, 128).total / macs(dense, 1, 128).total
    assert kept == pytest.approx(0.6, abs=0.02)
    ids = torch.randint(3, 15, (32, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = gated(input_ids=ids).logits, small(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(expected, dense.eval()(input_ids=ids).logits, atol=1e-2)


def test_the_guide_of_the_readme_takes_ten_lines_besides_its_imports_and_data():
    guide = next(e.code for e in examples((ROOT / "README.md").read_text()) if "attach" in e.code)
    lines = [line for line in guide.splitlines() if line and "import" not in line]
    assert len(lines) <= 10


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```python\nimport finegates as fg\nfg.atach(1)\n```\n", "block 1 raises AttributeError"),
        ("```python\nx = 1\n```\nthen\n```python\nprint(y)\n```\n", "block 2 raises NameError"),
        ("```python\nprint(1)\n```\n```text\n2\n```\n", "block 1 does not print '2'"),
        ("```python\nprint(1, 2)\nprint(3)\n```\n```text\n1 2\n```\n", "only that, but also 3"),
    ],
)
def test_a_block_that_fails_or_prints_something_else_is_found(page, message):
    with pytest.raises(PageError, match=message):
        run(page)


def test_blocks_share_names_and_an_output_is_that_of_the_block_above_it():
    page = "```python\nx = 2\n```\n```\nmake a\n```\n```python\nprint(x)\n```\n\n```text\n2\n```\n"
    assert [example.output for example in examples(page)] == [None, "2\n"]
    assert run(page)["printed"] == "2\n"


def test_of_measured_outputs_the_words_count_and_left_out_lines_are_marked():
    page = "```python\nprint('took 3.5 s')\nprint('b')\n```\n```text\ntook 1,234 s\n...\n```\n"
    assert run(page, measured=True)
    with pytest.raises(PageError, match="does not print 'took 1,234 s'"):
        run(page)
    with pytest.raises(PageError, match="does not print"):
        run(page.replace("took 1", "takes 1"), measured=True)
