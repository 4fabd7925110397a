"""ONNX graphs of compact models: dynamic shapes, checked by ONNX Runtime before writing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForQuestionAnswering
from transformers.modeling_outputs import BaseModelOutput

from finegates.compaction import CompactLinear, compact
from finegates.formats import onnx as onnx_export
from finegates.formats.onnx import OnnxExportError, export_onnx
from finegates.gates.attachment import attach
from finegates.gates.block_parts import AttentionGates, FeedForwardGates
from finegates.gates.config import GateConfig
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.penalty import sparsity_penalty
from finegates.gates.stochastic import StochasticGate
from support import tiny
from support.described import described_inputs, described_model, described_outputs

onnxruntime = pytest.importorskip("onnxruntime")


def small_model(architecture: str, variant: str, preset: str = "reference") -> nn.Module:
    dense = tiny.tiny_model(architecture, variant, dtype=torch.float32)
    model = attach(dense, GateConfig(preset=preset))
    tiny.scatter_gates(model)
    return compact(model.eval())


@pytest.mark.sampled(1)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("architecture", "variant", "preset"),
    [
        ("bert", "classifier", "reference"),
        ("roberta", "base", "reference"),
        ("deberta-v2", "classifier", "structured"),
        pytest.param("mpnet", "classifier", "structured", marks=pytest.mark.slow),
        ("llama", "language", "structured"),
        ("mistral", "language", "reference"),
        ("qwen2", "classifier", "structured"),
        ("qwen3", "language", "structured"),
        ("gpt2", "language", "reference"),
    ],
)
def test_the_graph_computes_what_the_model_does_for_any_batch_and_length(
    architecture: str, variant: str, preset: str, tmp_path: Path
) -> None:
    small = small_model(architecture, variant, preset)
    path = tmp_path / "new" / "model.onnx"
    assert export_onnx(small, path, tiny.tokens()) < 1e-5
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(path))
    for batch, length in ((3, 5), (1, 9), (2, 14)):
        inputs = tiny.tokens(batch, length)
        (found,) = session.run(None, {name: t.numpy() for name, t in inputs.items()})
        with torch.no_grad():
            expected = tiny.output(small, inputs)
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)


def without_parts(architecture: str, kind: type, *, whole: bool) -> nn.Module:
    """A compact model that lost all its attention or feed-forward parts, or only their insides."""
    dense = tiny.tiny_model(architecture, dtype=torch.float32)
    model = attach(dense, GateConfig(target=0.01, sequence_length=7, parts=True))
    tiny.scatter_gates(model)
    penalty = sparsity_penalty(model)
    assert isinstance(penalty, MacsPenalty)
    for part in penalty.structure:
        assert isinstance(part, AttentionGates | FeedForwardGates)
        assert part.whole is not None
        part.whole.latent.data.fill_(0.9)
        if isinstance(part, kind):
            inside = part.heads if isinstance(part, AttentionGates) else part.hidden
            closed = part.whole if whole else inside
            assert isinstance(closed, StochasticGate)
            closed.latent.data.fill_(-1.0)
    return compact(model.eval())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "kind", [pytest.param(AttentionGates, marks=pytest.mark.slow), FeedForwardGates]
)
@pytest.mark.parametrize(
    "architecture", ["bert", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "llama"))]
)
def test_models_without_parts_are_exported(
    architecture: str, kind: type, whole: bool, tmp_path: Path
) -> None:
    small = without_parts(architecture, kind, whole=whole)
    if kind is FeedForwardGates:
        sizes = [m.kept for m in small.modules() if isinstance(m, CompactLinear)]
        assert any(0 in kept for kept in sizes)
    assert export_onnx(small, tmp_path / "model.onnx", tiny.tokens()) < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    inputs = tiny.tokens(3, 5)
    (found,) = session.run(None, {name: t.numpy() for name, t in inputs.items()})
    with torch.no_grad():
        expected = tiny.output(small, inputs)
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)


FAMILIES = {
    "gemma3_text": "causal",  # norms of queries and keys, windows
    "falcon": "causal",  # one layer for queries, keys and values, by groups
    "glm4": "causal",  # part of a head rotated in neighbours, gate and up in one layer
    "qwen3_moe": "causal",  # experts
    "bart": "seq2seq",
    "t5": "seq2seq",
    "modernbert": "sequence",
    "wav2vec2": "audio",
    "vit": "image",
    "swin": "image",
}


def unpadded(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without padding: torch and ONNX Runtime differ in windows that contain only padding."""
    mask = {"attention_mask": torch.ones_like(inputs["input_ids"])} if "input_ids" in inputs else {}
    return {**inputs, **mask}


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "head"),
    # Heads of encoder-decoders read the token that ends a text, which is the last one.
    [*FAMILIES.items(), ("bart", "sequence"), ("t5", "sequence")],
)
def test_one_type_of_each_family_is_exported(name: str, head: str, tmp_path: Path) -> None:
    dense = described_model(name, head, dtype=torch.float32)
    experts = getattr(dense.config, "_experts_implementation", None)
    model = attach(dense, GateConfig(preset="structured", sequence_length=9))
    tiny.scatter_gates(model)
    small = compact(model.eval())
    inputs = unpadded(described_inputs(name, head, dtype=torch.float32))
    path = tmp_path / "model.onnx"
    scale = float(described_outputs(small, inputs)[0].abs().max())
    export_onnx(small, path, inputs, tolerance=1e-4 * max(1.0, scale))
    assert getattr(small.config, "_experts_implementation", None) == experts
    session = onnxruntime.InferenceSession(str(path))
    other = unpadded(described_inputs(name, head, dtype=torch.float32, seed=1, length=12))
    (found,) = session.run(None, {name: t.numpy() for name, t in other.items()})
    with torch.no_grad():
        expected = small(**other).logits
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4 * max(1.0, scale))


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_the_graph_selects_whole_rows_which_onnx_runtime_copies_at_once(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    small = small_model("roberta", "base")
    export_onnx(small, tmp_path / "model.onnx", tiny.tokens())
    graph = onnx.load(tmp_path / "model.onnx").graph
    weights = {tensor.name for tensor in graph.initializer}
    axes = [
        onnx.helper.get_node_attr_value(node, "axis")
        for node in graph.node
        if node.op_type == "Gather" and node.input[0] not in weights
    ]
    layers = [m for m in small.modules() if isinstance(m, CompactLinear)]
    selections = sum((m.cols is not None) + (m.slots is not None) for m in layers)
    assert axes == [0] * selections
    assert selections > 10
    assert not [node for node in graph.node if node.op_type.startswith("Scatter")]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("architecture", "preset"), [("t5", "reference"), ("t5-gated", "structured")]
)
def test_both_lengths_of_an_encoder_decoder_are_free(
    architecture: str, preset: str, tmp_path: Path
) -> None:
    small = small_model(architecture, "language", preset)

    def inputs(batch: int, length: int, decoded: int) -> dict[str, torch.Tensor]:
        return {
            **tiny.tokens(batch, length),
            "decoder_input_ids": tiny.tokens(batch, decoded)["input_ids"],
        }

    path = tmp_path / "model.onnx"
    assert export_onnx(small, path, inputs(2, 7, 5)) < 1e-4
    session = onnxruntime.InferenceSession(str(path))
    for shape in ((3, 4, 6), (1, 9, 2)):
        given = inputs(*shape)
        (found,) = session.run(None, {name: t.numpy() for name, t in given.items()})
        with torch.no_grad():
            expected = small(**given, use_cache=False).logits
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_graph_that_differs_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(OnnxExportError, match="nothing was written"):
        export_onnx(Words(), tmp_path / "model.onnx", words(), tolerance=-1.0)
    assert not list(tmp_path.iterdir())


def test_a_model_of_other_outputs_is_refused_with_what_it_gives(tmp_path: Path) -> None:
    config = tiny.ARCHITECTURES["bert"]()
    model = AutoModelForQuestionAnswering.from_config(config)
    attach(model, GateConfig(preset="reference"))
    small = compact(model.eval())
    with pytest.raises(OnnxExportError, match="returns start_logits, end_logits; only"):
        export_onnx(small, tmp_path / "model.onnx", tiny.tokens())


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    gated = attach(tiny.tiny_model("bert"), GateConfig(preset="reference"))
    with pytest.raises(ValueError, match="compact it first"):
        export_onnx(gated, tmp_path / "model.onnx", tiny.tokens())
    small = small_model("bert", "classifier")
    with pytest.raises(ValueError, match="'input_ids' must be at least 2 x 2"):
        export_onnx(small, tmp_path / "model.onnx", tiny.tokens(batch=1))
    with pytest.raises(OnnxExportError, match="cannot export this BertFor"):
        export_onnx(small, tmp_path / "model.onnx", {"no_input": torch.zeros(2, 2)})


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_a_gated_model_is_exported_when_it_is_asked_for(tmp_path: Path) -> None:
    model = attach(
        tiny.tiny_model("roberta", "base", dtype=torch.float32), GateConfig(preset="reference")
    )
    tiny.scatter_gates(model)
    assert export_onnx(model, tmp_path / "model.onnx", tiny.tokens(), gated=True) < 1e-5


class Words(nn.Module):
    """A model that exports within a second: an embedding and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(tiny.VOCABULARY, 6)
        self.linear = nn.Linear(6, 5)

    def forward(self, input_ids: torch.Tensor) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.linear(self.words(input_ids)))


def words() -> dict[str, torch.Tensor]:
    return {"input_ids": tiny.tokens()["input_ids"]}


def beginning_with(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(output: np.ndarray) -> np.ndarray:
        output[0, 0, 0] = value
        return output

    return change


@pytest.mark.sampled(2)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (beginning_with(float("nan")), "'output' of ONNX Runtime differs from the model's by nan"),
        (beginning_with(float("inf")), "'output' of ONNX Runtime differs from the model's by inf"),
        (lambda found: found[:, :, :-1], r"'output' of ONNX Runtime has shape \(2, 7, 4\), the"),
        (lambda found: found[:1], r"'output' of ONNX Runtime has shape \(1, 7, 5\), the"),
    ],
)
def test_an_output_that_is_no_number_or_of_another_shape_is_refused(
    change: Callable[[np.ndarray], np.ndarray],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Changed(onnxruntime.InferenceSession):
        def run(self, *args: Any) -> list[np.ndarray]:
            return [change(found) for found in super().run(*args)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Changed)
    with pytest.raises(OnnxExportError, match=f"{reason}.*nothing was written; .* torch"):
        export_onnx(Words(), tmp_path / "model.onnx", words())
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
def test_a_model_whose_own_output_is_no_number_is_refused_as_such(tmp_path: Path) -> None:
    model = Words()
    model.linear.bias.data[0] = float("nan")
    with pytest.raises(OnnxExportError, match="the model's own 'output' is not finite"):
        export_onnx(model, tmp_path / "model.onnx", words())
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
def test_what_onnx_runtime_cannot_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(OnnxExportError, match="ONNX Runtime .*: RuntimeError: no kernel"):
        export_onnx(Words(), tmp_path / "model.onnx", words())
    assert not list(tmp_path.iterdir())


def answer(path: Path) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path))
    return torch.from_numpy(session.run(None, {n: t.numpy() for n, t in words().items()})[0])


@pytest.mark.filterwarnings("ignore")
def test_weights_too_large_for_one_file_lie_beside_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    first, second, third = (Words() for _ in range(3))
    export_onnx(first, path, words())
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    size = sum(p.numel() * p.element_size() for p in first.parameters())

    monkeypatch.setattr(onnx_export, "LARGEST_FILE", size - 1)
    assert export_onnx(second, path, words()) < 1e-6
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "model.onnx.data").stat().st_size >= second.words.weight.nbytes
    assert torch.allclose(answer(path), second(**words()).last_hidden_state, atol=1e-6)
    (tmp_path / "elsewhere").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    path = tmp_path / "elsewhere" / "model.onnx"
    assert torch.allclose(answer(path), second(**words()).last_hidden_state, atol=1e-6)

    monkeypatch.setattr(onnx_export, "LARGEST_FILE", size)
    export_onnx(third, path, words())
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"], "the weights went too"
    assert torch.allclose(answer(path), third(**words()).last_hidden_state, atol=1e-6)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.sampled(1)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("largest", [0, 10**6])
def test_an_earlier_export_that_cannot_be_replaced_stays_whole(
    largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    monkeypatch.setattr(onnx_export, "LARGEST_FILE", largest)
    export_onnx(Words(), path, words())
    before = contents(tmp_path)
    assert len(before) == (2 if largest == 0 else 1)
    monkeypatch.setattr(onnx_export, "LARGEST_FILE", 0)
    move = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target) == path and Path(source).parent.name != "earlier":
            raise OSError("disk full")
        move(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            export_onnx(Words(), path, words())
    assert contents(tmp_path) == before
    with pytest.raises(OnnxExportError):
        export_onnx(Words(), path, words(), tolerance=-1.0)
    assert contents(tmp_path) == before


@pytest.mark.filterwarnings("ignore")
def test_a_folder_in_the_way_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "LARGEST_FILE", 0)
    (tmp_path / "model.onnx").mkdir()
    (tmp_path / "model.onnx" / "thesis.txt").write_text("x")
    with pytest.raises(OSError, match="model.onnx"):
        export_onnx(Words(), tmp_path / "model.onnx", words())
    assert [file.name for file in tmp_path.rglob("*")] == ["model.onnx", "thesis.txt"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda m: m.double(), "words.weight is torch.float64 on cpu"),
        (lambda m: m.linear.bfloat16(), "linear.weight is torch.bfloat16 on cpu"),
        (lambda m: m.register_buffer("shift", torch.zeros(2).half()), "shift is torch.float16 on"),
        (lambda m: m.to("meta"), "words.weight is torch.float32 on meta"),
    ],
)
def test_another_precision_or_device_is_refused_with_its_place(
    change: Callable[[nn.Module], object], found: str, tmp_path: Path
) -> None:
    model = Words()
    change(model)
    with pytest.raises(ValueError, match=rf"{found}.*model\.float\(\)\.cpu\(\)"):
        export_onnx(model, tmp_path / "new" / "model.onnx", words())
    inputs = {"input_ids": words()["input_ids"].to("meta")}
    with pytest.raises(ValueError, match="input 'input_ids' is on meta"):
        export_onnx(Words(), tmp_path / "new" / "model.onnx", inputs)
    assert not list(tmp_path.iterdir())
