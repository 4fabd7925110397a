"""The runs of a tier's experiments on plain text, and their paths."""

from __future__ import annotations

from dataclasses import dataclass

from finegates.suite.config.llama import CausalGates, CausalTraining, Experiment
from finegates.suite.config.tier import LlamaStudy, Tier

DENSE = "dense"

CRITERION_TITLES = {
    "random": "Random",
    "magnitude": "Magnitude",
    "second_moment": "Second moment",
}


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        experiment: ``posttraining`` or ``pretraining``.
        name: name of the model or size.
        method: ``dense``, a gated method's label, or ``<criterion>-as-<label>``.
        target: target sparsity; None for ``dense``.
        seed: one of the tier's seeds.
    """

    experiment: Experiment
    name: str
    method: str
    target: float | None
    seed: int

    @property
    def label(self) -> str:
        """Method and target, as they appear in the record's path."""
        return self.method if self.target is None else f"{self.method}-s{self.target:g}"

    def record(self, results: str) -> str:
        """The path of the run's record."""
        folder = f"{results}/llama/runs/{self.experiment}/{self.name}/{self.label}"
        return f"{folder}/seed{self.seed}.json"

    def matched(self) -> Run:
        """The gated run whose closed rows and columns a one-shot run matches."""
        _, _, label = self.method.partition("-as-")
        return Run(self.experiment, self.name, label, self.target, self.seed)

    @property
    def criterion(self) -> str | None:
        """The criterion of a one-shot run, None for others."""
        criterion, as_, _ = self.method.partition("-as-")
        return criterion if as_ else None


def study(tier: Tier) -> LlamaStudy:
    """The tier's section on Llama. Raises ValueError if it is missing."""
    if tier.llama is None:
        raise ValueError(f"tier {tier.tier!r} has no section 'llama'")
    return tier.llama


def pretraining_runs(tier: Tier) -> list[Run]:
    """The dense and gated runs of every size and seed."""
    pretraining = study(tier).pretraining
    if pretraining is None:
        return []
    return [
        run
        for size in pretraining.sizes
        for run in [
            *(Run("pretraining", size, DENSE, None, seed) for seed in tier.seeds),
            *_gated("pretraining", size, pretraining.methods, tier.seeds),
        ]
    ]


def posttraining_runs(tier: Tier) -> list[Run]:
    """The gated runs of every model."""
    posttraining = study(tier).posttraining
    if posttraining is None:
        return []
    return [
        run
        for model in posttraining.models
        for run in _gated("posttraining", model, posttraining.methods, tier.seeds)
    ]


def pruning_runs(tier: Tier) -> list[Run]:
    """The dense model, and one-shot pruning that matches gated runs."""
    posttraining = study(tier).posttraining
    if posttraining is None:
        return []
    return [
        run
        for model in posttraining.models
        for seed in tier.seeds
        for run in [
            Run("posttraining", model, DENSE, None, seed),
            *(
                Run("posttraining", model, f"{criterion}-as-{label}", target, seed)
                for label in posttraining.match
                for target in posttraining.methods[label].targets
                for criterion in posttraining.criteria
            ),
        ]
    ]


def gates_of(tier: Tier, run: Run) -> CausalGates | None:
    """The gates of a run, None for a dense one.

    Raises:
        KeyError: the tier does not have a method with this label.
    """
    section = getattr(study(tier), run.experiment)
    return None if run.method == DENSE else section.methods[run.method]


def training_of(tier: Tier, run: Run) -> CausalTraining:
    """The training settings of a run."""
    settings: CausalTraining = getattr(study(tier), run.experiment).training
    return settings


def title_of(tier: Tier, run: Run) -> str:
    """A run's method in words, without its target."""
    if run.criterion is not None:
        matched = gates_of(tier, run.matched())
        assert matched is not None
        return f"{CRITERION_TITLES[run.criterion]}, as many as {matched.title}"
    gates = gates_of(tier, run)
    return "Dense" if gates is None else gates.title


def run_named(tier: Tier, path: str) -> Run:
    """The run whose record has this path. Raises KeyError if there is none."""
    runs = [*pretraining_runs(tier), *posttraining_runs(tier), *pruning_runs(tier)]
    return {run.record(tier.results): run for run in runs}[path]


def _gated(
    experiment: Experiment, name: str, methods: dict[str, CausalGates], seeds: list[int]
) -> list[Run]:
    return [
        Run(experiment, name, label, target, seed)
        for label, gates in methods.items()
        for target in gates.targets
        for seed in seeds
    ]
