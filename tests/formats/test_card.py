"""Model cards say what was pruned, and belong to the model that was saved."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import (
    BertForSequenceClassification,
    LlamaForCausalLM,
    T5ForConditionalGeneration,
    YosoConfig,
    YosoModel,
)

import finegates as fg
from support import tiny

CLASSES: dict[str, Any] = {
    "bert": BertForSequenceClassification,
    "llama": LlamaForCausalLM,
    "t5": T5ForConditionalGeneration,
}


YOSO: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 32,
    "use_expectation": True,
}


def compact(name: str = "bert", seed: int = 0) -> tuple[Any, Any]:
    """A dense model and a compact one of the same class."""
    torch.manual_seed(0)
    dense, model = (CLASSES[name](tiny.ARCHITECTURES[name]()).eval() for _ in range(2))
    fg.attach(model, fg.GateConfig())
    tiny.scatter_gates(model, seed=seed)
    return dense, fg.compact(model)


def header(card: str) -> dict[str, Any]:
    """The YAML header of a card."""
    values: dict[str, Any] = ModelCard(card).data.to_dict()
    return values


def rows(card: str) -> dict[str, list[str]]:
    """Cells of all tables of a card by their first cell."""
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("|")]
    return {first: rest for first, *rest in lines}


@pytest.mark.parametrize("name", CLASSES)
def test_a_card_has_the_sizes_of_the_model(name: str) -> None:
    dense, small = compact(name)
    found = rows(fg.model_card(small))
    counts = [sum(each.numel() for each in m.parameters()) for m in (dense, small)]
    assert found["parameters"] == [
        *(f"{count:,}" for count in counts),
        f"{100 * counts[1] / counts[0]:.1f} %",
    ]
    costs = [fg.macs(m, 1, 128).total for m in (dense, small)]
    assert found["MACs of a sequence of 128 tokens"][:2] == [f"{cost:,}" for cost in costs]
    assert f"pruned to {100 * costs[1] / costs[0]:.1f} % of its MACs" in fg.model_card(small)


def test_a_card_has_the_kept_heads_and_dimensions_of_every_block() -> None:
    dense, small = compact()
    found = rows(fg.model_card(small))
    for index in range(2):
        path = f"bert.encoder.layer.{index}"
        attention = small.get_submodule(f"{path}.attention.self")
        down = [m.get_submodule(f"{path}.output.dense").weight for m in (small, dense)]
        heads = f"{len(attention.finegates_heads.heads)} of {dense.config.num_attention_heads}"
        width = f"{down[0].shape[1]} of {down[1].shape[1]}"
        assert found[path][:2] == [heads, width]


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_card_counts_hidden_dimensions_that_were_removed(name: str) -> None:
    dense, model = (CLASSES[name](tiny.ARCHITECTURES[name]()).eval() for _ in range(2))
    options: dict[str, Any] = {"width": True, "dimensions": "inner", "progress": False}
    fg.prune(model, criterion="random", target=0.4, sequence_length=7, **options)
    small = fg.compact(model)
    found = rows(fg.model_card(small))
    assert found["parameters"][0] == f"{sum(p.numel() for p in dense.parameters()):,}"
    hidden = [m.get_input_embeddings().weight.shape[1] for m in (dense, small)]
    assert hidden[1] < hidden[0]
    assert found["hidden dimensions"][:2] == list(map(str, hidden))


def test_the_card_of_an_unknown_architecture_has_its_layers() -> None:
    dense = YosoModel(YosoConfig(**YOSO)).eval()
    small = copy.deepcopy(dense)
    fg.attach(small, fg.GateConfig(preset="reference", modules=("*dense*",)))
    tiny.scatter_gates(small)
    small = fg.compact(small)
    found = rows(fg.model_card(small))
    path = "encoder.layer.0.intermediate.dense"
    shapes = [m.get_submodule(path).weight.shape for m in (small, dense)]
    assert found[path] == [f"{kept} of {whole}" for kept, whole in zip(*shapes, strict=True)]
    assert " of its parameters\n" in fg.model_card(small)


def test_scores_and_licence_are_those_given() -> None:
    _, small = compact()
    card = fg.model_card(
        small, scores={"accuracy on MRPC": 0.8625}, base_model="who/what", license="mit"
    )
    data = header(card)
    assert (data["base_model"], data["license"]) == ("who/what", "mit")
    assert data["library_name"] == "finegates"
    assert rows(card)["accuracy on MRPC"] == ["0.8625"]
    assert "## Scores" not in fg.model_card(small)


def test_name_and_licence_come_from_the_card_of_the_dense_model(tmp_path: Path) -> None:
    dense, _ = compact()
    dense.save_pretrained(tmp_path / "base")
    text = "---\nlicense: apache-2.0\nbase_model: who/what\n---\n\nText.\n"
    (tmp_path / "base" / "README.md").write_text(text)
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    fg.attach(model, fg.GateConfig())
    tiny.scatter_gates(model)
    card = fg.model_card(fg.compact(model.eval()))
    data = header(card)
    assert (data["base_model"], data["license"]) == ("who/what", "apache-2.0")
    assert str(tmp_path) not in card, "a folder of the author's machine is not published"


def test_name_and_licence_survive_saving_and_loading_and_scores_do_not(tmp_path: Path) -> None:
    _, small = compact()
    card = fg.model_card(small, scores={"F1": 0.5}, base_model="who/what", license="mit")
    fg.save(small, tmp_path / "small", card=card)
    again = fg.load(tmp_path / "small")
    fg.save(again, tmp_path / "small")
    found = (tmp_path / "small" / "README.md").read_text()
    assert (header(found)["base_model"], header(found)["license"]) == ("who/what", "mit")
    assert "F1" not in rows(found)


def test_names_of_scores_cannot_break_the_table() -> None:
    _, small = compact()
    card = fg.model_card(small, scores={"a|b\nc": np.float32(0.5)})
    assert "| a\\|b c | 0.5 |" in card.splitlines()


def test_a_header_that_is_not_yaml_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, small = compact()
    small.config._name_or_path = str(tmp_path)
    for text in ("---\n: [bad\n---\n\nText.", "Text without a header."):
        (tmp_path / "README.md").write_text(text)
        fg.save(small, tmp_path / "small")
        data = header((tmp_path / "small" / "README.md").read_text())
        assert not {"base_model", "license"} & data.keys()
    assert not caplog.records


def test_what_is_not_known_is_said_and_not_guessed() -> None:
    _, small = compact()
    data = header(fg.model_card(small))
    assert not {"base_model", "license"} & data.keys()
    assert "look it up before you publish" in fg.model_card(small)


def test_save_writes_a_card_for_each_model_and_leaves_edited_ones_alone(tmp_path: Path) -> None:
    _, small = compact()
    _, other = compact(seed=1)
    file = tmp_path / "small" / "README.md"
    fg.save(small, file.parent, card=fg.model_card(small, scores={"F1": 0.5}))
    assert rows(file.read_text())["F1"] == ["0.5"]
    fg.save(other, file.parent)
    assert file.read_text() == fg.model_card(other)
    fg.save(other, file.parent, card="")
    assert not file.exists()
    file.write_text("written by hand")
    fg.save(small, file.parent)
    assert file.read_text() == "written by hand"


@pytest.mark.parametrize("name", CLASSES)
def test_the_code_of_a_card_loads_the_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, small = compact(name)
    monkeypatch.chdir(tmp_path)
    fg.save(small, "compact")
    fg.uniform(small).save_pretrained("stock")  # type: ignore[operator]
    for folder, kind in (("compact", small), ("stock", fg.uniform(small))):
        card = (tmp_path / folder / "README.md").read_text()
        (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        names: dict[str, Any] = {}
        exec(code.replace("folder of this card", folder), names)
        mine, theirs = names["model"].state_dict(), kind.state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_the_card_of_a_stock_model_is_written_when_it_is_saved(tmp_path: Path) -> None:
    _, small = compact()
    stock: Any = fg.uniform(small, card=fg.model_card(small, scores={"F1": 0.5}, license="mit"))
    stock.save_pretrained(tmp_path / "stock")
    card = (tmp_path / "stock" / "README.md").read_text()
    data = header(card)
    assert (data["library_name"], data["license"]) == ("transformers", "mit")
    assert rows(card)["F1"] == ["0.5"]
    (tmp_path / "stock" / "README.md").write_text("written by hand")
    stock.save_pretrained(tmp_path / "stock")
    assert (tmp_path / "stock" / "README.md").read_text() == "written by hand"
    fg.uniform(small, card="").save_pretrained(tmp_path / "bare")  # type: ignore[operator]
    assert not (tmp_path / "bare" / "README.md").exists()


def test_gated_models_and_scores_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    _, small = compact()
    for score in ("0.5", True, float("nan")):
        with pytest.raises(ValueError, match=f"score 'F1' is {score!r}"):
            fg.model_card(small, scores={"F1": score})  # type: ignore[dict-item]
    gated = fg.attach(CLASSES["bert"](tiny.ARCHITECTURES["bert"]()), fg.GateConfig())
    with pytest.raises(ValueError, match="compact it first"):
        fg.model_card(gated)
    with pytest.raises(ValueError, match="gets no card"):
        fg.save(gated, tmp_path / "gated", card="text")
    assert not (tmp_path / "gated").exists()
