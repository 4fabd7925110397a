"""Tables: printed values come from the records, missing values stay blank."""

import io
import json
import subprocess
import sys

import pandas as pd
import pytest

from finegates.suite.tables import (
    BLANK,
    detectable_table,
    escape_latex,
    glue_table,
    read_references,
    runs_table,
    sparsity_table,
    to_csv,
    write_table,
)
from support.records import make_record, make_study

METHODS, TASKS = ("full", "gates"), ("cola", "rte")


def row(table, method):
    return table.numbers.set_index("method").loc[method]


def test_cells_are_the_records_scores_and_the_average_their_mean():
    records = make_study()
    table = glue_table(records, METHODS, TASKS)
    scores = {(r.method, r.task): r.last.score for r in records}
    for method in METHODS:
        expected = [scores[method, task] for task in TASKS]
        assert row(table, method)[list(TASKS)].tolist() == pytest.approx(expected)
        assert row(table, method)["average"] == pytest.approx(sum(expected) / 2)


def test_the_order_of_records_does_not_change_a_byte():
    records = make_study(seeds=(0, 1, 2))
    for make in (glue_table, sparsity_table):
        one, other = (make(given, METHODS, TASKS) for given in (records, records[::-1]))
        assert (one.csv(), one.markdown(), one.latex()) == (
            other.csv(),
            other.markdown(),
            other.latex(),
        )


def test_a_caption_says_where_runs_of_several_commits_are_compared():
    records = make_study()
    assert "commits" not in glue_table(records, METHODS, TASKS).caption
    code = records[0].code.model_copy(update={"commit": "0123456789abcdef" * 2 + "01234567"})
    later = [records[0].model_copy(update={"code": code}), *records[1:]]
    known = sorted({record.code.short_commit for record in later})
    caption = glue_table(later, METHODS, TASKS).caption
    assert f"Runs of 2 commits of the code: {', '.join(known)}." in caption


def test_a_missing_run_is_blank_and_so_is_its_average():
    records = [r for r in make_study() if (r.method, r.task) != ("gates", "rte")]
    table = glue_table(records, METHODS, TASKS)
    assert pd.isna(row(table, "gates")["rte"])
    assert pd.isna(row(table, "gates")["average"])
    assert row(table, "full")["average"] > 0
    cells = table.cells[1]
    assert cells[2] == BLANK
    assert cells[3] == f"{BLANK} (1 missing)"


def test_a_method_without_runs_is_a_row_of_blanks():
    records = [r for r in make_study() if r.method == "full"]
    table = glue_table(records, METHODS, TASKS)
    assert table.cells[1][1:3] == (BLANK, BLANK)


def test_the_average_of_seeds_counts_only_seeds_that_have_every_task():
    records = [
        r for r in make_study(seeds=(0, 1)) if (r.method, r.task, r.seed) != ("gates", "rte", 1)
    ]
    found = row(glue_table(records, METHODS, TASKS), "gates")
    expected = [r.last.score for r in records if r.method == "gates" and r.seed == 0]
    assert found["average"] == pytest.approx(sum(expected) / 2)
    assert found["average_seeds"] == 1
    assert found["cola_seeds"] == 2


def test_one_seed_shows_no_interval_and_three_do():
    assert "±" not in glue_table(make_study(), METHODS, TASKS).markdown()
    assert "±" in glue_table(make_study(seeds=(0, 1, 2)), METHODS, TASKS).markdown()


def test_the_best_epoch_is_never_below_the_last_and_is_labelled_as_peeking():
    records = make_study()
    last, best = (glue_table(records, METHODS, TASKS, epoch=e) for e in ("last", "best"))
    for method in METHODS:
        assert row(best, method)["average"] >= row(last, method)["average"]
    assert "peeking" in best.title
    assert "peeking" in best.caption
    assert "peeking" not in last.caption


def test_a_partial_split_is_named_in_the_caption():
    statuses = ("official-subset: a random 10% of train", "official-complete")
    records = [make_record(task="qnli", statuses=statuses), make_record(task="cola")]
    caption = glue_table(records, ("gates",), ("qnli", "cola")).caption
    assert "QNLI" in caption
    assert "10" in caption
    assert "subset" in caption


def test_synthetic_data_is_called_synthetic_wherever_its_table_is_read():
    table = glue_table([make_record(source="generated")], ("gates",), ("cola",))
    assert "synthetic" in table.markdown()
    assert "synthetic" in table.latex()


def test_the_caption_names_tier_model_seeds_and_hardware():
    caption = glue_table(make_study(seeds=(3, 4)), METHODS, TASKS).caption
    for words in ("Tier smoke", "tiny-roberta", "Example CPU", "3", "4"):
        assert words in caption


def test_csv_survives_a_round_trip():
    for frame in (
        glue_table(make_study(), METHODS, TASKS).numbers,
        runs_table(make_study(), METHODS, TASKS),
    ):
        text = to_csv(frame)
        assert to_csv(pd.read_csv(io.StringIO(text), dtype_backend="numpy_nullable")) == text


def test_every_run_is_a_row_without_durations():
    frame = runs_table(make_study(seeds=(0, 1)), METHODS, TASKS)
    assert len(frame) == 8
    assert not [c for c in frame.columns if c.endswith("_s")]


def test_records_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="tier"):
        glue_table([make_record(), make_record(tier="local", seed=1)], ("gates",), ("cola",))
    with pytest.raises(ValueError, match="gates"):
        glue_table([make_record()], ("full",), ("cola",))
    with pytest.raises(ValueError, match="epoch"):
        glue_table([make_record()], ("gates",), ("cola",), epoch="first")


def test_realised_sparsity_stands_beside_its_target():
    table = sparsity_table(make_study(), METHODS, TASKS)
    found = row(table, "gates")
    assert found["target_sparsity"] == 0.4
    assert found["cola"] == 0.25


def test_reference_rows_come_first(tmp_path):
    path = tmp_path / "bag.json"
    path.write_text(json.dumps({t: {"score": 40.0, "majority_score": 0.0} for t in TASKS}))
    table = glue_table(make_study(), METHODS, TASKS, references=read_references(path))
    assert [cells[0] for cells in table.cells[:2]] == ["Majority class", "Bag of words"]
    path.write_text("[]")
    with pytest.raises(ValueError, match="must map tasks"):
        read_references(path)


def test_the_three_files_hold_the_same_cells(tmp_path):
    table = glue_table(make_study(), METHODS, TASKS)
    paths = [tmp_path / f"t.{suffix}" for suffix in ("csv", "md", "tex")]
    write_table(table, *paths)
    markdown, latex = paths[1].read_text(), paths[2].read_text()
    for cells in table.cells:
        for cell in cells:
            assert cell in markdown
            assert escape_latex(cell) in latex
    assert r"\toprule" in latex


def test_what_could_be_detected_is_said_by_task(tmp_path):
    one = detectable_table(make_study(), METHODS, TASKS)
    assert one.numbers["task"].tolist() == list(TASKS)
    assert one.numbers["by_seeds"].isna().all()
    several = detectable_table(make_study(seeds=(0, 1, 2)), METHODS, TASKS).numbers
    assert (several["by_seeds"] >= 0).all()
    assert (several["by_rows"] > 3 * several["standard_error"]).all()
    assert (several["validation_rows"] > 0).all()


@pytest.mark.parametrize("package", ["tables", "claims", "figures", "tables.wording"])
def test_reading_records_for_tables_needs_no_torch(package):
    """Jobs for tables start quickly and use a fifth of the memory that torch would need."""
    code = f"import sys, finegates.suite.{package}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
