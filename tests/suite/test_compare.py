"""A rerun is compared cell by cell: equal, within chance, different, missing."""

import pandas as pd
import pytest

from finegates.suite.compare import CompareError, compare, main, report
from finegates.suite.tables import runs_table, to_csv
from support.records import make_study

METHODS, TASKS = ("full", "gates"), ("cola", "rte")


def tree(folder, seeds=(0, 1, 2), **changes):
    frame = runs_table(make_study(seeds=seeds), METHODS, TASKS)
    for (method, task), (column, by) in changes.pop("cells", {}).items():
        chosen = (frame["method"] == method) & (frame["task"] == task)
        frame.loc[chosen, column] += by
    (folder / "tables").mkdir(parents=True)
    (folder / "tables" / "runs.csv").write_text(to_csv(frame))
    return folder


def outcomes(cells, quantity="last_score"):
    return {(c.method, c.task): c.outcome for c in cells if c.quantity == quantity}


def test_a_tree_agrees_with_itself(tmp_path, capsys):
    one = tree(tmp_path / "a")
    assert set(outcomes(compare(one, one)).values()) == {"equal"}
    assert main([str(one), str(one)]) == 0
    assert "0 differs" in capsys.readouterr().out


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_small_difference_agrees_and_a_large_one_differs(tmp_path, seeds):
    one = tree(tmp_path / "a", seeds)
    other = tree(
        tmp_path / "b",
        seeds,
        cells={("full", "cola"): ("last_score", 0.2), ("gates", "rte"): ("last_score", -30.0)},
    )
    found = outcomes(compare(one, other))
    assert found["gates", "rte"] == "differs"
    assert found["full", "rte"] == "equal"
    assert found["full", "cola"] == "agrees"
    assert "differs: gates on rte, last_score" in report(compare(one, other))


def test_comparing_the_other_way_round_gives_the_same_outcomes(tmp_path):
    one = tree(tmp_path / "a")
    other = tree(tmp_path / "b", cells={("gates", "rte"): ("last_score", 3.0)})
    assert outcomes(compare(one, other)) == outcomes(compare(other, one))


def test_counts_must_be_equal(tmp_path, capsys):
    one = tree(tmp_path / "a")
    other = tree(tmp_path / "b", cells={("full", "cola"): ("parameters", 1)})
    assert outcomes(compare(one, other), "parameters")["full", "cola"] == "differs"
    assert main([str(one), str(other)]) == 1
    assert "1 differs" in capsys.readouterr().out


def test_what_one_tree_lacks_is_named(tmp_path, capsys):
    one = tree(tmp_path / "a")
    other = tree(tmp_path / "b")
    path = other / "tables" / "runs.csv"
    frame = pd.read_csv(path)
    frame[frame["method"] == "full"].to_csv(path, index=False)
    assert outcomes(compare(one, other))["gates", "rte"] == "only in the first"
    assert main([str(other), str(one)]) == 1
    assert "only in the second: gates on cola, last_score: – against" in capsys.readouterr().out


def test_a_folder_that_holds_no_results_is_refused(tmp_path, capsys):
    with pytest.raises(CompareError, match="holds no tables/runs.csv"):
        compare(tmp_path, tmp_path)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "runs.csv").write_text("a,b\n1,2\n")
    assert main([str(tmp_path), str(tmp_path)]) == 2
    assert "is not a table of runs" in capsys.readouterr().err
