"""Finished runs of an unfinished tier are published completely, and none is lost."""

import shutil
import subprocess

import numpy as np
import pytest

from finegates.suite.finished import UnfinishedError, main, publish_finished
from finegates.suite.runs.predictions import predictions_path, write_predictions
from finegates.suite.runs.record import write_record
from finegates.suite.runs.signed import RecordError
from support.paths import ROOT
from support.records import make_record

LOGITS = np.array([[0.1, 0.2], [0.4, -0.3]])


def finish(results, place):
    record = results / place
    named = write_predictions(
        predictions_path(record), "cola", np.arange(2), np.array([1, 0]), {"last": LOGITS}
    )
    write_record(make_record(predictions=named), record)
    return record


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results" / "long"
    finish(folder, "runs/cola/full/seed0.json")
    finish(folder, "search/runs/cola/full-x1/seed0.json")
    (folder / "search" / "cola.json").write_text("{}")
    # Unfinished files, and files that do not belong to runs.
    (folder / "runs" / "cola" / "lora").mkdir()
    (folder / "runs/cola/lora/seed0.predictions.parquet").write_bytes(b"half")
    (folder / "models").mkdir()
    (folder / "models" / "full.safetensors").write_bytes(b"weights")
    return folder


def test_records_predictions_and_choices_are_copied_and_nothing_else(tmp_path, results):
    target = tmp_path / "published" / "long"
    main([str(results), str(target)])
    assert files(target) == [
        "runs/cola/full/seed0.json",
        "runs/cola/full/seed0.predictions.parquet",
        "search/cola.json",
        "search/runs/cola/full-x1/seed0.json",
        "search/runs/cola/full-x1/seed0.predictions.parquet",
    ]
    finish(results, "runs/cola/lora/seed0.json")
    publish_finished(results, target)
    assert "runs/cola/lora/seed0.json" in files(target)


def test_published_runs_that_the_results_lack_are_not_lost(tmp_path, results):
    target = tmp_path / "published" / "long"
    publish_finished(results, target)
    before = files(target)
    (results / "runs/cola/full/seed0.json").unlink()
    with pytest.raises(UnfinishedError, match="1 published runs.*make restore TIER=long"):
        publish_finished(results, target)
    assert files(target) == before


def test_damaged_files_are_not_published(tmp_path, results):
    target = tmp_path / "published" / "long"
    (results / "runs/cola/full/seed0.predictions.parquet").write_bytes(b"other")
    with pytest.raises(RecordError, match="damaged"):
        publish_finished(results, target)
    with pytest.raises(SystemExit, match="error: .*damaged"):
        main([str(results), str(target)])
    assert not target.exists()


def test_a_finished_tier_is_not_replaced_by_its_runs(tmp_path, results):
    target = tmp_path / "published" / "long"
    (target / "tables").mkdir(parents=True)
    with pytest.raises(UnfinishedError, match="snakemake publish"):
        publish_finished(results, target)
    with pytest.raises(UnfinishedError, match="no finished run"):
        publish_finished(tmp_path / "none", tmp_path / "other")


def test_make_restores_a_tier_of_which_only_trials_of_rates_are_finished(tmp_path, results):
    shutil.rmtree(results / "runs")
    publish_finished(results, tmp_path / "results" / "published" / "long")
    shutil.rmtree(results)
    shutil.copy(ROOT / "Makefile", tmp_path)
    subprocess.run(["make", "restore", "TIER=long"], cwd=tmp_path, check=True, timeout=60)
    assert files(results) == files(tmp_path / "results" / "published" / "long")
    assert "search/runs/cola/full-x1/seed0.json" in files(results)
