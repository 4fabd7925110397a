"""A stopped and resumed training equals the uninterrupted one, tensor by tensor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    DebertaV2Model,
    GPT2Model,
    LlamaModel,
    RobertaForSequenceClassification,
    T5Model,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

import finegates as fg
from finegates.adapters import adapter_for
from finegates.formats.gated import GatedFormatError
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.gated_linear import leaf_gates
from finegates.lora import add_lora
from finegates.training.gate_history import GateHistory
from finegates.training.trainer import GateTrainer
from support.tiny import ARCHITECTURES, VOCABULARY, output, tiny_model, tokens

PRESETS = ("reference", "paper_v1", "structured")
STEPS = 20  # four steps an epoch
# In the default schedule: before the budget falls, while it falls, at the end of an epoch, while
# gates harden, and after all choices.
STOPS = (1, 6, 8, 13, 17)


def with_peft(model: nn.Module) -> nn.Module:
    config = peft.LoraConfig(
        r=2, target_modules=list(adapter_for(model).gated(model)), task_type="SEQ_CLS"
    )
    wrapped: nn.Module = peft.get_peft_model(model, config)  # type: ignore[arg-type]
    return wrapped


def with_native(model: nn.Module) -> nn.Module:
    names = list(adapter_for(model).gated(model))
    model.add_adapter(peft.LoraConfig(r=2, target_modules=names))  # type: ignore[operator]
    return model


ADAPTERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "no LoRA": lambda model: model,
    "add_lora": lambda model: add_lora(model, rank=2),
    "peft": with_peft,
    "native": with_native,
}


def rows(count: int = 32) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (count, 6), generator=generator)
    ids[:, -1] = 1  # an end-of-sequence token, which T5 looks for
    return [{"input_ids": row, "labels": int(row[0]) % 2} for row in ids]


def fresh(adapters: str, preset: str, architecture: str = "roberta") -> nn.Module:
    torch.manual_seed(0)
    model = ADAPTERS[adapters](tiny_model(architecture, dtype=torch.float32))
    if preset == "uniform":  # on encoders it closes only feed-forward dimensions
        return attach(model, GateConfig(uniform=True, target=0.2, sequence_length=6))
    return attach(model, GateConfig(preset=preset, target=0.4, sequence_length=6))


def trainer(model: nn.Module, folder: Path, **settings: Any) -> GateTrainer:
    arguments = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 3,
        "seed": 1,
    }
    return GateTrainer(
        model=model,
        args=TrainingArguments(**{**arguments, **settings}),
        train_dataset=rows(),
        eval_dataset=rows(16),
        learning_rates={"gates": 5e-2},
    )


def everything(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor, in the state dict or not, and requires_grad of each parameter."""
    named = [*model.named_parameters(), *model.named_buffers(), *model.state_dict().items()]
    flags = {f"{n} trains": torch.tensor(p.requires_grad) for n, p in model.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in named} | flags


def assert_same(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = everything(model)
    assert found.keys() == expected.keys()
    assert [n for n in expected if not torch.equal(found[n], expected[n])] == []


def logged(run: GateTrainer) -> list[dict[str, Any]]:
    """The logged values of the gates."""
    return [
        {k: v for k, v in entry.items() if k == "step" or k.startswith("gates/")}
        for entry in run.state.log_history
    ]


def check(
    adapters: str, preset: str, stops: tuple[int, ...], folder: Path, architecture: str = "roberta"
) -> None:
    model = fresh(adapters, preset, architecture)
    whole = trainer(model, folder)
    whole.train()
    expected = everything(model)
    start = everything(fresh(adapters, preset, architecture))
    moved = [n for n in expected if n.endswith("latent") and not torch.equal(expected[n], start[n])]
    assert moved, "the training is one"
    if preset == "structured":
        assert {gate.hardness for gate in leaf_gates(model)} == {1.0}  # type: ignore[attr-defined]
    for stop in stops:
        again = fresh(adapters, preset, architecture)
        run = trainer(again, folder / "again", save_strategy="no")
        run.train(resume_from_checkpoint=str(folder / f"checkpoint-{stop}"))
        assert_same(again, expected)
        assert run.gate_history == whole.gate_history, stop
        assert logged(run) == logged(whole), stop


def test_a_resumed_run_ends_with_the_tensors_of_an_uninterrupted_one(tmp_path: Path) -> None:
    check("peft", "structured", (6, 13), tmp_path)


def test_so_does_one_with_equal_sizes(tmp_path: Path) -> None:
    check("add_lora", "uniform", (6,), tmp_path, "llama")


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("adapters", ADAPTERS)
def test_so_it_does_at_any_stop_for_all_adapters_and_presets(
    adapters: str, preset: str, tmp_path: Path
) -> None:
    check(adapters, preset, STOPS, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"roberta"}))
def test_so_it_does_for_all_architectures(architecture: str, tmp_path: Path) -> None:
    check("native", "structured", (6, 13), tmp_path, architecture)


@pytest.mark.thorough
def test_a_training_for_more_epochs_keeps_what_was_decided(tmp_path: Path) -> None:
    model = fresh("add_lora", "structured")
    trainer(model, tmp_path, save_steps=STEPS).train()
    closed = [gate.closed() for gate in leaf_gates(model)]
    for again in (model, fresh("add_lora", "structured")):
        run = trainer(again, tmp_path / "more", max_steps=2 * STEPS, save_strategy="no")
        run.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS}"))
        assert run.state.global_step == 2 * STEPS
        found = [gate.closed() for gate in leaf_gates(again)]
        assert all(torch.equal(f, c) for f, c in zip(found, closed, strict=True))


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A checkpoint after six steps."""
    run = trainer(fresh("peft", "structured"), tmp_path, save_steps=6)
    run.add_callback(StopAfter(6))
    run.train()
    return tmp_path / "checkpoint-6"


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_a_right_resume_says_nothing_of_missing_keys(
    stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(fresh("peft", "structured"), tmp_path / "again", max_steps=7, save_strategy="no")
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        run.train(resume_from_checkpoint=str(stopped))
    finally:
        logger.removeHandler(caplog.handler)
    assert [r.getMessage() for r in caplog.records if "keys" in r.getMessage()] == []


def test_a_resumed_run_whose_history_is_gone_says_so(
    stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (stopped / "gate_history.json").unlink()
    run = trainer(fresh("peft", "structured"), tmp_path / "again", max_steps=7, save_strategy="no")
    run.train(resume_from_checkpoint=str(stopped))
    assert "gate_history starts at this checkpoint" in caplog.text


@pytest.mark.parametrize(
    "other", [("no LoRA", "structured"), ("peft", "reference"), ("native", "structured")]
)
def test_a_checkpoint_of_another_gated_model_is_refused_and_changes_nothing(
    other: tuple[str, str], stopped: Path, tmp_path: Path
) -> None:
    model = fresh(*other)
    before = everything(model)
    with pytest.raises(GatedFormatError, match=r"checkpoint-6: was written by a model with other"):
        trainer(model, tmp_path / "again").train(resume_from_checkpoint=str(stopped))
    assert_same(model, before)


def test_an_unfinished_checkpoint_is_refused(stopped: Path, tmp_path: Path) -> None:
    (stopped / "finegates.json").unlink()
    run = trainer(fresh("peft", "structured"), tmp_path / "again")
    with pytest.raises(ValueError, match=r"checkpoint-6 has no gates: .* incomplete"):
        run.train(resume_from_checkpoint=str(stopped))


def test_a_checkpoint_without_gates_is_resumed_as_trainer_does(tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_steps": 2}
    models = []
    for resumed in (None, str(tmp_path / "checkpoint-2")):
        torch.manual_seed(0)
        models.append(with_peft(tiny_model("roberta", dtype=torch.float32)))
        run = trainer(models[-1], tmp_path, **settings)
        run.expect_gates = False
        run.train(resume_from_checkpoint=resumed)
    assert_same(models[1], everything(models[0]))
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").is_file()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("adapters", ADAPTERS)
@pytest.mark.parametrize("preset", ["reference", "paper_v1"])
def test_the_best_model_comes_back_whole(adapters: str, preset: str, tmp_path: Path) -> None:
    model = fresh(adapters, preset)
    seen: dict[str, Tensor] = {}

    class Note(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = str(tmp_path / f"checkpoint-{state.global_step}")
            seen.update({f"{folder} {n}": t for n, t in everything(model).items()})

    run = trainer(
        model,
        tmp_path,
        max_steps=6,
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # so that the best is not the last checkpoint
    )
    run.add_callback(Note())
    run.train()
    best = str(run.state.best_model_checkpoint)
    assert not best.endswith("-6")
    assert_same(model, {n: seen[f"{best} {n}"] for n in everything(model)})


@pytest.mark.sampled(3)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("adapters", ADAPTERS)
def test_a_checkpoint_and_a_saved_model_load_to_the_same_logits(
    adapters: str, preset: str, tmp_path: Path
) -> None:
    model = fresh(adapters, preset)
    run = trainer(model, tmp_path, max_steps=5, save_steps=5)
    run.train()
    run.save_model(str(tmp_path / "model"))
    expected = output(model.eval(), tokens())
    for folder in ("checkpoint-5", "model"):
        again = fg.load(tmp_path / folder)
        assert type(again) is type(model)
        assert torch.equal(output(again, tokens()), expected)
        assert_same(again, everything(model))
        small = fg.compact(again)
        assert torch.equal(output(small, tokens()), output(fg.compact(model), tokens()))


@pytest.mark.parametrize("adapters", ADAPTERS)
def test_from_pretrained_refuses_a_checkpoint(adapters: str, tmp_path: Path) -> None:
    model = fresh(adapters, "reference")
    trainer(model, tmp_path).save_model(str(tmp_path / "model"))
    for auto in (AutoModel, AutoModelForSequenceClassification):
        with pytest.raises(ValueError, match="finegates-gated"):
            auto.from_pretrained(tmp_path / "model")
    # These classes need no model type, and use default sizes without a configuration.
    for kind in (RobertaForSequenceClassification, LlamaModel, T5Model, GPT2Model, DebertaV2Model):
        with pytest.raises(Exception, match=r"finegates\.load\(folder\) reads it"):
            kind.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="adapter_config"):
        peft.PeftModel.from_pretrained(tiny_model("roberta"), tmp_path / "model")


def test_a_stock_checkpoint_in_the_way_is_replaced_as_a_whole(tmp_path: Path) -> None:
    tiny_model("roberta").save_pretrained(tmp_path / "model")  # type: ignore[operator]
    trainer(fresh("no LoRA", "reference"), tmp_path).save_model(str(tmp_path / "model"))
    fg.load(tmp_path / "model")
    with pytest.raises(ValueError, match="finegates-gated"):
        AutoModel.from_pretrained(tmp_path / "model")


def test_gates_seen_closed_before_a_stop_count_as_reopened_after_it(tmp_path: Path) -> None:
    def watched(model: nn.Module) -> GateHistory:
        history = GateHistory()
        history.watch(model, None, None)
        return history

    model = fresh("no LoRA", "structured")
    first = leaf_gates(model)[0]
    total = sum(gate.size for gate in leaf_gates(model))
    before = watched(model)
    begin = (TrainingArguments(str(tmp_path), use_cpu=True), TrainerState(), TrainerControl())
    before.on_train_begin(*begin)
    with torch.no_grad():
        first.latent[:3] = -1.0  # type: ignore[operator, index]
    before.on_epoch_end(*begin)
    before.save(tmp_path)
    with torch.no_grad():
        first.latent[:2] = 1.0  # type: ignore[operator, index]
    after = GateHistory()
    after.watch(model, None, tmp_path)
    after.on_train_begin(*begin)
    after.on_epoch_end(*begin)
    assert after.entries[:2] == before.entries
    assert after.entries[-1]["reopened"] == pytest.approx(2 / total)
