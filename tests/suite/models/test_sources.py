"""Sources of tables: rows held out of training replace the reported split."""

import pytest

from finegates.suite.config.tasks import DataError
from finegates.suite.data.glue import read_split
from finegates.suite.models.sources import describe_data, read_table
from support.tier import tiny_tier


def holding_out(folder, rows):
    path = str(folder / "data")
    return tiny_tier(folder, data={"name": "tables", "path": path, "held_out": rows})


def test_held_out_rows_are_the_last_training_rows_and_are_not_trained_on(tmp_path):
    tier = holding_out(tmp_path, 8)
    whole = read_split(tmp_path / "data", "cola", "train")
    assert read_table(tier, "cola", "train").equals(whole.slice(0, 40))
    assert read_table(tier, "cola", "validation").equals(whole.slice(40))


def test_a_record_says_that_its_validation_rows_were_held_out(tmp_path):
    data = describe_data(holding_out(tmp_path, 8), "cola", {"train": 40, "validation": 8})
    assert data["validation_split"] == "held out"
    assert data["splits"]["validation"]["status"] == "held out of the training rows"


def test_holding_out_every_row_is_refused_with_the_task_and_the_remedy(tmp_path):
    with pytest.raises(DataError, match="held_out: 48 rows leave none of the 48 .*'cola'; lower"):
        read_table(holding_out(tmp_path, 48), "cola", "train")
