"""``finegates shrink``: fine-tune on labelled text, prune and compact."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finegates.cli import options
from finegates.cli.failures import CommandError

if TYPE_CHECKING:
    from finegates.cli.fine_tuning import Recipe
    from finegates.cli.task_data import TaskData

# In the folder of an unfinished run: the costs that it began with.
_COSTS = "cost.json"

_TEXT = """\
Fine-tune a pretrained model on labelled text with gates, remove what they close, and write the
smaller model, its tokenizer and a summary (finegates-shrink.json) to a folder.

examples:
  finegates shrink MODEL --train reviews.csv --target 0.4 --out small/
  finegates shrink MODEL --train pairs.jsonl --eval held_out.jsonl --text premise \\
      --text-pair hypothesis --label verdict --out small/
  finegates shrink MODEL --task mrpc --data glue/ --target 0.4 --out small/

The text is in CSV, TSV, JSON, JSON lines or Parquet, one example a row. Labels with a decimal point
mean regression, all others classes. Without --eval, a tenth of the rows is held out. MACs are the
multiply-accumulates of the layers for one sequence of --max-length tokens. Between 10 and 50 % of
the training, the dimensions with the least importance per MAC are closed until the target is met.

During the run, checkpoints are in OUT.partial. If it is interrupted, the same command continues
from the last checkpoint and ends with the same tensors. OUT appears whole or not at all; use it
with

  model = finegates.load("small/")
  tokenizer = transformers.AutoTokenizer.from_pretrained("small/")
"""


def add(commands: options.Commands) -> None:
    """Registers the command."""
    parser = options.command(
        commands, "shrink", "fine-tune, prune, compact, evaluate and save a model", _TEXT
    )
    options.add_model(parser, "; dense, with or without a head for the task")
    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group(required=True)
    source.add_argument("--train", type=Path, metavar="FILE", help="labelled text to train on")
    source.add_argument("--task", metavar="NAME", help="a task of GLUE, from the folder --data")
    data.add_argument("--eval", type=Path, metavar="FILE", help="labelled text to evaluate on")
    data.add_argument("--data", type=Path, metavar="FOLDER", help="with NAME/train.parquet")
    data.add_argument("--text", metavar="COLUMN", help="the text (default: a usual name)")
    data.add_argument("--text-pair", metavar="COLUMN", help="a second text, if there is one")
    data.add_argument("--label", metavar="COLUMN", help="the label (default: a usual name)")
    recipe = parser.add_argument_group("what is made")
    recipe.add_argument("--out", type=Path, required=True, metavar="OUT", help="a new folder")
    budget = recipe.add_mutually_exclusive_group()
    budget.add_argument(
        "--target", type=options.fraction, help="fraction of the MACs to remove (0.4)"
    )
    budget.add_argument(
        "--target-time",
        type=options.fraction,
        metavar="FRACTION",
        help="instead, the time of a forward pass that stays, as a fraction of the dense model's, "
        "for a batch of --batch-size x --max-length; needs --cost measured, which then also times "
        "the model, or --cost FILE",
    )
    recipe.add_argument(
        "--uniform",
        action="store_true",
        help="keep equal sizes in all layers, so that finegates export --stock pads nothing",
    )
    recipe.add_argument(
        "--inner",
        action="store_true",
        help="close only heads and feed-forward dimensions, so that no layer gathers its inputs",
    )
    recipe.add_argument(
        "--width", action="store_true", help="also close hidden dimensions of the whole model"
    )
    recipe.add_argument(
        "--parts",
        action="store_true",
        help="also close attention and feed-forward parts as a whole",
    )
    recipe.add_argument(
        "--shrink-while-training",
        action="store_true",
        help="remove what is closed for good from the running model, for faster steps",
    )
    recipe.add_argument("--epochs", type=options.positive, default=4, help="(4)")
    recipe.add_argument("--batch-size", type=options.positive, default=16, help="(16)")
    recipe.add_argument("--max-length", type=options.positive, default=128, help="tokens (128)")
    recipe.add_argument(
        "--learning-rate", type=options.rate, default=1e-3, help="of head and biases (0.001)"
    )
    recipe.add_argument(
        "--gate-learning-rate", type=options.rate, default=1e-2, help="of the gates (0.01)"
    )
    recipe.add_argument(
        "--lora",
        type=options.positive,
        nargs="?",
        const=8,
        metavar="RANK",
        help="train LoRA adapters inside the gates, too (rank 8): slower, more accurate",
    )
    recipe.add_argument(
        "--distill",
        metavar="TEACHER",
        help="learn from the logits of a dense model that was fine-tuned on the same labels",
    )
    recipe.add_argument("--seed", type=options.seed, default=0, help="(0)")
    options.add_cost(recipe)
    run_group = parser.add_argument_group("how it runs")
    run_group.add_argument(
        "--checkpoint-every",
        type=options.positive,
        metavar="STEPS",
        help="(default: after each epoch)",
    )
    run_group.add_argument(
        "--dry-run", action="store_true", help="print what would be done, and do nothing"
    )
    options.add_threads(run_group)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; see the module."""
    _check(arguments)
    out: Path = arguments.out
    options.use_threads(arguments)
    from finegates.cli import outcome, resumption

    started = _prepare(arguments)
    partial = resumption.partial_folder(out)
    if out.exists() and any(out.iterdir()):
        outcome.check_finished(out, started.settings)
        if resumption.remembered(partial):
            resumption.remove(partial)
        print(f"{out} is finished: it was made with the same settings from the same data\n")
        print(outcome.summary_of(out))
        return 0
    _describe(arguments, started)
    resumption.check_continues(partial, started.settings)
    cost = _cost(arguments, started, partial)
    _check_gates(started, cost)
    if arguments.dry_run:
        print(f"nothing was done; without --dry-run the result would be in {out}")
        return 0
    with resumption.at_work(partial, started.settings) as checkpoint:
        if checkpoint is not None:
            print(f"continuing after step {checkpoint.name.rpartition('-')[2]}", flush=True)
        if started.recipe.target_time is not None and cost is not None:
            cost.save(partial / _COSTS)
        _make(arguments, started, partial, checkpoint, cost)
        resumption.remove(partial)
    print(outcome.summary_of(out))
    print(f"wrote {out}: the model (finegates.load), its tokenizer, finegates-shrink.json")
    return 0


@dataclass(frozen=True)
class _Prepared:
    """Inputs of a run, read and checked before anything is written."""

    model: Any
    tokenizer: Any
    data: TaskData
    recipe: Recipe
    has_head: bool
    settings: dict[str, Any]


def _check(arguments: argparse.Namespace) -> None:
    """Checks the options before slow modules are imported."""
    if arguments.task is not None:
        if arguments.data is None:
            raise CommandError(
                f"--task {arguments.task}: name the folder that holds its tables with --data"
            )
        given = [name for name in ("eval", "text", "text_pair", "label") if vars(arguments)[name]]
        if given:
            raise CommandError(
                f"--{given[0].replace('_', '-')} goes with --train; --task {arguments.task} has "
                "its own columns and evaluation split"
            )
    elif arguments.data is not None:
        raise CommandError("--data goes with --task; name the file to evaluate on with --eval")
    if arguments.target_time is not None and arguments.cost == "smallest":
        raise CommandError(
            "--target-time needs measured costs: --cost measured, or --cost FILE of CostModel.save"
        )
    for path in (arguments.out, *arguments.out.parents):
        if path.exists() and not path.is_dir():
            raise CommandError(f"--out {arguments.out}: {path} is a file; choose another folder")


def _prepare(arguments: argparse.Namespace) -> _Prepared:
    from transformers import set_seed

    import finegates as fg
    from finegates.adapters import adapter_for
    from finegates.cli import checkpoints
    from finegates.cli.fine_tuning import Recipe, device, fit_tokenizer
    from finegates.cli.task_data import read_task_data
    from finegates.files import file_digest

    recipe = Recipe(
        target=_removed(arguments),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        learning_rate=arguments.learning_rate,
        gate_learning_rate=arguments.gate_learning_rate,
        seed=arguments.seed,
        lora=arguments.lora,
        uniform=arguments.uniform,
        inner=arguments.inner,
        width=arguments.width,
        parts=arguments.parts,
        shrink=arguments.shrink_while_training,
        target_time=arguments.target_time,
    )
    # Raises for options that exclude each other, before the data are read.
    recipe.gates(None if recipe.target_time is None else fg.CostModel())
    device()  # raises for several GPUs, before the data are read
    data = read_task_data(arguments)
    set_seed(recipe.seed_of("head"))
    model, has_head = checkpoints.load_classifier(arguments.model, data.labels.names)
    adapter_for(model)  # raises for unknown architectures, by name
    checkpoints.check_length(model, recipe.max_length)
    tokenizer = checkpoints.load_tokenizer(arguments.model)
    fit_tokenizer(tokenizer, model)
    teacher = None
    if arguments.distill is not None:
        found, has_all = checkpoints.load_classifier(arguments.distill, data.labels.names)
        if not has_all:
            raise CommandError(
                f"--distill {arguments.distill}: has no trained head of {data.labels.outputs} "
                "outputs; fine-tune it on the same labels first"
            )
        teacher = checkpoints.digest(arguments.distill, found)
    import torch
    import transformers

    settings = {
        "model": checkpoints.digest(arguments.model, model),
        "data": data.digest,
        "task": arguments.task,
        "columns": [data.columns.text, data.columns.pair, data.columns.label],
        # Left out where they are off: results from before an option have the same settings.
        **recipe.settings(),
        "cost": options.cost_settings(arguments.cost),
        "distill": teacher,
        **({} if arguments.specs is None else {"specs": file_digest(arguments.specs)}),
        "finegates": fg.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return _Prepared(model, tokenizer, data, recipe, has_head, settings)


def _describe(arguments: argparse.Namespace, started: _Prepared) -> None:
    """Prints the settings of the run."""
    import finegates as fg
    from finegates.cli.quantities import large

    recipe, data = started.recipe, started.data
    before = fg.macs(started.model, 1, recipe.max_length).total
    target = f"{large(before)} MACs a sequence of {recipe.max_length} tokens -> "
    target += large((1 - recipe.target) * before)
    if recipe.target_time is not None:
        target = f"{100 * recipe.target_time:g} % of the dense model's time, by measured costs"
    text = " + ".join(repr(c) for c in (data.columns.text, data.columns.pair) if c is not None)
    head = "its own head" if started.has_head else "a new head"
    print(
        f"model   {arguments.model}: {type(started.model).__name__} with {head}\n"
        f"data    {len(data.train)} rows to train on, {len(data.held_out)} {data.held_out_is}\n"
        f"        text {text}, label {data.columns.label!r}: {data.labels}\n"
        f"target  {target}\n"
        f"steps   {recipe.steps(len(data.train))} in {recipe.epochs} epochs of batches of "
        f"{recipe.batch_size}"
        f"{'' if recipe.lora is None else f', LoRA of rank {recipe.lora} inside the gates'}"
        f"{'' if arguments.distill is None else f', with the teacher {arguments.distill}'}\n",
        flush=True,
    )


def _make(
    arguments: argparse.Namespace,
    started: _Prepared,
    partial: Path,
    checkpoint: Path | None,
    cost: Any,
) -> None:
    """Trains, compacts, evaluates and writes."""
    import finegates as fg
    from finegates.cli import fine_tuning, outcome

    recipe, data, tokenizer = started.recipe, started.data, started.tokenizer
    model = started.model
    rows = fine_tuning.encode(tokenizer, data.train, recipe.max_length)
    held_out = fine_tuning.encode(tokenizer, data.held_out, recipe.max_length)
    scores = outcome.Scores(tokenizer, held_out, data, recipe.batch_size)
    if started.has_head:
        scores.add("dense", model.to(fine_tuning.device()))
    distillation = None
    if arguments.distill is not None:
        rows = _with_teacher(arguments.distill, rows, started)
        distillation = fg.Distillation()
    model = fine_tuning.with_gates(model, recipe, None if recipe.target_time is None else cost)
    model = fine_tuning.train(
        model,
        tokenizer,
        rows,
        recipe,
        partial,
        checkpoint=checkpoint,
        every=arguments.checkpoint_every,
        distillation=distillation,
    )
    scores.add("gated", model)
    small = fg.compact(model, cost=cost)
    scores.add("compact", small)
    outcome.write(arguments.out, model, small, scores, started.settings, recipe)


def _removed(arguments: argparse.Namespace) -> float:
    """The fraction to remove, of the MACs or of the time."""
    if arguments.target_time is not None:
        return 1.0 - arguments.target_time
    return 0.4 if arguments.target is None else arguments.target


def _cost(arguments: argparse.Namespace, started: _Prepared, partial: Path) -> Any:
    """The cost model of the run; with --target-time measured once, before the first step.

    A run that was interrupted continues with the costs that it began with.
    """
    import finegates as fg

    if started.recipe.target_time is None:
        return None if arguments.dry_run else options.cost_model(arguments.cost)
    file = partial / _COSTS
    if file.is_file():
        return fg.CostModel.load(file)
    return options.cost_model(arguments.cost, lambda: _measured(started))


def _check_gates(started: _Prepared, cost: Any) -> None:
    """Raises, before anything is written, if gates cannot be attached or meet the target."""
    from finegates.cli import fine_tuning

    timed = started.recipe.target_time is not None
    fine_tuning.check_gates(started.model, started.recipe, cost if timed else None)


def _measured(started: _Prepared) -> Any:
    """The costs of the model, on batches of the training's shape."""
    import finegates as fg

    recipe = started.recipe
    return fg.calibrate(started.model, batch=recipe.batch_size, length=recipe.max_length)


def _with_teacher(where: str, rows: list[dict[str, Any]], started: _Prepared) -> Any:
    import torch

    import finegates as fg
    from finegates.cli import checkpoints, fine_tuning

    recipe, examples = started.recipe, started.data.train
    teacher, _ = checkpoints.load_classifier(where, started.data.labels.names)
    teacher = teacher.to(fine_tuning.device())
    tokenizer = checkpoints.load_tokenizer(where)
    fine_tuning.fit_tokenizer(tokenizer, teacher)
    own = fine_tuning.encode(tokenizer, examples, recipe.max_length)
    logits = fine_tuning.predict(teacher, tokenizer, own, recipe.batch_size)
    return fg.with_teacher(rows, torch.from_numpy(logits))
