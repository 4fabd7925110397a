"""Cost next to score: a method's time includes its starting point, relative to full fine-tuning."""

import pytest

from finegates.suite.tables.method_cost import method_cost_table
from support.records import make_record

STARTS = {"full": None, "gates": None, "pruned": "full", "repaired": "pruned"}
TASKS = ["cola", "rte"]
# Seconds on the CPU by method and task, and the memory of each method.
SECONDS = {
    "full": (100.0, 10.0),
    "gates": (150.0, 5.0),
    "pruned": (50.0, 5.0),
    "repaired": (25.0, 5.0),
}
MEMORY = {"full": 2000.0, "gates": 900.0, "pruned": 2100.0, "repaired": 1000.0}


def records(**without):
    return [
        make_record(
            method=method,
            task=task,
            target=None,
            scores=(60.0,),
            timing={"peak_memory_mib": MEMORY[method] - place, "startup_s": 1.0, "wall_s": 9e9}
            | ({} if without.get(method) == task else {"cpu_s": SECONDS[method][place]}),
        )
        for method in STARTS
        for place, task in enumerate(TASKS)
    ]


def table(**without):
    return method_cost_table(records(**without), list(STARTS), TASKS, STARTS)


def test_time_counts_the_runs_that_a_run_starts_from():
    ratios = dict(zip(table().numbers["method"], table().numbers["time_ratio"], strict=True))
    # Means over tasks of the ratio on each, so that a long task does not outweigh a short one.
    assert ratios == pytest.approx(
        {
            "full": 1.0,
            "gates": (1.5 + 0.5) / 2,
            "pruned": ((100 + 50) / 100 + (10 + 5) / 10) / 2,
            "repaired": ((100 + 50 + 25) / 100 + (10 + 5 + 5) / 10) / 2,
        }
    )


def test_memory_is_the_most_of_all_runs_and_parameters_are_those_trained():
    numbers = table().numbers.set_index("method")
    assert dict(numbers["peak_memory_mib"]) == MEMORY
    assert [row[-1] for row in table().cells] == ["2,000", "900", "2,100", "1,000"]
    assert (numbers["trainable_parameters"] > 0).all()


def test_a_time_that_is_not_recorded_leaves_what_rests_on_it_blank():
    cells = {row[0]: row[-2] for row in table(pruned="rte").cells}
    assert cells == {"full": "1.00", "gates": "1.00", "pruned": "–", "repaired": "–"}
    assert {row[-2] for row in table(full="cola").cells} == {"–"}
