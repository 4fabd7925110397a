"""oneDNN matmuls: where they replace torch's, and that results are the same."""

import copy
import json

import pytest
import torch
from torch import nn

from finegates.compaction import (
    CompactLinear,
    CostModel,
    calibrate,
    compact,
    use_products,
)
from finegates.formats import chosen_products
from finegates.formats.compact import load, save
from finegates.formats.structure import CompactFormatError
from finegates.gates.attachment import attach_fixed
from finegates.modules import kernels
from finegates.suite.config.benchmarks import InferenceBenchmark
from finegates.suite.timing.backends import random_inputs
from finegates.suite.timing.inference import random_model
from support.saved import edit
from support.tier import TINY_SHAPE

ALWAYS, NEVER = CostModel(onednn_from=1), CostModel()

pytestmark = pytest.mark.skipif(not kernels.has_onednn(), reason="this torch has no oneDNN")


def whole_numbers(*shape: int) -> torch.Tensor:
    return torch.randint(-8, 9, shape).float()


@pytest.fixture
def calls(monkeypatch):
    """Input shapes of every oneDNN matmul."""
    seen = []
    product = kernels.onednn_linear

    def counted(x, weight, bias):
        seen.append(tuple(x.shape))
        return product(x, weight, bias)

    monkeypatch.setattr("finegates.modules.compact_linear.onednn_linear", counted)
    return seen


@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (2, 3, 7), (0, 7)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [1, 6])
def test_the_product_is_bit_for_bit_torchs_on_whole_numbers(shape, bias, outputs, calls):
    layer = CompactLinear(whole_numbers(outputs, 7), whole_numbers(outputs) if bias else None)
    layer.onednn_from = 1
    x = whole_numbers(*shape)
    with torch.no_grad():
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert calls == ([] if x.numel() == 0 else [(x.numel() // 7, 7)])


@pytest.mark.parametrize("view", ["expanded", "transposed", "strided"])
def test_the_product_reads_views_as_what_they_show(view, calls):
    x = {
        "expanded": whole_numbers(1, 7).expand(4, 7),
        "transposed": whole_numbers(7, 4).t(),
        "strided": whole_numbers(4, 14)[:, ::2],
    }[view]
    layer = CompactLinear(whole_numbers(6, 7), whole_numbers(6))
    layer.onednn_from = 1
    with torch.no_grad():
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert len(calls) == 1


def test_gathered_and_scattered_sides_stay_what_they_are(calls):
    rows, cols = torch.tensor([0, 2, 3]), torch.tensor([1, 4])
    layer = CompactLinear(
        whole_numbers(3, 2), whole_numbers(3), in_features=5, out_features=6, cols=cols, rows=rows
    )
    x = whole_numbers(4, 5)
    with torch.no_grad():
        expected = layer(x)
        layer.onednn_from = 1
        assert torch.equal(layer(x), expected)
    assert calls == [(4, 2)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_columns_are_selected_alike_by_every_way(threads, tokens):
    before = torch.get_num_threads()
    x = torch.randn(tokens, 7)
    x[0:1, 2] = float("nan")
    index = torch.tensor([0, 2, 2, 6])
    try:
        torch.set_num_threads(threads)
        with torch.no_grad():
            selected = kernels.select_columns(x, index)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(selected.nan_to_num(-1), x[:, index].nan_to_num(-1))
    assert kernels.select_columns(x.requires_grad_(), index).requires_grad


@pytest.mark.parametrize("outputs", [15, 16, 17, 300])
@pytest.mark.parametrize("tokens", [1, 3, 130])
@pytest.mark.parametrize("scatters", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_inference_computes_what_training_does(outputs, tokens, scatters, bias):
    """Code paths that only inference takes compute the same matmul."""
    layer = CompactLinear(
        torch.randn(outputs, 37),
        torch.randn(outputs) if bias else None,
        in_features=50,
        cols=torch.randperm(50)[:37].sort().values,
        out_features=outputs + 9 * scatters,
        rows=torch.randperm(outputs + 9)[:outputs].sort().values if scatters else None,
    )
    x = torch.randn(2, tokens, 50)
    expected = layer(x)
    with torch.no_grad():
        found = layer(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-5)
    assert torch.equal(found == 0, expected == 0)


def test_a_layer_without_rows_or_columns_still_runs():
    for outputs, inputs in ((0, 3), (3, 0)):
        layer = CompactLinear(torch.zeros(outputs, inputs), torch.ones(outputs))
        layer.onednn_from = 1
        with torch.no_grad():
            assert torch.equal(layer(torch.ones(2, inputs)), torch.ones(2, outputs))


def test_torchs_product_is_taken_for_few_tokens_for_gradients_and_for_other_types(calls):
    layer = CompactLinear(torch.randn(6, 7))
    layer.onednn_from = 4
    x = torch.randn(4, 7)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        layer(x[:3])
        copy.deepcopy(layer).double()(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
        assert calls == []
        layer(x)
    assert calls == [(4, 7)]


def test_a_dense_model_computes_the_same_by_onednn_and_keeps_its_parameters(calls):
    dense = random_model(InferenceBenchmark(**TINY_SHAPE))
    inputs = random_inputs(dense, 2, 8)
    before, names = list(dense.parameters()), dense.state_dict().keys()
    with torch.no_grad():
        expected = dense(**inputs).logits
        assert use_products(dense, ALWAYS) is dense
        assert torch.allclose(dense(**inputs).logits, expected, rtol=0, atol=1e-5)
    assert len(calls) > 0
    assert all(a is b for a, b in zip(before, dense.parameters(), strict=True))
    assert dense.state_dict().keys() == names


def test_tied_and_frozen_parameters_stay_so():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.words.weight
            self.head.weight.requires_grad_(False)

    model = use_products(Tied(), ALWAYS)
    assert isinstance(model.head, CompactLinear)
    assert model.head.weight is model.words.weight
    assert not model.head.weight.requires_grad


def test_a_single_layer_and_a_subclass():
    layer = nn.Linear(3, 2)
    fast = use_products(layer, ALWAYS)
    assert isinstance(fast, CompactLinear)
    assert fast.weight is layer.weight

    class Own(nn.Linear):
        pass

    own = Own(3, 2)
    assert use_products(own, ALWAYS) is own, "what its forward does is its own"


def _gated() -> nn.Module:
    model = random_model(InferenceBenchmark(**TINY_SHAPE))
    path = "roberta.encoder.layer.0.attention.self.query"
    width = model.config.hidden_size
    rows = (torch.arange(width) % 3 > 0).float()
    return attach_fixed(model, {path: (rows, None)})


def test_compaction_takes_the_product_from_the_prices(tmp_path):
    chosen = {
        name: {m.onednn_from for m in compact(_gated(), cost=cost).modules()
               if isinstance(m, CompactLinear)}
        for name, cost in (("none", None), ("never", NEVER), ("always", ALWAYS))
    }  # fmt: skip
    assert chosen == {"none": {None}, "never": {None}, "always": {1}}


@pytest.mark.parametrize("inplace", [False, True])
def test_compacting_again_keeps_the_product_unless_prices_are_given(inplace):
    def chosen(model):
        return {m.onednn_from for m in model.modules() if isinstance(m, CompactLinear)}

    small = compact(_gated(), cost=ALWAYS)
    small = compact(small, inplace=inplace)
    assert chosen(small) == {1}
    assert chosen(compact(small, inplace=inplace, cost=NEVER)) == {None}


def test_a_model_with_gates_is_refused_and_left_alone():
    model = _gated()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"layer\.0\.attention\.self\.query.*has gates.*compact"):
        use_products(model, ALWAYS)
    assert [type(module) for module in model.modules()] == classes
    use_products(compact(model), ALWAYS)


def _chosen(model):
    return {m.onednn_from for m in model.modules() if isinstance(m, CompactLinear)}


def test_a_loaded_model_has_the_products_of_the_one_that_was_saved(tmp_path, recwarn):
    small = compact(_gated(), cost=CostModel(onednn_from=3))
    use_products(small.classifier, ALWAYS)  # each layer may have a different one
    save(small, tmp_path / "out")
    loaded = load(tmp_path / "out")
    layers = dict(small.named_modules())
    for path, layer in loaded.named_modules():
        if isinstance(layer, CompactLinear):
            assert layer.onednn_from == layers[path].onednn_from
    assert _chosen(loaded) == {3, 1}
    inputs = random_inputs(small, 2, 8)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, small(**inputs).logits)
    assert not [w for w in recwarn if "products" in str(w.message)]


@pytest.mark.parametrize("key", ["cpu", "threads", "torch"])
def test_another_machine_takes_torchs_product_and_says_so(key, tmp_path, monkeypatch):
    small = compact(_gated(), cost=ALWAYS)
    save(small, tmp_path / "out")
    here = chosen_products.arithmetic()
    monkeypatch.setattr(chosen_products, "arithmetic", lambda: {**here, key: "another"})
    with pytest.warns(UserWarning, match=r"chosen on another machine.*finegates\.use_products"):
        loaded = load(tmp_path / "out")
    assert _chosen(loaded) == {None}
    inputs = random_inputs(small, 2, 8)
    with torch.no_grad():
        found, expected = (use_products(m, NEVER)(**inputs).logits for m in (loaded, small))
        assert torch.equal(found, expected)


def test_the_choice_can_be_refused_and_taken_back(tmp_path, recwarn):
    small = compact(_gated(), cost=ALWAYS)
    save(small, tmp_path / "out")
    assert _chosen(load(tmp_path / "out", products=False)) == {None}
    assert _chosen(use_products(load(tmp_path / "out"), NEVER)) == {None}
    assert not [w for w in recwarn if "products" in str(w.message)]
    save(use_products(small, NEVER), tmp_path / "plain")
    assert "products" not in json.loads((tmp_path / "plain" / "finegates.json").read_text())


@pytest.mark.parametrize(
    "stored",
    [
        {"onednn_from": {"no.such.layer": 1}},
        {"onednn_from": {"classifier.dense": 1}},
        {"onednn_from": 3},
        *({"onednn_from": {"X": rows}} for rows in (0, -1, True, 1.5, "1", 2**50, None)),
    ],
)
def test_a_choice_that_is_none_is_refused(stored, tmp_path):
    small = compact(_gated(), cost=ALWAYS)
    save(small, tmp_path / "out")
    path = next(p for p, m in small.named_modules() if isinstance(m, CompactLinear))
    chosen = stored["onednn_from"]
    if isinstance(chosen, dict):
        stored = {"onednn_from": {path if k == "X" else k: v for k, v in chosen.items()}}
    edit(tmp_path / "out", lambda s: s["products"].update(stored))
    for take in (True, False):
        with pytest.raises(CompactFormatError, match="products: "):
            load(tmp_path / "out", products=take)


def test_a_choice_that_could_not_be_loaded_is_not_saved(tmp_path):
    small = compact(_gated(), cost=ALWAYS)
    next(m for m in small.modules() if isinstance(m, CompactLinear)).onednn_from = 0
    with pytest.raises(ValueError, match="is 0, not a number of rows"):
        save(small, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_exporters_and_compilers_see_torchs_product(calls, tmp_path):
    layer = CompactLinear(torch.randn(6, 7))
    layer.onednn_from = 1
    with torch.no_grad():
        exported = torch.export.export(layer, (torch.randn(4, 7),))
    assert calls == []
    assert "mkldnn" not in str(exported.graph)


def test_calibration_finds_where_onednn_is_the_faster(monkeypatch):
    """With a fake clock: torch takes 3 for many rows and 1 for few, oneDNN always 2."""
    from finegates.compaction import measured_cost

    def taken(run, repeats):
        out = run()
        rows = out.shape[0] if out.ndim else 0
        by_onednn = taken.onednn
        taken.onednn = False
        return 2e-6 if by_onednn else (3e-6 if rows >= 16 else 1e-6)

    taken.onednn = False

    def marked(x, weight, bias):
        taken.onednn = True
        return kernels.onednn_linear(x, weight, bias)

    monkeypatch.setattr(measured_cost, "_median", taken)
    monkeypatch.setattr(measured_cost, "onednn_linear", marked)
    assert calibrate(width=8, tokens=64).onednn_from == 16
    assert calibrate(width=8, tokens=8).onednn_from is None
    assert calibrate(width=8, tokens=64, onednn=False).onednn_from is None
    assert calibrate(width=8, tokens=64, dtype=torch.bfloat16).onednn_from is None


@torch.no_grad()
@pytest.mark.parametrize("onednn_from", [None, 1])
def test_an_output_of_the_dense_width_lies_in_one_piece(onednn_from):
    """The code around a layer may flatten its output."""
    for cols in (None, torch.arange(5)):
        weight = torch.randn(10, 6 if cols is None else 5)
        layer = CompactLinear(weight, torch.zeros(10), in_features=6, cols=cols)
        layer.onednn_from = onednn_from
        assert layer(torch.randn(4, 3, 6)).is_contiguous()
