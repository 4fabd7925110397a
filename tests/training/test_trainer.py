"""The trainer: gates move, the penalty is part of the loss, faults stop it."""

import math

import pytest
import torch
from transformers import Trainer, TrainingArguments

from finegates.budget import macs, planned_macs
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.draw import GateDraw
from finegates.gates.gated_linear import gated_layers
from finegates.gates.monitor import summarise_gates
from finegates.lora import add_lora
from finegates.training.trainer import GateTrainer, NonFiniteLossError
from support.tiny import VOCABULARY, tiny_model


def rows(count: int = 32) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (count, 6), generator=generator)
    return [{"input_ids": row, "labels": int(row[0]) % 2} for row in ids]


def trainer(model, tmp_path, epochs=1, lr=1e-2, arguments=None, **kwargs):
    settings = dict(
        output_dir=str(tmp_path),
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        learning_rate=lr,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="epoch",
        seed=1,
    )
    given = TrainingArguments(**{**settings, **(arguments or {})})
    return GateTrainer(model=model, args=given, train_dataset=rows(), **kwargs)


def fresh(**config):
    return attach(
        tiny_model("roberta", dtype=torch.float32), GateConfig(**{"preset": "reference", **config})
    )


def moved(before: dict, model) -> set[str]:
    return {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}


def snapshot(model) -> dict:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_every_gate_and_nothing_frozen_moves_in_training(tmp_path):
    model = fresh(target=0.4)
    before = snapshot(model)
    wanted = {n for n, p in model.named_parameters() if p.requires_grad}
    trainer(model, tmp_path).train()
    changed = moved(before, model)
    assert changed <= wanted
    gates = {n for n in wanted if n.endswith(".latent")}
    assert gates <= changed
    assert len(gates) == 2 * len(gated_layers(model))


def test_a_gate_left_out_of_the_optimizer_is_noticed_by_that_check(tmp_path):
    model = fresh(target=0.4)
    silent = next(n for n, _ in model.named_parameters() if n.endswith(".latent"))
    dict(model.named_parameters())[silent].requires_grad_(False)
    before = snapshot(model)
    trainer(model, tmp_path).train()
    gates = {n for n, _ in model.named_parameters() if n.endswith(".latent")}
    assert gates - moved(before, model) == {silent}


def test_the_penalty_drives_the_open_fraction_towards_the_target(tmp_path):
    model = fresh(target=0.4, preset="paper_v1")
    run = trainer(model, tmp_path, epochs=6, learning_rates={"gates": 5e-2})
    run.train()
    first, last = run.gate_history[0], run.gate_history[-1]
    assert first["mean_open_probability"] > 0.95
    assert last["mean_open_probability"] < 0.8
    assert [s["epoch"] for s in run.gate_history] == list(range(7))


def test_training_loss_is_task_loss_plus_weighted_penalty_and_evaluation_is_not(tmp_path):
    model = fresh(target=0.4, penalty_weight=7.0, noise_std=0.0)
    run = trainer(model, tmp_path)
    batch = {
        k: torch.stack([torch.as_tensor(r[k]) for r in rows(8)]) for k in ("input_ids", "labels")
    }
    plain = model.eval()(**batch).loss
    assert run.compute_loss(model, dict(batch)).item() == pytest.approx(plain.item())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    total = run.compute_loss(model.train(), dict(batch)).item()
    assert total == pytest.approx(plain.item() + 7.0 * run.penalty().item(), rel=1e-5)


def test_groups_get_their_own_learning_rates(tmp_path):
    model = attach(
        add_lora(tiny_model("bert", dtype=torch.float32)), GateConfig(preset="reference")
    )
    run = trainer(model, tmp_path, lr=1e-3, learning_rates={"gates": 5e-2, "low_rank": 2e-3})
    rates = {group["kind"]: group["lr"] for group in run.create_optimizer().param_groups}
    assert rates == {"gates": 5e-2, "low_rank": 2e-3, "biases": 1e-3, "head": 1e-3}
    with pytest.raises(ValueError, match="unknown parameter groups"):
        trainer(model, tmp_path, learning_rates={"gate": 1.0})


def test_a_loss_that_is_not_finite_stops_training_with_the_step_and_a_remedy(tmp_path):
    model = fresh()
    model.classifier.out_proj.bias.data.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match=r"nan at step 0 .* lower learning rate"):
        trainer(model, tmp_path).train()


def test_a_model_with_everything_frozen_is_refused(tmp_path):
    model = tiny_model("bert", dtype=torch.float32).requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        trainer(model, tmp_path).train()


def test_gate_metrics_stand_beside_the_loss_of_each_epoch(tmp_path):
    run = trainer(fresh(), tmp_path, epochs=2)
    run.train()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(logged) == 2
    assert all("gates/realised_sparsity" in entry for entry in logged)


def test_training_without_gates_is_plain_training(tmp_path):
    run = trainer(tiny_model("bert", dtype=torch.float32), tmp_path)
    run.train()
    assert run.penalty is None
    assert run.gate_history == []


@pytest.mark.parametrize("checkpoints", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_gates_are_drawn_at_once_unless_layers_go_back_on_their_own(tmp_path, checkpoints):
    model = fresh()
    if checkpoints is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpoints)
    run = trainer(model, tmp_path)
    draws = []

    class Watched(GateDraw):
        def __enter__(self):
            draws.append(self)
            return super().__enter__()

    run._draw.__class__ = Watched
    run.train()
    assert bool(draws) != (checkpoints == {"use_reentrant": True})
    assert all(gate._drawn is None for gate in run._draw.gates)


def test_shared_gates_draw_for_themselves(tmp_path):
    model = fresh(preset="structured")
    drawn = trainer(model, tmp_path)._draw.gates
    sides = [gate for layer in gated_layers(model).values() for _, gate in layer.gates()]
    uses = [leaf for side in sides for leaf in side.leaves()]
    assert {gate: uses.count(gate) for gate in drawn} == dict.fromkeys(drawn, 1)
    assert len(drawn) < len(set(uses))


# Wide enough that one dimension of a head is much less than one percentage point.
WIDE = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4}
WIDE_LLAMA = {**WIDE, "head_dim": 24, "num_key_value_heads": 2}


def wide(architecture, **config):
    sizes = WIDE_LLAMA if architecture == "llama" else WIDE
    model = tiny_model(architecture, dtype=torch.float32, **sizes)
    if architecture == "llama":
        model.config.pad_token_id = 0
    return attach(model, GateConfig(preset="structured", sequence_length=32, **config))


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_shared_gates_end_at_their_budget_and_decided(tmp_path, target):
    model = wide("roberta", target=target)
    trainer(model, tmp_path, epochs=8).train()
    kept = planned_macs(model, 1, 32).total / macs(model, 1, 32).total
    assert abs(kept - (1 - target)) <= 0.02
    assert summarise_gates(model)["half_open"] <= 0.05


def test_without_its_schedule_a_training_misses_the_budget_by_that_check(tmp_path):
    model = wide("roberta", target=0.5)
    run = trainer(model, tmp_path, epochs=8)
    for callback in [c for c in run.callback_handler.callbacks if "Schedule" in type(c).__name__]:
        run.remove_callback(callback)
    run.train()
    kept = planned_macs(model, 1, 32).total / macs(model, 1, 32).total
    assert abs(kept - 0.5) > 0.02


def test_gates_that_are_decided_stay_so_in_a_further_training(tmp_path):
    model = wide("roberta", target=0.5)
    first = trainer(model, tmp_path, epochs=8)
    first.train()
    closed = [gate.closed() for gate in first.penalty.gates()]
    assert any(bool(mask.any()) for mask in closed)
    for run in (first, trainer(model, tmp_path, epochs=2)):
        before = snapshot(model)
        run.train()
        assert all(
            torch.equal(g.closed(), c) for g, c in zip(run.penalty.gates(), closed, strict=True)
        )
        assert moved(before, model), "the rest is trained on"


def test_the_best_checkpoint_is_not_brought_back_over_the_budget(tmp_path):
    model = wide("roberta", target=0.5)
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    with pytest.raises(ValueError, match=r"load_best_model_at_end .* not met the budget; leave"):
        trainer(model, tmp_path, arguments=best, eval_dataset=rows(8))


def test_several_devices_are_told_that_decided_gates_have_no_gradient(tmp_path):
    quiet = {"ddp_find_unused_parameters": False}
    assert trainer(wide("roberta"), tmp_path, arguments=quiet).args.ddp_find_unused_parameters
    assert not trainer(fresh(), tmp_path, arguments=quiet).args.ddp_find_unused_parameters


def test_operations_are_those_of_the_plain_trainer_though_counted_once(tmp_path, monkeypatch):
    model = fresh()
    counts = []
    count = model.num_parameters
    monkeypatch.setattr(model, "num_parameters", lambda **k: counts.append(k) or count(**k))
    run = trainer(model, tmp_path, epochs=2)
    run.train()
    assert len(counts) == 1
    per_token = 6 * count(exclude_embeddings=True)
    assert run.state.total_flos == per_token * 2 * 32 * 6
    batch = {"input_ids": torch.zeros(3, 5, dtype=torch.long)}
    assert run.floating_point_ops(batch) == Trainer.floating_point_ops(run, batch)
    assert run.floating_point_ops({}) == 0
