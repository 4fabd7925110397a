"""Inference times: timed models, the reference of each ratio, and the table's wording."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from finegates.budget import macs, planned_macs
from finegates.clock import WARMUP, interleaved
from finegates.compaction import CostModel, compact
from finegates.gates.monitor import realised_sparsity
from finegates.suite.baselines.scattered import to_sparse
from finegates.suite.baselines.two_of_four import zero_fraction
from finegates.suite.config.benchmarks import InferenceBenchmark, InferenceCase
from finegates.suite.figures import draw_inference
from finegates.suite.tables.inference import (
    backend_table,
    inference_table,
    joined_machine,
    machine_notes,
    parts_table,
    scattered_table,
)
from finegates.suite.timing.backends import random_inputs
from finegates.suite.timing.control import with_control
from finegates.suite.timing.inference import (
    COLUMNS,
    gated_copy,
    measure_compaction,
    measure_prices,
    random_model,
    scattered_copy,
    time_inference,
)
from finegates.suite.timing.inference_parts import PARTS, parts_of_time
from support.tier import TINY_SHAPE

BACKENDS = ("onnx", "int8", "torchao")
MACHINE = {"cpu": "some CPU", "threads": 1}


@pytest.fixture(autouse=True)
def _only_torchs_product(monkeypatch):
    """Disables oneDNN, so that the choice of the faster matmul does not affect the tests."""
    monkeypatch.setattr("finegates.suite.timing.inference.calibrate", lambda **options: CostModel())


@pytest.fixture(scope="module")
def frame():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finegates.suite.timing.inference.calibrate", lambda **options: CostModel())
        return time_inference(InferenceBenchmark(**TINY_SHAPE), threads=1)


@pytest.fixture(scope="module")
def fast_frame():
    def calibrated(onednn=True):
        return CostModel(onednn_from=1 if onednn else None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finegates.suite.timing.inference.calibrate", calibrated)
        return time_inference(InferenceBenchmark(**TINY_SHAPE), threads=1)


def test_where_onednn_is_the_faster_dense_and_compact_are_timed_with_it_too(fast_frame):
    rows = list(zip(fast_frame["contender"], fast_frame["backend"], strict=True))
    case = [("dense", "eager"), ("dense", "onednn"), ("gated", "eager")]
    small = [("compact", "eager"), ("compact", "onednn")]
    assert rows == [*case, *small, ("control", "eager")] * 3
    both = fast_frame[fast_frame["contender"] == "compact"].groupby("backend")["reach"]
    assert len(set(map(tuple, (both.get_group(b).dropna() for b in ("eager", "onednn"))))) == 1


def test_the_table_tells_the_products_apart(fast_frame):
    table = inference_table(fast_frame, [2], MACHINE)
    with_onednn = fast_frame[fast_frame["backend"] == "onednn"].set_index("contender")
    dense, compact = (with_onednn.loc[name] for name in ("dense", "compact"))
    # Against the dense model with the same matmuls, not with torch's.
    limits = (dense["median_ms"] * compact["macs_ratio"].to_numpy()).to_numpy()
    alike = compact["median_ms"].to_numpy() / limits
    for i, row in enumerate(table.cells):
        assert row[9] == f"{dense['median_ms'].iloc[i]:.1f}"
        assert row[10] == f"{compact['median_ms'].iloc[i]:.1f}"
        assert row[11] == f"{compact['ratio_to_limit'].iloc[i]:.3f}"
        assert float(row[12]) == pytest.approx(alike[i], abs=5.1e-4)
    assert [row[-1] for row in table.cells] == [
        "1000000.00 × dense: reached, with oneDNN reached",
        "0.00 × limit: missed, with oneDNN missed",
        "–",
    ]
    assert len(backend_table(fast_frame, [2], MACHINE).cells) == 0


def test_every_case_is_timed_dense_gated_and_compact(frame):
    assert tuple(frame.columns) == COLUMNS
    assert frame["contender"].tolist() == ["dense", "gated", "compact", "control"] * 3
    assert (frame["median_ms"] > 0).all()
    dense = frame[frame["contender"] == "dense"]
    assert (dense["ratio_to_dense"] == 1).all()
    assert (dense["ratio_to_limit"] == 1).all()


def test_the_limit_is_the_dense_time_times_the_fraction_of_macs(frame):
    small = frame[frame["contender"] == "compact"]
    assert np.allclose(small["ratio_to_limit"], small["ratio_to_dense"] / small["macs_ratio"])
    assert small["macs_ratio"].iloc[0] == 1.0, "nothing is closed"
    assert (small["macs_ratio"].iloc[1:] < 1).all()


@pytest.mark.parametrize("kept", [0.3, 0.6])
def test_structured_cases_keep_the_asked_macs(kept):
    sizes = {**TINY_SHAPE["sizes"], "hidden_size": 96, "intermediate_size": 384}
    dense = random_model(InferenceBenchmark(**{**TINY_SHAPE, "sizes": sizes}))
    case = InferenceCase(gates="structured", kept=kept, batch=1, length=128)
    model = gated_copy(dense, case)
    assert planned_macs(model, 1, 128).total / macs(dense, 1, 128).total == pytest.approx(
        kept, abs=0.02
    )


def test_the_table_says_what_was_reached_and_what_was_missed(frame):
    table = inference_table(frame, [2], MACHINE)
    reach = [row[-1] for row in table.cells]
    assert reach == ["1000000.00 × dense: reached", "0.00 × limit: missed", "–"]
    assert "some CPU, 1 threads" in table.caption
    assert "random weights" in table.caption


def test_the_parts_of_a_run_are_told_apart_by_operator():
    x, weight = torch.randn(200, 300), torch.randn(300, 400)
    many_x, many_weights, index = x[None], weight[None], torch.arange(250)
    runs = {
        "products_ms": lambda: torch.mm(x, weight),
        "attention_ms": lambda: torch.bmm(many_x, many_weights),
        "moving_ms": lambda: x.index_select(1, index),
        "rest_ms": lambda: torch.erf(x),
    }
    assert tuple(runs) == PARTS
    for part, run in runs.items():
        spent = parts_of_time(run, 3)
        # Every run has a remainder, such as the allocation of its output.
        assert {name for name in spent if spent[name] > 0} - {"rest_ms"} == {part} - {"rest_ms"}
        assert spent[part] > 0


def test_dense_and_compact_models_run_eagerly_have_parts(fast_frame):
    eager = fast_frame[fast_frame["contender"].isin(["dense", "compact"])]
    assert (eager["products_ms"] > 0).all()
    assert eager[list(PARTS)].notna().all(axis=None)
    assert fast_frame.loc[fast_frame["contender"] == "gated", list(PARTS)].isna().all(axis=None)
    table = parts_table(fast_frame, [2], MACHINE)
    assert [row[3] for row in table.cells] == ["torch", "oneDNN"] * 3
    first = fast_frame.set_index(["contender", "backend"]).loc[("compact", "onednn")].iloc[0]
    assert table.cells[1][6] == f"{first['products_ms']:.1f}"
    dense = fast_frame.set_index(["contender", "backend"]).loc[("dense", "onednn")].iloc[0]
    computed = [r["products_ms"] + r["attention_ms"] for r in (first, dense)]
    expected = computed[0] / computed[1] / first["macs_ratio"]
    assert float(table.cells[1][-1]) == pytest.approx(expected, abs=5.1e-4)


def test_a_table_read_back_from_csv_is_the_same(frame, tmp_path):
    frame.to_csv(tmp_path / "t.csv", index=False)
    again = inference_table(pd.read_csv(tmp_path / "t.csv"), [2, 5], MACHINE)
    assert again.markdown() == inference_table(frame, [2, 5], MACHINE).markdown()
    assert "medians of 2 to 5 interleaved rounds" in again.caption


def test_the_figure_holds_a_line_for_each_shape(frame):
    (ax,) = draw_inference(frame, "footer").axes
    labels = [line.get_label() for line in ax.get_lines()]
    assert labels[:2] == ["limit of the arithmetic", "dense"]
    assert len(labels) == 4


def test_decoding_times_one_token_after_a_cached_prompt():
    sizes = {**TINY_SHAPE["sizes"], "num_key_value_heads": 1}
    case = {"gates": "random", "kept": 0.6, "batch": 2, "length": 8, "decode": True}
    shape = {**TINY_SHAPE, "model_type": "llama", "sizes": sizes, "cases": [case]}
    frame = time_inference(InferenceBenchmark(**shape), threads=1)
    assert frame["contender"].tolist() == ["dense", "gated", "compact", "control"]
    assert (frame["median_ms"] > 0).all()
    assert "2 × 8 + 1, cached" in inference_table(frame, [2], MACHINE).markdown()


def test_scattered_zeros_are_as_many_as_the_gates_make_and_sparse_rows_compute_the_same():
    dense = random_model(InferenceBenchmark(**TINY_SHAPE))
    case = InferenceCase(gates="random", kept=0.6, batch=2, length=8)
    gated = gated_copy(dense, case)
    scattered = scattered_copy(dense, gated)
    expected = realised_sparsity(gated)
    assert zero_fraction(scattered) == pytest.approx(expected, abs=0.05)
    inputs = random_inputs(dense, 2, 8)
    with torch.no_grad():
        assert torch.allclose(
            to_sparse(copy.deepcopy(scattered))(**inputs).logits,
            scattered(**inputs).logits,
            atol=1e-5,
        )


def test_scattered_zeros_stand_beside_the_removed_ones():
    case = {"gates": "random", "kept": 0.6, "batch": 2, "length": 8, "scattered": True}
    frame = time_inference(InferenceBenchmark(**{**TINY_SHAPE, "cases": [case]}), threads=1)
    removed = ["dense", "gated", "compact"]
    assert frame["contender"].tolist() == [*removed, "scattered", "sparse", "control"]
    (row,) = scattered_table(frame, [2], MACHINE).cells
    assert len(row) == 7
    assert scattered_table(frame[:3], [2], MACHINE).cells == ()


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_backends_stand_in_a_table_of_their_own():
    for package in ("onnxruntime", "torchao"):
        pytest.importorskip(package)
    case = {"gates": "random", "kept": 0.6, "batch": 2, "length": 8, "backends": [*BACKENDS]}
    frame = time_inference(InferenceBenchmark(**{**TINY_SHAPE, "cases": [case]}), threads=1)
    # Dense, gated, compact, and dense again as the control.
    sizes = {"eager": 4, "onnx": 3, "int8": 2, "torchao": 2}
    assert frame.groupby("backend").size().to_dict() == sizes
    table = backend_table(frame, [2], MACHINE)
    assert [row[3] for row in table.cells] == ["dense", "gated", "compact"]
    assert table.cells[1][-1] == "–", "int8 goes on top of dense and compact"
    printed = [cell for row in table.cells for cell in row[4:] if cell != "–"]
    assert len(printed) == 10
    assert all(float(cell) > 0 for cell in printed)
    assert len(inference_table(frame, [2], MACHINE).cells) == 1


def test_a_backend_that_cannot_run_is_a_blank(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("no compiler")

    monkeypatch.setattr("torch.compile", broken)
    case = {"gates": "random", "kept": 0.6, "batch": 2, "length": 8, "backends": ["compile"]}
    benchmark = InferenceBenchmark(**{**TINY_SHAPE, "cases": [case]})
    with pytest.warns(UserWarning, match="compile is left out: RuntimeError: no compiler"):
        frame = time_inference(benchmark, threads=1)
    assert [row[-1] for row in backend_table(frame, [2], MACHINE).cells] == ["–", "–", "–"]


def test_gated_models_hold_the_dense_ones_weights_once():
    dense = random_model(InferenceBenchmark(**TINY_SHAPE))
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    for gates in ("random", "structured"):
        gated = gated_copy(dense, InferenceCase(gates=gates, kept=0.5, batch=1, length=8))
        held = {id(parameter) for parameter in dense.parameters()}
        assert held <= {id(parameter) for parameter in gated.parameters()}
        compact(gated)
    after = dense.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_notes_say_what_compacting_and_calibrating_may_take():
    cost = {"seconds": 0.64, "peak_memory": 1.31}
    machine = {**MACHINE, "compaction": {"RoBERTa": cost}, "calibration": {"seconds": 11.0}}
    note, calibrated = machine_notes(machine)
    assert note == (
        "Compacting RoBERTa in place took 0.6 s (at most 10 s: reached) and at its peak 1.31 times "
        "the gated model's memory (at most 1.2: missed).\n"
    )
    assert calibrated == "Calibrating took 11.0 s (at most 10 s: missed).\n"


def test_shapes_that_were_measured_elsewhere_name_both_machines():
    machines = [
        {"cpu": cpu, "threads": 2, "compaction": {cpu: {}}, "calibration": {"seconds": seconds}}
        for cpu, seconds in (("A", 1.0), ("B", 3.0), ("A", 2.0))
    ]
    assert joined_machine(machines) == {
        "cpu": "A / B",
        "threads": "2",
        "compaction": {"A": {}, "B": {}},
        "calibration": {"seconds": 3.0},
    }


def test_the_names_of_shapes_make_files_and_differ():
    shape = {**TINY_SHAPE, "name": "Llama-3.2-1B, 4 of its 16 layers"}
    assert InferenceBenchmark(**shape).label == "Llama-3.2-1B-4-of-its-16-layers"
    with pytest.raises(ValueError, match="no letter"):
        InferenceBenchmark(**{**TINY_SHAPE, "name": "..."})


def test_prices_that_are_given_are_not_measured_again(monkeypatch):
    calls = []

    def counted(onednn=True):
        calls.append(onednn)
        return CostModel()

    monkeypatch.setattr("finegates.suite.timing.inference.calibrate", counted)
    prices = measure_prices(1)
    assert prices.seconds >= 0
    benchmark = InferenceBenchmark(**{**TINY_SHAPE, "cases": TINY_SHAPE["cases"][:1]})
    time_inference(benchmark, 1, prices)
    assert calls == [True, False]


def test_compaction_is_measured_in_time_and_memory():
    measured = measure_compaction(InferenceBenchmark(**TINY_SHAPE), threads=1)
    assert measured["seconds"] > 0
    assert measured["peak_memory"] >= 1


def test_decoding_has_no_other_backends():
    with pytest.raises(ValueError, match="eagerly only"):
        InferenceCase(gates="random", kept=0.5, batch=1, length=8, decode=True, backends=["onnx"])


@pytest.mark.parametrize(("ratio", "noisy"), [(1.0, False), (1.06, True), (0.94, True)])
def test_a_case_whose_control_is_off_is_noisy(frame, ratio, noisy):
    changed = frame.copy()
    changed.loc[changed["contender"] == "control", "ratio_to_dense"] = ratio
    table = inference_table(changed, [2], {**MACHINE, "load": [0.2, 1.3]})
    titles = [column.header for column in table.columns]
    for row in table.cells:
        cells = dict(zip(titles, row, strict=True))
        assert cells["Dense again, to dense"] == f"{ratio:.3f}{' (noisy)' if noisy else ''}"
        assert cells["To dense"].endswith("(noisy)") is noisy
        assert cells["To limit"].endswith("(noisy)") is noisy
    assert "load average was between 0.2 and 1.3" in table.caption
    assert "timed a second time in each round" in table.caption


def test_times_without_a_control_say_nothing_of_one(frame):
    table = inference_table(frame[frame["contender"] != "control"], [2], MACHINE)
    assert "Dense again, to dense" not in [column.header for column in table.columns]
    assert "second time" not in table.caption
    assert "load" not in table.caption


def test_the_control_is_the_same_model_at_the_end_of_a_round():
    order = []
    runs = with_control({"dense": lambda: order.append("d"), "small": lambda: order.append("s")},
                        "dense")  # fmt: skip
    interleaved(runs, rounds=1)
    assert "".join(order) == "dsd" * (WARMUP + 1)
    with pytest.raises(ValueError, match="'control'"):
        with_control(runs, "dense")
