"""Figures show the content of their CSV, and the same CSV gives the same bytes."""

import pytest
from scipy import stats

from finegates.suite.figures import (
    draw_gate_histograms,
    draw_tradeoff,
    gate_histogram_frame,
    save_figure,
    tradeoff_frame,
)
from finegates.suite.figures.style import LEAST_SPAN, grid, span_scores
from support.records import make_record, make_study

METHODS, TASKS = ("full", "gates"), ("cola", "rte")


def test_the_tradeoff_has_points_for_pruned_runs_and_lines_for_dense_ones():
    frame = tradeoff_frame(make_study(), METHODS, TASKS, {"Bag of words": {"cola": 40.0}})
    kinds = frame.drop_duplicates("method").set_index("method")["kind"].to_dict()
    assert kinds["full"] == "dense"
    assert kinds["gates"] == "pruned"
    assert set(frame["panel"]) == {"cola", "rte", "average"}
    assert frame[frame["kind"] == "pruned"]["realised_sparsity"].tolist() == [0.25] * 3


def test_the_tradeoff_can_be_against_the_macs_that_went():
    records = make_study()
    frame = tradeoff_frame(records, METHODS, TASKS)
    macs = next(r for r in records if r.method == "gates").budget.macs
    removed = frame[frame["kind"] == "pruned"]["macs_removed"]
    assert removed.tolist() == pytest.approx([1 - macs.kept / macs.dense] * 3, abs=1e-4)
    axis = draw_tradeoff(frame, against="macs_removed").axes[0]
    assert axis.collections[-1].get_offsets()[0, 0] == pytest.approx(100 * removed.iloc[0])


def test_an_incomplete_seed_has_no_average_point():
    records = [r for r in make_study() if (r.method, r.task) != ("gates", "rte")]
    frame = tradeoff_frame(records, METHODS, TASKS)
    assert frame[(frame["panel"] == "average") & (frame["method"] == "gates")].empty


def test_histogram_fractions_of_an_epoch_sum_to_one():
    frame = gate_histogram_frame(make_study(seeds=(0, 1)), "gates", METHODS, TASKS)
    sums = frame.groupby(["task", "epoch"])["fraction"].sum()
    assert sums.tolist() == pytest.approx([1.0] * len(sums), abs=1e-4)
    assert set(frame["seeds"]) == {2}


def test_a_method_without_gates_has_no_histogram():
    with pytest.raises(ValueError, match="gates"):
        gate_histogram_frame(make_study(), "full", METHODS, TASKS)


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_the_same_frame_gives_the_same_bytes(tmp_path, suffix):
    records = make_study(seeds=(0, 1))
    for draw, frame in (
        (draw_tradeoff, tradeoff_frame(records, METHODS, TASKS)),
        (draw_gate_histograms, gate_histogram_frame(records, "gates", METHODS, TASKS)),
    ):
        paths = [tmp_path / f"{draw.__name__}{n}{suffix}" for n in (1, 2)]
        for path in paths:
            save_figure(draw(frame, "where it comes from"), path)
        assert paths[0].read_bytes() == paths[1].read_bytes()
        assert paths[0].stat().st_size > 1000


def test_another_format_is_refused(tmp_path):
    frame = tradeoff_frame(make_study(), METHODS, TASKS)
    with pytest.raises(ValueError, match="gif"):
        save_figure(draw_tradeoff(frame), tmp_path / "x.gif")


@pytest.mark.parametrize("tasks", [["cola"], ["cola", "rte"], ["cola", "rte", "sst2", "stsb"]])
def test_panels_legend_and_footer_stand_apart_and_on_the_page(tasks):
    methods = [f"method-{number}" for number in range(9)]
    records = [
        make_record(task=task, method=method, title=f"{method} with a long title of two lines")
        for task in tasks
        for method in methods
    ]
    figure = draw_tradeoff(tradeoff_frame(records, methods, tasks), "A footer. " * 60)
    figure.draw_without_rendering()
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    boxes += [text.get_window_extent() for text in figure.texts]
    assert len(boxes) == len(tasks) + (len(tasks) > 1) + 2
    page = figure.bbox
    for place, box in enumerate(boxes):
        assert page.x0 <= box.x0 <= box.x1 <= page.x1
        assert page.y0 <= box.y0 <= box.y1 <= page.y1
        assert not any(box.overlaps(other) for other in boxes[place + 1 :])


def spans(figure) -> list[float]:
    return [high - low for low, high in (ax.get_ylim() for ax in figure.axes)]


def test_an_axis_of_scores_is_not_stretched_over_what_chance_does():
    """Two methods of one seed that differ by a tenth of a point look alike."""
    records = [
        make_record(method=method, task=task, target=target, scores=(score,))
        for task in TASKS
        for method, target, score in (("full", None, 80.0), ("gates", 0.4, 80.1))
    ]
    assert min(spans(draw_tradeoff(tradeoff_frame(records, METHODS, TASKS)))) >= LEAST_SPAN


def test_an_axis_of_scores_spans_the_widest_interval_of_its_means():
    records = [
        make_record(method=method, task=task, target=target, scores=(score,), seed=seed)
        for task in TASKS
        for method, target, scores in (("full", None, (80, 80)), ("gates", 0.4, (78, 82)))
        for seed, score in enumerate(scores)
    ]
    widest = 2 * stats.t.ppf(0.975, 1) * 2.0  # two values at distance 2 from their mean
    found = spans(draw_tradeoff(tradeoff_frame(records, METHODS, TASKS)))
    assert found == pytest.approx([widest] * 3, rel=1e-6)


def test_an_axis_that_is_wide_enough_stays_as_it_is():
    _, (ax,) = grid(1, 1, "")
    ax.set_ylim(70, 90)
    span_scores(ax, "y", 10.0)
    assert ax.get_ylim() == (70, 90)
    span_scores(ax, "y", 30.0)
    assert ax.get_ylim() == (65, 95)
