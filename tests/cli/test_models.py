"""``finegates plan``, ``compact``, ``export`` and ``bench`` on tiny models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import finegates as fg
from finegates.budget import planned_macs
from finegates.cli import bench, main
from finegates.cli.checkpoints import load_model, positions
from finegates.cli.inputs import example_inputs
from finegates.cli.quantities import change, large, milliseconds
from support.cli_models import checkpoint, tokenizer
from support.described import described_model
from support.described_types import CONFIGURATIONS, IMAGES, TOWERS, WAVES
from support.tiny import ARCHITECTURES, scatter_gates, tiny_model

LENGTH = 8
OTHERS = IMAGES | WAVES | TOWERS | {"whisper", "audio-spectrogram-transformer"}
TEXT = sorted(name for name in CONFIGURATIONS if name.partition("/")[0] not in OTHERS)
INPUTS = {"input_ids": torch.tensor([[0, 7, 9, 2], [0, 30, 8, 2]])}


def gated_model() -> Any:
    model = tiny_model("roberta", dtype=torch.float32)
    fg.attach(model, fg.GateConfig(preset="structured"))
    scatter_gates(model)
    return model.eval()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    dense = checkpoint(folder / "dense", "classifier")
    for name, model in (("gated", gated_model()), ("compact", fg.compact(gated_model()))):
        fg.save(model, folder / name)
        tokenizer().save_pretrained(folder / name)
    return {"dense": dense, "gated": folder / "gated", "compact": folder / "compact"}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**INPUTS).logits
    return found


def test_the_plan_of_a_dense_model_says_what_each_block_costs_and_what_could_go(places, capsys):
    assert main(["plan", str(places["dense"]), "--length", "8", "--target", "0.25"]) == 0
    text = capsys.readouterr().out
    dense = AutoModelForSequenceClassification.from_pretrained(places["dense"])
    total = fg.macs(dense, 1, LENGTH).total
    assert f"MACs of a sequence of 8 tokens: {large(total)} in 2 blocks" in text
    rows = re.findall(r"^(\S+layer\.\d)\s+(.+?)  50\.0 %\s+(.+)$", text, re.MULTILINE)
    assert [path for path, _, _ in rows] == [f"roberta.encoder.layer.{n}" for n in (0, 1)]
    for _, macs, closable in rows:
        assert macs == large(total / 2)
        assert closable.startswith("3 heads, 12 query-key, 12 value, 20 feed-forward, ")
    assert f"a target of 0.25 leaves {large(0.75 * total)} MACs" in text


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_a_plan(tmp_path, capsys, architecture):
    model = checkpoint(tmp_path / "model", "classifier", architecture)
    fg.CostModel().save(tmp_path / "cost.json")
    assert main(["plan", str(model), "--length", "8", "--cost", str(tmp_path / "cost.json")]) == 0
    text = capsys.readouterr().out
    assert "us a token" in text
    shares = [float(share) for share in re.findall(r"  (\d+\.\d) %", text)]
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_with_measured_costs_the_plan_of_a_dense_model_says_how_long_a_sequence_takes(
    places, capsys
):
    assert main(["plan", str(places["dense"]), "--length", "8", "--cost", "measured"]) == 0
    text = capsys.readouterr().out
    found = re.search(
        r"^predicted time of a sequence of 8 tokens: (\S+) ms, (\d+)% of it outside of the blocks$",
        text,
        re.MULTILINE,
    )
    assert found is not None
    blocks = [float(time) for time in re.findall(r"50\.0 %  +(\d+\.\d)  ", text)]
    assert len(blocks) == 2
    assert float(found[1]) >= 8e-3 * (sum(blocks) - 0.2)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "qwen3_5_text", "trocr", "albert"])
def test_a_plan_says_what_could_go_of_every_kind_of_part(tmp_path, capsys, name):
    described_model(name, "causal" if name != "albert" else "base").save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--length", "8"]) == 0
    text = capsys.readouterr().out
    assert ("160 expert" in text) == (name == "mixtral")  # 4 experts of 40 dimensions


def test_the_plan_of_a_model_that_cannot_be_measured_has_costs_of_layers_and_says_so(
    tmp_path, capsys
):
    described_model("mixtral", "causal").save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--length", "8", "--cost", "measured"]) == 0
    found = capsys.readouterr()
    assert "us a token" in found.out
    assert "predicted time of a sequence" not in found.out
    assert "costs of single layers, because MixtralForCausalLM has no described" in found.err


def test_the_plan_of_a_gated_model_is_that_of_compaction(places, capsys):
    assert main(["plan", str(places["gated"]), "--length", "8"]) == 0
    text = capsys.readouterr().out
    model = fg.load(places["gated"])
    assert str(fg.plan_compaction(model)) in text
    before, after = fg.macs(model, 1, LENGTH).total, planned_macs(model, 1, LENGTH).total
    assert f"once compact: {change(before, after)}" in text


def test_the_plan_of_a_compact_model_says_what_is_left(places, capsys):
    assert main(["plan", str(places["compact"]), "--length", "8"]) == 0
    text = capsys.readouterr().out
    assert "compact already: " in text
    assert f"8 tokens: {large(fg.macs(fg.load(places['compact']), 1, LENGTH).total)}\n" in text


def test_a_gated_checkpoint_is_compacted_with_its_outputs_and_tokenizer(places, tmp_path, capsys):
    out = tmp_path / "small"
    assert main(["compact", str(places["gated"]), "--out", str(out), "--length", "8"]) == 0
    small = fg.load(out)
    torch.testing.assert_close(logits(small), logits(gated_model()), rtol=1e-5, atol=1e-5)
    assert len(AutoTokenizer.from_pretrained(out)) == 40
    before, after = (fg.macs(model, 1, LENGTH).total for model in (gated_model(), small))
    assert f"8 tokens: {change(before, after)}\n" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]


def test_a_compact_model_is_not_compacted_again(places, tmp_path, capsys):
    assert main(["compact", str(places["compact"]), "--out", str(tmp_path / "small")]) == 1
    assert "has no gates, so there is nothing to remove" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_a_compact_model_is_exported_for_programs_that_do_not_know_it(places, tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    import onnxruntime

    onnx, stock = tmp_path / "small.onnx", tmp_path / "stock"
    words = ["export", str(places["compact"]), "--onnx", str(onnx), "--stock", str(stock)]
    assert main(words) == 0
    expected = logits(fg.load(places["compact"]))
    read = AutoModelForSequenceClassification.from_pretrained(stock)
    torch.testing.assert_close(logits(read), expected, rtol=1e-5, atol=1e-5)
    assert len(AutoTokenizer.from_pretrained(stock)) == 40
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": INPUTS["input_ids"].numpy()}
    feeds["attention_mask"] = np.ones_like(feeds["input_ids"])
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=1e-4, atol=1e-4)
    printed = capsys.readouterr().out
    assert f"wrote {onnx}: its output differs" in printed
    assert f"wrote {stock}: a stock RobertaForSequenceClassification" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx", "stock"]


def test_a_gated_model_is_not_exported_but_sent_to_compact(places, tmp_path, capsys):
    assert main(["export", str(places["gated"]), "--stock", str(tmp_path / "stock")]) == 1
    assert "has gates; remove what they close with finegates compact" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_export_without_its_packages_names_the_extra(places, tmp_path, monkeypatch, capsys):
    import builtins

    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.startswith("onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["export", str(places["compact"]), "--onnx", str(tmp_path / "a.onnx")]) == 1
    assert "finegates[onnx]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("compact", "model", []),
        ("gated", "compact", ["--cost", "measured"]),
        ("dense", "model", []),
        ("compact", "model", ["--dense", "{dense}"]),
    ],
)
def test_a_model_is_timed_against_a_dense_one_and_that_against_itself(
    places, capsys, kind, name, options
):
    words = ["bench", str(places[kind]), "--batch", "2", "--length", "8", "--rounds", "5"]
    assert main([*words, *(option.format(**places) for option in options)]) == 0
    text = capsys.readouterr().out
    rows = re.findall(r"^(\S.*?)  +([\d.]+) ms  .*  ([\d.]+)  +[\d.]+ \.\. [\d.]+$", text, re.M)
    assert [row[0] for row in rows] == ["dense", "dense, again", name]
    assert rows[0][2] == "1.000"
    assert "5 interleaved rounds" in text
    dense = AutoModelForSequenceClassification.from_pretrained(places["dense"])
    left = dense if kind == "dense" else fg.load(places["compact"])
    if kind != "gated":  # if removal would not pay, sides stay dense
        costs = [fg.macs(model, 2, LENGTH).total for model in (dense, left)]
        assert f"MACs of the batch: {change(*costs)}" in text
    assert re.search(r"^(steady|noisy): the dense model differs from itself by ", text, re.M)


@pytest.mark.parametrize(("off", "word"), [(1.0, "steady"), (1.04, "steady"), (1.06, "noisy")])
def test_times_are_called_noisy_where_the_dense_model_is_off_itself(off, word):
    first = np.array([1.0, 2.0, 4.0])
    seconds = {"dense": first, "dense, again": off * first, "model": first / 2}
    assert bench.verdict(seconds).startswith(f"{word}: the dense model differs from itself by ")
    assert bench.verdict({**seconds, "dense, again": first / off}).startswith(word)


def test_ratios_are_taken_round_by_round():
    first = np.array([1.0, 2.0, 4.0])  # drift that affects both equally
    table = bench.table({"dense": first, "dense, again": first, "model": first / 2})
    assert table.splitlines()[-1].split()[-4:] == ["0.500", "0.500", "..", "0.500"]


@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
def test_a_model_is_loaded_as_the_class_that_its_configuration_names(tmp_path, architecture):
    for variant in ("base", "classifier", "language"):
        expected = tiny_model(architecture, variant)
        folder = checkpoint(tmp_path / variant, variant, architecture)
        assert type(load_model(str(folder))) is type(expected)


@pytest.mark.parametrize(
    ("architecture", "expected"), [("bert", 16), ("roberta", 14), ("gpt2", 16), ("llama", None)]
)
def test_the_longest_sequence_is_that_of_the_table_of_positions(architecture, expected):
    assert positions(tiny_model(architecture, "base")) == expected


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", TEXT)
def test_the_longest_sequence_that_a_model_can_read_is_known(name):
    """One token more fails, unless positions have no end."""
    model = described_model(name, dtype=torch.float32)
    longest = positions(model)

    def reads(length: int) -> bool:
        ids = torch.full((1, length), 5)
        ids[:, -1] = 2
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        if name == "trocr":
            inputs["encoder_hidden_states"] = torch.zeros(1, 3, 24)
        try:
            with torch.no_grad():
                model(**inputs)
        except (IndexError, RuntimeError):
            return False
        return True

    assert reads(longest or 100)
    if longest is not None:
        assert not reads(longest + 1)


@pytest.mark.parametrize("command", ["bench", "export"])
@pytest.mark.parametrize(
    ("name", "head", "reads"),
    [
        ("vit", "image", "pixel_values"),
        ("whisper", "speech", "input_features"),
        ("wav2vec2", "base", "input_values"),
    ],
)
def test_a_model_that_reads_no_tokens_is_named_with_what_it_reads(
    tmp_path, capsys, command, name, head, reads
):
    described_model(name, head, dtype=torch.float32).save_pretrained(tmp_path / "model")
    options = ["--onnx", str(tmp_path / "x.onnx")] if command == "export" else ["--length", "8"]
    assert main([command, str(tmp_path / "model"), *options]) == 1
    text = capsys.readouterr().err
    assert f"reads {reads}, not tokens" in text
    assert "finegates.export_onnx(model, path, inputs)" in text


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("variant", ["classifier", "language"])
def test_example_inputs_are_such_that_the_model_takes_them(architecture, variant):
    model: Any = tiny_model(architecture, variant)
    inputs = example_inputs(model, ["input_ids", "attention_mask", "token_type_ids"], 2, 6)
    if architecture not in ("bert", "roberta", "deberta-v2"):
        del inputs["token_type_ids"]
    with torch.no_grad():
        assert len(model(**inputs).logits) == 2


@pytest.mark.parametrize(
    ("number", "text"),
    [(7, "7"), (999.6, "1 k"), (12_345, "12.3 k"), (999_700, "1 M"), (2.5e9, "2.5 G")],
)
def test_numbers_are_told_with_three_digits(number, text):
    assert large(number) == text


def test_changes_and_times_are_told_with_units():
    assert change(2e6, 1e6) == "2 M -> 1 M (50.0 %)"
    assert milliseconds(0.01234) == "12.3 ms"
    assert milliseconds(1.2344) == "1234 ms"
    assert milliseconds(0.99951) == "1000 ms"
