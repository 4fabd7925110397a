"""A hyperparameter search: every trial trains, closes and counts its own model.

The loop is transformers' ``run_hp_search_optuna``. Optuna is not installed here, so the classes
below replace the few names that the loop needs.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from finegates.budget import macs, planned_macs
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.stochastic import StochasticGate
from finegates.training.trainer import GateTrainer
from support.tiny import VOCABULARY, tiny_model

# Wide enough that one dimension of a head is much less than one percentage point.
WIDE = {"hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 4}
NEAR = 0.05


class PrunedTrialError(Exception):
    """Raised to stop a trial."""


class Trial:
    """Replaces ``optuna``'s trial: its values are given, not drawn."""

    def __init__(self, study: Study, number: int, params: dict[str, Any]) -> None:
        self.study, self.number, self.params = study, number, params

    def report(self, value: float, step: int) -> None:
        self.study.values[self.number] = value

    def should_prune(self) -> bool:
        return self.number in self.study.pruned


class Study:
    """Replaces ``optuna``'s study."""

    def __init__(self, trials: Sequence[dict[str, Any]], pruned: Sequence[int]) -> None:
        self.trials = [Trial(self, number, params) for number, params in enumerate(trials)]
        self.pruned, self.values = set(pruned), dict[int, float]()

    def optimize(self, objective: Callable[[Trial], float], n_trials: int, **_: Any) -> None:
        for trial in self.trials[:n_trials]:
            try:
                self.values[trial.number] = objective(trial)
            except PrunedTrialError:
                self.values.pop(trial.number, None)

    def _is_multi_objective(self) -> bool:
        return False

    @property
    def best_trial(self) -> Any:
        number = min(self.values, key=self.values.__getitem__)
        trial = self.trials[number]
        return types.SimpleNamespace(number=number, value=self.values[number], params=trial.params)


@pytest.fixture
def optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library named optuna with the names that transformers needs."""
    library: Any = types.ModuleType("optuna")
    library.Trial = Trial
    library.trial = types.SimpleNamespace(BaseTrial=Trial)
    library.TrialPruned = PrunedTrialError
    library.create_study = lambda trials, pruned=(), **_: Study(trials, pruned)
    monkeypatch.setitem(sys.modules, "optuna", library)
    for module in ("hyperparameter_search", "integrations.integration_utils"):
        monkeypatch.setattr(f"transformers.{module}.is_optuna_available", lambda: True)


def rows(count: int = 32) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (count, 6), generator=generator)
    return [{"input_ids": row, "labels": int(row[0]) % 2} for row in ids]


class Ends(TrainerCallback):
    """Final state of each trained model: kept MACs, and the mean open probability."""

    def __init__(self) -> None:
        self.kept: list[float] = []
        self.open: list[float] = []

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.kept.append(planned_macs(model, 1, 6).total / macs(model, 1, 6).total)
        gates = [gate for gate in model.modules() if isinstance(gate, StochasticGate)]
        self.open.append(float(torch.cat([gate.open_probability() for gate in gates]).mean()))


def searched(
    folder: Path,
    trials: Sequence[dict[str, Any]],
    preset: str = "structured",
    pruned: Sequence[int] = (),
    **arguments: Any,
) -> tuple[Ends, Any]:
    """Final states of the trials in order, and the best run."""
    settings: dict[str, Any] = {
        "num_train_epochs": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "logging_strategy": "no",
        "eval_strategy": "epoch",
        **arguments,
    }

    def made(trial: Trial | None) -> nn.Module:
        target = 0.5 if trial is None else trial.params["target"]
        model = tiny_model("roberta", dtype=torch.float32, **WIDE)
        config = GateConfig(preset=preset, target=target, sequence_length=6, penalty_weight=10.0)
        return attach(model, config)

    ends = Ends()
    run = GateTrainer(
        model_init=made,
        args=TrainingArguments(
            folder, use_cpu=True, report_to="none", disable_tqdm=True, seed=1, **settings
        ),
        train_dataset=rows(),
        eval_dataset=rows(8),
        callbacks=[ends],
        learning_rates={} if preset == "structured" else {"gates": 0.3},
    )
    best = run.hyperparameter_search(
        hp_space=lambda trial: {k: v for k, v in trial.params.items() if k != "target"},
        n_trials=len(trials),
        direction="minimize",
        backend="optuna",
        trials=trials,
        pruned=pruned,
    )
    return ends, best


@pytest.mark.usefixtures("optuna")
def test_every_trial_of_a_search_meets_the_budget_that_it_chose(tmp_path: Path) -> None:
    trials = [
        {"target": 0.5, "learning_rate": 1e-2},
        {"target": 0.3, "learning_rate": 3e-3, "gradient_accumulation_steps": 2},
        {"target": 0.6, "learning_rate": 1e-2, "per_device_train_batch_size": 4},
    ]
    ends, best = searched(tmp_path, trials)
    assert ends.kept == [pytest.approx(1 - trial["target"], abs=NEAR) for trial in trials]
    assert best.hyperparameters in trials


@pytest.mark.usefixtures("optuna")
def test_a_trial_that_is_pruned_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    trials = [{"target": 0.5}, {"target": 0.3}]
    ends, best = searched(tmp_path / "after", trials, pruned=[0])
    assert best.run_id == "1"
    alone, _ = searched(tmp_path / "alone", trials[1:])
    assert ends.kept[1] == alone.kept[0] == pytest.approx(0.7, abs=NEAR)


@pytest.mark.usefixtures("optuna")
@pytest.mark.parametrize("preset", ["reference", "paper_v1"])
def test_the_penalty_is_on_the_gates_of_each_trial(preset: str, tmp_path: Path) -> None:
    ends, _ = searched(tmp_path, [{"target": 0.5}, {"target": 0.3}], preset)
    first, second = ends.open  # 0.99 and 0.84 at the start; paper_v1 closes more than the target
    assert first < 0.6
    assert second < 0.8
