"""``finegates shrink``: its results, and the inputs that it refuses."""

from __future__ import annotations

import json
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import finegates as fg
from finegates.cli import main
from finegates.cli.fine_tuning import Recipe, with_gates
from finegates.compaction import CompactLinear
from support.cli_models import WIDE, WORDS, checkpoint, reviews, write_csv, write_json_lines
from support.shrink_command import LENGTH, shrink, summary
from support.tiny import scatter_gates, tiny_model


def test_the_result_meets_its_target_and_computes_what_the_gated_model_does(
    tmp_path, monkeypatch, capsys
):
    model = checkpoint(tmp_path / "model", **WIDE)
    train = write_csv(tmp_path / "reviews.csv", reviews(400))
    gated = []
    compact = fg.compact
    monkeypatch.setattr(fg, "compact", lambda m, **k: gated.append(m) or compact(m, **k))
    out = tmp_path / "small"
    assert shrink({"model": model, "train": train}, out, "--target", "0.5", "--epochs", "8") == 0
    small = fg.load(out)
    assert any(isinstance(module, CompactLinear) for module in small.modules())
    tokenizer = AutoTokenizer.from_pretrained(out)
    texts = [row["text"] for row in reviews(16, seed=5)]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected, found = gated[0].eval()(**inputs).logits, small(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert small.config.id2label == {0: "bad", 1: "good"}
    told = summary(out)
    dense = AutoModelForSequenceClassification.from_pretrained(model)
    assert told["macs"]["dense"] == fg.macs(dense, 1, LENGTH).total
    assert told["macs"]["compact"] == fg.macs(small, 1, LENGTH).total
    assert told["macs"]["compact"] / told["macs"]["dense"] == pytest.approx(0.5, abs=0.02)
    assert told["parameters"]["compact"] == sum(p.numel() for p in small.parameters())
    assert told["rows"] == {"train": 360, "evaluated": 40}
    assert told["scores"]["compact"] == told["scores"]["gated"]
    assert told["scores"]["compact"]["accuracy"] >= 0.9, "any word tells the classes apart"
    assert str(tmp_path) not in json.dumps(told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "reviews.csv", "small"]
    printed = capsys.readouterr().out
    assert f"MACs of a sequence of {LENGTH} tokens" in printed
    assert "accuracy on 40 rows" in printed
    assert "time of a batch of 8 x " in printed


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(places, tmp_path, capsys):
    assert shrink(places, tmp_path / "small", "--dry-run", "--lora") == 0
    printed = capsys.readouterr().out
    assert "RobertaForSequenceClassification with a new head" in printed
    assert "72 rows to train on, 8 held out" in printed
    assert "text 'text', label 'label': 2 classes (bad, good)" in printed
    assert "27 in 3 epochs of batches of 8, LoRA of rank 8 inside the gates" in printed
    assert "nothing was done" in printed
    assert list(tmp_path.iterdir()) == []


def test_pairs_and_numbers_make_a_regression_evaluated_on_a_file_of_its_own(places, tmp_path):
    rows = [
        {"left": WORDS[n % 9], "right": WORDS[(n * 7) % 9], "score": (n % 9) / 4} for n in range(40)
    ]
    train = write_json_lines(tmp_path / "train.jsonl", rows)
    held_out = write_json_lines(tmp_path / "eval.jsonl", rows[:9])
    columns = ["--text", "left", "--text-pair", "right", "--label", "score"]
    out = tmp_path / "small"
    options = [*columns, "--eval", str(held_out), "--epochs", "2"]
    assert shrink({**places, "train": train}, out, *options) == 0
    told = summary(out)
    assert told["labels"] is None
    assert told["rows"] == {"train": 40, "evaluated": 9}
    assert set(told["scores"]["compact"]) == {"pearson", "spearman"}
    assert fg.load(out).config.num_labels == 1


def test_a_task_of_glue_has_its_own_columns_labels_split_and_measures(places, tmp_path):
    rows = [
        {"sentence1": WORDS[n % 5], "sentence2": WORDS[n % 3], "label": n % 2, "idx": n}
        for n in range(24)
    ]
    (tmp_path / "mrpc").mkdir()
    for split, part in (("train", rows[:16]), ("validation", rows[16:])):
        pq.write_table(pa.Table.from_pylist(part), tmp_path / "mrpc" / f"{split}.parquet")
    out = tmp_path / "small"
    words = ["--task", "mrpc", "--data", str(tmp_path), "--out", str(out), "--epochs", "1"]
    assert main(["shrink", str(places["model"]), *words, "--max-length", str(LENGTH)]) == 0
    told = summary(out)
    assert told["rows"] == {"train": 16, "evaluated": 8}
    assert told["labels"] == ["not_equivalent", "equivalent"]
    assert set(told["scores"]["compact"]) == {"accuracy", "f1"}
    assert fg.load(out).config.id2label == {0: "not_equivalent", 1: "equivalent"}


def test_the_seed_decides_how_gates_begin():
    def latents(seed: int) -> torch.Tensor:
        recipe = Recipe(0.4, 1, 8, LENGTH, 1e-3, 1e-2, seed, None)
        model = with_gates(tiny_model("roberta", dtype=torch.float32), recipe)
        gates = [m.latent for m in model.modules() if isinstance(m, fg.StochasticGate)]
        return torch.cat([latent.detach() for latent in gates])

    torch.testing.assert_close(latents(0), latents(0), rtol=0, atol=0)
    assert not torch.equal(latents(0), latents(1))


def test_equal_sizes_are_exported_without_padding(places, tmp_path):
    out, stock = tmp_path / "small", tmp_path / "stock"
    assert shrink(places, out, "--uniform", "--target", "0.2", "--epochs", "1") == 0
    small = fg.load(out)
    cost = fg.uniform_cost(small)
    assert cost.uniform == cost.compact < cost.dense
    assert main(["export", str(out), "--stock", str(stock)]) == 0
    again = AutoModelForSequenceClassification.from_pretrained(stock)
    assert fg.macs(again, 1, LENGTH) == fg.macs(small, 1, LENGTH)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "options", [["--parts", "--inner"], ["--width"], ["--shrink-while-training"]]
)
def test_what_can_be_closed_is_chosen(places, tmp_path, options):
    out = tmp_path / "small"
    assert shrink(places, out, *options, "--target", "0.4", "--epochs", "2") == 0
    small = fg.load(out)
    dense = type(small)(small.config)
    kept = fg.macs(small, 1, LENGTH).total / fg.macs(dense, 1, LENGTH).total
    assert kept == pytest.approx(0.6, abs=0.06)
    if "--inner" in options:
        layers = [m for m in small.modules() if isinstance(m, CompactLinear)]
        assert layers
        assert all(layer.cols is None and layer.rows is None for layer in layers)


def test_options_that_exclude_each_other_are_refused_first(places, tmp_path, capsys):
    assert shrink(places, tmp_path / "small", "--width", "--uniform") != 0
    assert "width" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_a_head_that_is_there_is_kept_and_evaluated_before(places, tmp_path, capsys):
    model = checkpoint(tmp_path / "model", "classifier")
    out = tmp_path / "small"
    assert shrink({**places, "model": model}, out, "--epochs", "1") == 0
    assert set(summary(out)["scores"]) == {"dense", "gated", "compact"}
    captured = capsys.readouterr()
    assert "with its own head" in captured.out
    # Nine steps, fewer than between two lines of a trainer's log.
    assert re.search(r"^epoch 1 of 1: loss \d\.\d+, MACs left \d+ %$", captured.err, re.MULTILINE)


def test_the_predictions_of_a_teacher_are_followed(places, tmp_path, monkeypatch):
    teacher = checkpoint(tmp_path / "teacher", "classifier", seed=3)
    seen = []
    distance = fg.Distillation.distance

    def watched(self: Any, logits: Any, goal: Any, *rest: Any, **more: Any) -> Any:
        seen.append(tuple(goal.shape))
        return distance(self, logits, goal, *rest, **more)

    monkeypatch.setattr(fg.Distillation, "distance", watched)
    out = tmp_path / "small"
    assert shrink(places, out, "--distill", str(teacher), "--epochs", "1") == 0
    assert seen == [(8, 2)] * 9
    assert summary(out)["settings"]["distill"] is not None


def test_a_decoder_without_a_token_to_pad_with_is_padded_with_its_last(places, tmp_path):
    model = checkpoint(tmp_path / "model", architecture="gpt2", pad_token_id=None)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(model)
    out = tmp_path / "small"
    assert shrink({**places, "model": model}, out, "--epochs", "1") == 0
    assert fg.load(out).config.pad_token_id == AutoTokenizer.from_pretrained(out).pad_token_id == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "words"], "--text words: no such column; {train} has the columns 'text', 'l"),
        (["--eval", "{tmp}/no.csv"], "{tmp}/no.csv: no such file; check the path"),
        (["--data", "{tmp}"], "--data goes with --task; name the file to evaluate on with --eval"),
        (["--max-length", "99"], "longer than the 14 positions that RobertaForSequenceClass"),
        (["--out", "{tmp}/taken"], "--out {tmp}/taken: exists and is not a result of finegates"),
        (["--out", "{tmp}/file/small"], "{tmp}/file is a file; choose another folder"),
        (["--distill", "{model}"], "--distill {model}: has no trained head of 2 outputs"),
        (["--target-time", "0.5"], "--target-time needs measured costs: --cost measured, or"),
        (["--cost", "{tmp}/none.json"], "--cost {tmp}/none.json: no such file; use 'smallest'"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(places, tmp_path, capsys, options, message):
    write_json_lines(tmp_path / "taken" / "theirs.jsonl", [{"a": 1}])
    (tmp_path / "file").touch()
    named = {**places, "tmp": tmp_path}
    out = tmp_path / "small"
    assert shrink(places, out, *(option.format(**named) for option in options)) == 1
    captured = capsys.readouterr()
    assert message.format(**named) in captured.err
    assert captured.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
@pytest.mark.parametrize(
    ("costs", "options", "message"),
    [
        ({"length": 99}, ["--target-time", "0.7"], "measured at sequences of 99 tokens"),
        ({"dtype": "float64"}, ["--target-time", "0.7"], "was measured on dtype 'float64'"),
        ({"rest": 1.0}, ["--target-time", "0.7"], "target_time 0.7 cannot be reached"),
        ({"rest": 1.0}, ["--target-time", "0.7", "--lora"], "target_time 0.7 cannot be reached"),
        ({}, ["--target", "0.99999"], "target 0.99999 cannot be reached"),
    ],
)
def test_a_budget_out_of_reach_is_refused_and_the_corrected_command_is_not_in_its_way(
    places, tmp_path, capsys, costs, options, message, dry
):
    file, out = tmp_path / "costs.json", tmp_path / "small"
    fg.CostModel(**costs).save(file)
    given = [*options, "--cost", str(file)]
    assert shrink(places, out, *given, *dry) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["costs.json"]


def test_measured_costs_that_no_gates_meet_are_refused_the_same_way(
    places, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(fg, "calibrate", lambda *_, **__: fg.CostModel(rest=1.0))
    for dry in ([], ["--dry-run"]):
        options = ["--target-time", "0.7", "--cost", "measured", *dry]
        assert shrink(places, tmp_path / "small", *options) == 1
        assert "target_time 0.7 cannot be reached" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("stays", "given"), [(None, {"target": 0.3}), (0.7, {"target_time": 0.7})])
def test_settings_of_a_run_hold_the_fraction_that_was_given(stays, given):
    """And not the other one, which is ``1 - 0.7 = 0.30000000000000004``."""
    recipe = Recipe(
        target=0.3 if stays is None else 1 - stays, epochs=1, batch_size=1, max_length=8,
        learning_rate=1.0, gate_learning_rate=1.0, seed=0, lora=None, target_time=stays,
    )  # fmt: skip
    settings = recipe.settings()
    assert {name: settings[name] for name in ("target", "target_time") if name in settings} == given


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "mrpc"], "--task mrpc: name the folder that holds its tables with --data"),
        (["--task", "mrpc", "--data", "{tmp}"], "no train.parquet of task mrpc in {tmp}"),
        (["--task", "mrpc", "--data", "{tmp}", "--label", "x"], "--label goes with --train; --t"),
        (["--task", "mrcp", "--data", "{tmp}"], "--task mrcp: did you mean 'mrpc'?"),
        (["--train", "{tmp}/none.csv"], "{tmp}/none.csv: no such file"),
    ],
)
def test_data_that_are_not_there_are_one_line(places, tmp_path, capsys, words, message):
    given = [word.format(tmp=tmp_path) for word in words]
    assert main(["shrink", str(places["model"]), "--out", str(tmp_path / "o"), *given]) == 1
    assert message.format(tmp=tmp_path) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_several_gpus_are_refused_before_anything_is_read(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert shrink(places, tmp_path / "small") == 1
    assert (
        "2 GPUs are visible, and one is used; set CUDA_VISIBLE_DEVICES" in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_compact_is_refused_with_the_remedy(places, tmp_path, capsys):
    fg.save(fg.compact(closed_model()), tmp_path / "compact")
    assert shrink({**places, "model": tmp_path / "compact"}, tmp_path / "small") == 1
    assert "is a model of finegates already, and shrinking starts from a" in capsys.readouterr().err


def closed_model() -> Any:
    model = tiny_model("roberta", dtype=torch.float32)
    fg.attach(model, fg.GateConfig(preset="structured"))
    scatter_gates(model)
    return model


def test_a_model_without_a_tokenizer_or_with_a_larger_one_is_refused(places, tmp_path, capsys):
    from support.cli_models import tokenizer

    bare = checkpoint(tmp_path / "bare")
    for path in bare.glob("token*"):
        path.unlink()
    capsys.readouterr()
    assert shrink({**places, "model": bare}, tmp_path / "small") == 1
    assert "has no tokenizer; save the model's there" in capsys.readouterr().err
    larger = tokenizer()
    larger.add_tokens(["new"])
    larger.save_pretrained(bare)
    assert shrink({**places, "model": bare}, tmp_path / "small") == 1
    assert "the tokenizer has 41 tokens" in capsys.readouterr().err
    assert not list(tmp_path.glob("small*"))


def test_an_architecture_without_an_adapter_is_refused_by_name(places, tmp_path, capsys):
    from transformers import RemBertConfig, RemBertModel

    from support.cli_models import tokenizer

    sizes = {"vocab_size": 40, "hidden_size": 12, "intermediate_size": 16}
    config = RemBertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    RemBertModel(config).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    assert shrink({**places, "model": tmp_path / "model"}, tmp_path / "small") == 1
    assert "(model type 'rembert') has a description" in capsys.readouterr().err
    assert not list(tmp_path.glob("small*"))
