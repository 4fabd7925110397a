"""Tables and figures of the experiments on Llama: numbers, captions, bytes, refusals."""

from __future__ import annotations

import io

import pandas as pd
import pytest

from finegates.suite.figures import save_figure
from finegates.suite.figures.llama import draw_posttraining, draw_pretraining
from finegates.suite.tables import BLANK, to_csv
from finegates.suite.tables.llama_captions import causal_caption
from finegates.suite.tables.llama_posttraining import posttraining_table
from finegates.suite.tables.llama_pretraining import curve_table, pretraining_table, tokens_to_reach
from finegates.suite.tables.llama_task import llama_task_table
from support.records import make_causal_record, make_record

POSTTRAINING = [
    make_causal_record("dense", loss=1.4),
    *(make_causal_record("reference", t, realised=t / 2, loss=1.4 + t) for t in (0.2, 0.4)),
    make_causal_record("magnitude-as-reference", 0.4, realised=0.2, loss=2.5),
]
DENSE = make_causal_record("dense", experiment="pretraining", losses=(2.0, 1.8, 1.7))
PRETRAINING = [
    DENSE,
    make_causal_record("reference", experiment="pretraining", losses=(2.2, 1.6, 1.5)),
    make_causal_record("slow", experiment="pretraining", losses=(2.2, 2.0, 1.9)),
]


def rows(table) -> list[dict]:
    return list(pd.read_csv(io.StringIO(table.csv())).to_dict("records"))


def test_posttraining_shows_prediction_beside_what_was_removed():
    table = posttraining_table(POSTTRAINING)
    dense, low, high, pruned = rows(table)
    assert (dense["realised_sparsity"], low["target"], high["target"]) == (0.0, 0.2, 0.4)
    assert high["removed_weights"] == 16_000
    assert high["removed_of_all"] == pytest.approx(16 / 120, abs=1e-6)
    assert high["removed_of_gated"] == pytest.approx(0.2)
    assert pruned["perplexity"] > high["perplexity"] > dense["perplexity"]
    assert high["compact_perplexity_difference"] == 1.2e-8
    assert high["compact_same_tokens"] == 1.0
    assert table.cells[0][1] == BLANK
    assert table.cells[2][0] == "tiny Llama, Reference"


def test_captions_say_what_the_text_and_the_models_are():
    caption = posttraining_table(POSTTRAINING).caption
    assert "tiny Llama (120,000 parameters, digest abababababab)" in caption
    assert "train [official-subset: some]" in caption
    assert "30 steps of 4 x 16 tokens" in caption
    assert "One seed (0)." in caption
    first = POSTTRAINING[0]
    data = first.data.model_copy(update={"name": "generated", "source": "generated"})
    model = first.model.model_copy(update={"source": "random weights", "sha256": None})
    hardware = first.hardware.model_copy(update={"cpu": "Other", "threads": 2, "gpu": "H200"})
    made = make_causal_record(data=data, model=model, hardware=hardware, seed=1)
    caption = causal_caption("Lead.", [made, make_causal_record()])
    assert "synthetic: generated sentences, not English" in caption
    assert "trained here from random weights" in caption
    assert "Seeds 0, 1." in caption
    assert "Other, 2 threads, H200" in caption
    hub = data.model_copy(update={"source": "hub", "revision": "c" * 40})
    dense = model.model_copy(update={"source": "dense", "revision": "d" * 40})
    caption = causal_caption("Lead.", [make_causal_record(data=hub, model=dense)])
    assert "revision cccccccccccc" in caption
    assert "pretrained here, revision dddddddddddd" in caption


def test_means_are_over_seeds():
    pair = [make_causal_record(loss=1.0, seed=0), make_causal_record(loss=2.0, seed=1)]
    row = rows(posttraining_table(pair))[0]
    assert row["loss"] == 1.5
    assert row["seeds"] == 2


def test_tokens_to_the_dense_loss_are_those_of_the_first_evaluation_below_it():
    dense, gated, slow = rows(pretraining_table(PRETRAINING))
    assert dense["tokens_to_dense_loss"] == 3 * 640
    assert gated["tokens_to_dense_loss"] == 2 * 640
    assert pd.isna(slow["tokens_to_dense_loss"])
    assert gated["extra_parameters_fraction"] == pytest.approx(400 / 120_000, abs=1e-8)
    assert pretraining_table(PRETRAINING).cells[2][-2] == BLANK


def test_without_a_dense_run_nothing_is_reached():
    assert tokens_to_reach(PRETRAINING[1], None) is None
    silent = DENSE.model_copy(update={"curve": []})
    assert tokens_to_reach(PRETRAINING[1], silent) is None


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "at least one"),
        ([POSTTRAINING[0], make_causal_record(tier="local")], "several tiers"),
        ([POSTTRAINING[0], POSTTRAINING[0]], "two records of"),
        ([DENSE], "in a table of posttraining"),
    ],
)
def test_records_that_do_not_belong_together_are_refused(records, message):
    with pytest.raises(ValueError, match=message):
        posttraining_table(records)


def test_parameters_removed_are_given_by_every_denominator():
    records = [
        make_record(method="full", target=None, task="sst2"),
        make_record(method="gates", task="sst2", realised_sparsity=0.25),
    ]
    full, gates = rows(llama_task_table(records, ["full", "gates"], ["sst2"]))
    assert full["removed_weights"] == 0
    assert gates["removed_weights"] == 20_000
    assert gates["removed_of_gated"] == pytest.approx(0.25)
    assert gates["removed_of_encoder"] == pytest.approx(0.2)
    assert gates["removed_of_all"] == pytest.approx(
        20_000 / records[1].budget.parameters.all, abs=1e-6
    )
    assert 0 < gates["removed_of_all"] < gates["removed_of_encoder"] < gates["removed_of_gated"]


def test_figures_of_the_same_numbers_have_the_same_bytes(tmp_path):
    table = posttraining_table(POSTTRAINING).numbers
    wide = pd.concat([table, table.assign(name="other", perplexity=table["perplexity"] * 9)])
    curves = curve_table(PRETRAINING)
    for name, draw, frame in (
        ("posttraining", draw_posttraining, table),
        ("wide", draw_posttraining, wide),
        ("pretraining", draw_pretraining, curves),
    ):
        files = [tmp_path / f"{name}{turn}.svg" for turn in (1, 2)]
        for file in files:
            save_figure(draw(pd.read_csv(io.StringIO(to_csv(frame))), "A footer."), file)
        first, second = (file.read_bytes() for file in files)
        assert first == second
        assert len(first) > 1000


def test_a_figure_shows_every_method(tmp_path):
    figure = draw_posttraining(posttraining_table(POSTTRAINING).numbers)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["Dense", "Reference", "Magnitude-as-reference"]
    figure = draw_pretraining(curve_table(PRETRAINING))
    loss, closed = figure.axes
    assert len(loss.get_lines()) == 3
    assert len(closed.get_lines()) == 2  # the dense run closes nothing
