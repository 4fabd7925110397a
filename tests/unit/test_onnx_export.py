"""ONNX graphs of compact models: free shapes, checked by ONNX Runtime before they appear."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from finegates.attachment import GateConfig, attach
from finegates.compaction import CompactLinear, compact
from finegates.onnx_export import OnnxExportError, export_onnx

onnxruntime = pytest.importorskip("onnxruntime")


def small_model(architecture: str, variant: str) -> torch.nn.Module:
    model = attach(tiny.tiny_model(architecture, variant, dtype=torch.float32), GateConfig())
    tiny.scatter_gates(model)
    return compact(model.eval())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("architecture", "variant"),
    [("bert", "classifier"), ("roberta", "base"), ("llama", "language"), ("gpt2", "language")],
)
def test_the_graph_computes_what_the_model_does_for_any_batch_and_length(
    architecture: str, variant: str, tmp_path: Path
) -> None:
    small = small_model(architecture, variant)
    path = tmp_path / "new" / "model.onnx"
    assert export_onnx(small, path, tiny.tokens()) < 1e-5
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(path))
    for batch, length in ((3, 5), (1, 9)):
        inputs = tiny.tokens(batch, length)
        (found,) = session.run(None, {name: t.numpy() for name, t in inputs.items()})
        with torch.no_grad():
            expected = tiny.output(small, inputs)
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)


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


@pytest.mark.filterwarnings("ignore")
def test_both_lengths_of_an_encoder_decoder_are_free(tmp_path: Path) -> None:
    small = small_model("t5", "language")

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
    small = small_model("bert", "classifier")
    with pytest.raises(OnnxExportError, match="nothing was written"):
        export_onnx(small, tmp_path / "model.onnx", tiny.tokens(), tolerance=-1.0)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    gated = attach(tiny.tiny_model("bert"), GateConfig())
    with pytest.raises(ValueError, match="compact it first"):
        export_onnx(gated, tmp_path / "model.onnx", tiny.tokens())
    small = small_model("bert", "classifier")
    with pytest.raises(ValueError, match="'input_ids' must be at least 2 x 2"):
        export_onnx(small, tmp_path / "model.onnx", tiny.tokens(batch=1))
    with pytest.raises(OnnxExportError, match="cannot export this BertFor"):
        export_onnx(small, tmp_path / "model.onnx", {"no_input": torch.zeros(2, 2)})
