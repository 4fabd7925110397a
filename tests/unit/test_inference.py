"""Inference times: who is timed, what the ratios are to, and what the table says of them."""

import numpy as np
import pandas as pd
import pytest

from finegates.budget import macs, planned_macs
from finegates.config import InferenceBenchmark, InferenceCase
from finegates.figures import draw_inference
from finegates.inference import COLUMNS, gated_copy, inference_table, random_model, time_inference
from tier import TINY_SHAPE

MACHINE = {"cpu": "some CPU", "threads": 1}


@pytest.fixture(scope="module")
def frame():
    return time_inference(InferenceBenchmark(**TINY_SHAPE), threads=1)


def test_every_case_is_timed_dense_gated_and_compact(frame):
    assert tuple(frame.columns) == COLUMNS
    assert frame["contender"].tolist() == ["dense", "gated", "compact"] * 3
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
    table = inference_table(frame, 2, MACHINE)
    reach = [row[-1] for row in table.cells]
    assert reach == ["9.00 × dense: reached", "0.00 × limit: missed", "–"]
    assert "some CPU, 1 threads" in table.caption
    assert "random weights" in table.caption


def test_a_table_read_back_from_csv_is_the_same(frame, tmp_path):
    frame.to_csv(tmp_path / "t.csv", index=False)
    again = inference_table(pd.read_csv(tmp_path / "t.csv"), 2, MACHINE)
    assert again.markdown() == inference_table(frame, 2, MACHINE).markdown()


def test_the_figure_holds_a_line_for_each_shape(frame):
    (ax,) = draw_inference(frame, "footer").axes
    labels = [line.get_label() for line in ax.get_lines()]
    assert labels[:2] == ["limit of the arithmetic", "dense"]
    assert len(labels) == 4
