"""Runs on plain text: training, records, refusals, comparison."""

from __future__ import annotations

import shutil

import pytest
import torch

import finegates.suite.runs.train_llama as runs_module
from finegates.compaction import compact
from finegates.formats.compact import load
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.suite.config.llama import CausalModel
from finegates.suite.config.llama_runs import (
    Run,
    gates_of,
    posttraining_runs,
    pretraining_runs,
    pruning_runs,
    run_named,
    title_of,
)
from finegates.suite.config.load import ConfigError
from finegates.suite.data.packing import HeldOut
from finegates.suite.models.llama import load_causal
from finegates.suite.models.sources import ModelError
from finegates.suite.runs.launch import train_and_write
from finegates.suite.runs.llama_record import read_causal_record, read_causal_records
from finegates.suite.runs.llama_trainer import CausalTrainer
from finegates.suite.runs.perplexity import greedy_tokens, held_out_prediction
from finegates.suite.runs.prune_llama import prune_runs
from finegates.suite.runs.record import write_record
from finegates.suite.runs.signed import RecordError
from finegates.suite.runs.train_llama import checkpoint_folder, train_run
from finegates.training.micro_batches import StepCut
from finegates.training.trainer import NonFiniteLossError
from support.causal_runs import DENSE, GATED, GATES, trained
from support.causal_tier import causal_tier, llama_section, write_llama
from support.tiny import scatter_gates


def trainer_of(monkeypatch) -> list[CausalTrainer]:
    """The trainers of all later runs."""
    made: list[CausalTrainer] = []
    init = CausalTrainer.__init__

    def remember(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(CausalTrainer, "__init__", remember)
    return made


def test_posttraining_trains_gates_and_nothing_else(folder, tmp_path, monkeypatch):
    made = trainer_of(monkeypatch)
    tier = causal_tier(folder)
    record = trained(tier, GATES)
    trainer = made[0]
    before, _ = load_causal(CausalModel(name="tiny", path=str(folder / "llama")), "")
    after = dict(trainer.model.named_parameters())
    for name, parameter in before.named_parameters():
        kept = after[name if name in after else name.replace("_proj.", "_proj.base.")]
        assert torch.equal(kept, parameter), name
        assert kept.grad is None
        assert not kept.requires_grad
    moved = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert record.budget.parameters.trainable == sum(p.numel() for p in moved)
    assert record.budget.parameters.gates == record.budget.parameters.trainable
    assert set(trainer.optimizer.state) == set(moved)
    assert record.start.loss != record.final.loss
    assert [point.step for point in record.curve] == [2, 4, 6, 8]
    assert [p.step for p in record.curve if p.held_out_loss is not None] == [4, 8]
    assert record.curve[-1].tokens == 8 * 4 * 16


def test_random_biases_change_the_model_before_any_training(folder):
    tier = causal_tier(folder)
    biased = trained(tier, Run("posttraining", "tiny", "biased", 0.2, 0))
    plain = trained(tier, Run("posttraining", "tiny", "reference", 0.2, 0))
    dense = prune_runs(tier, [(pruning_runs(tier)[0], None)])[0]
    assert plain.start.loss == pytest.approx(dense.final.loss, rel=1e-6)
    assert abs(biased.start.loss - plain.start.loss) > 1e-5
    assert biased.budget.parameters.biases > 0 == plain.budget.parameters.biases
    assert biased.compact.perplexity_difference < 1e-5


def test_random_biases_are_frozen_and_spare_the_head(folder):
    model, _ = load_causal(CausalModel(name="tiny", path=str(folder / "llama")), "")
    attach(model, GateConfig(preset="reference", random_biases=True, train_head=False))
    biases = {n: p for n, p in model.named_parameters() if n.endswith("bias")}
    assert len(biases) == 2 * 7
    assert not any(p.requires_grad or bool((p == 0).all()) for p in biases.values())
    assert model.lm_head.bias is None


def test_dense_and_gated_pretraining_share_start_and_tokens(folder, tmp_path, monkeypatch):
    seen: dict[str, list[torch.Tensor]] = {}
    made = trainer_of(monkeypatch)
    step = CausalTrainer.training_step

    def watch(self, model, inputs, *args, **kwargs):
        kind = "gated" if self.penalty is not None else "dense"
        seen.setdefault(kind, []).append(inputs["input_ids"].clone())
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(CausalTrainer, "training_step", watch)
    tier = causal_tier(folder).model_copy(update={"results": str(tmp_path)})
    dense, gated = trained(tier, DENSE), trained(tier, GATED)
    assert dense.start.loss == pytest.approx(gated.start.loss, rel=1e-6)
    assert all(map(torch.equal, seen["dense"], seen["gated"]))
    assert len(seen["dense"]) == 8
    assert dense.final.loss < dense.start.loss
    assert "model.layers.0.mlp.down_proj" not in gated.closed
    counts = gated.budget.parameters
    assert counts.trainable == counts.all + counts.gates
    # Their output can be loaded: a stock model, and a compact one.
    source = CausalModel(name="tiny", dense="tiny")
    model, _ = load_causal(source, tier.results)
    assert torch.equal(model.model.embed_tokens.weight, made[0].model.get_input_embeddings().weight)
    small = load(tmp_path / "llama/models/tiny/trained/gated-s0.4/seed0")
    assert sum(p.numel() for p in small.parameters()) == gated.compact.parameters


def test_the_target_waits_for_its_step(folder, tmp_path, monkeypatch):
    targets = []
    step = CausalTrainer.training_step
    monkeypatch.setattr(
        CausalTrainer,
        "training_step",
        lambda self, *a, **k: targets.append(self.penalty.sparsity) or step(self, *a, **k),
    )
    trained(causal_tier(folder).model_copy(update={"results": str(tmp_path)}), GATED)
    assert targets == [0.0, 0.0] + [0.4] * 6


@pytest.mark.sampled(2)
@pytest.mark.parametrize("run", [GATES, GATED], ids=lambda run: run.label)
@pytest.mark.parametrize(
    "training", [{"micro_batch_size": 1}, {"gradient_checkpointing": True}], ids=str
)
def test_cutting_a_batch_and_recomputing_change_nothing(folder, tmp_path, run, training):
    tier = causal_tier(folder).model_copy(update={"results": str(tmp_path)})
    other = causal_tier(folder, **training).model_copy(update={"results": str(tmp_path)})
    whole, cut = trained(tier, run), trained(other, run)
    assert cut.final.loss == pytest.approx(whole.final.loss, rel=2e-5)
    for ours, theirs in zip(cut.curve, whole.curve, strict=True):
        assert ours.task_loss == pytest.approx(theirs.task_loss, rel=1e-4)


def test_the_penalty_counts_once_however_a_batch_is_cut(folder, tmp_path, monkeypatch):
    def penalised(accumulation: int) -> float:
        made = trainer_of(monkeypatch)
        tier = causal_tier(folder, micro_batch_size=4 // accumulation, steps=2, eval_every=2)
        trained(tier.model_copy(update={"results": str(tmp_path)}), GATES)
        log = made[-1].state.log_history[0]
        return log["loss"] - log["task_loss"]

    assert penalised(4) == pytest.approx(penalised(1), rel=1e-5)
    # The planted error: the whole penalty in each micro-batch.
    monkeypatch.setattr(StepCut, "even_share", 1.0)
    assert penalised(4) == pytest.approx(4 * penalised(1), rel=1e-3)


def test_bfloat16_trains_and_its_record_is_measured_in_float32(folder, tmp_path):
    tier = causal_tier(folder, precision="bfloat16").model_copy(update={"results": str(tmp_path)})
    record = trained(tier, GATES)
    assert record.config.training.precision == "bfloat16"
    assert record.compact.perplexity_difference < 1e-5


@pytest.mark.sampled
@pytest.mark.parametrize("random_biases", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_compact_model_predicts_and_generates_what_the_gated_one_does(
    folder, seed, random_biases
):
    model, tokenizer = load_causal(CausalModel(name="tiny", path=str(folder / "llama")), "")
    attach(model, GateConfig(preset="reference", train_head=False, random_biases=random_biases))
    scatter_gates(model, seed)
    small = compact(model)
    held_out = HeldOut(["a b c d e f g", "d e f g"] * 5, tokenizer, 16)
    gated, shrunk = (held_out_prediction(m, held_out) for m in (model, small))
    assert abs(shrunk.perplexity / gated.perplexity - 1) < 1e-5
    assert gated.bits_per_character > 0
    prompts = held_out.inputs[:2, :6]
    assert torch.equal(greedy_tokens(model, prompts, 12), greedy_tokens(small, prompts, 12))
    # The check notices a difference if there is one.
    with torch.no_grad():
        small.model.norm.weight[0] *= 2
    changed = held_out_prediction(small, held_out)
    assert abs(changed.perplexity / gated.perplexity - 1) > 1e-5


def test_pruning_matches_each_layer_of_the_gated_run(folder, tmp_path):
    tier = causal_tier(folder).model_copy(update={"results": str(tmp_path)})
    gated = {run: trained(tier, run) for run in posttraining_runs(tier) if run.method != "biased"}
    runs = pruning_runs(tier)
    records = prune_runs(tier, [(r, gated[r.matched()] if r.criterion else None) for r in runs])
    assert [r.method for r in records[:4]] == [
        "dense", "random-as-reference", "magnitude-as-reference", "second_moment-as-reference",
    ]  # fmt: skip
    losses = set()
    for run, record in zip(runs, records, strict=True):
        if run.criterion is not None:
            assert record.closed == gated[run.matched()].closed
            assert record.realised_sparsity == gated[run.matched()].realised_sparsity
        if run.method.endswith("-as-structured"):
            assert record.realised_sparsity > 0
            losses.add(record.final.loss)
    assert len(losses) == 3  # each criterion makes another choice
    assert records[0].final == records[0].start
    with pytest.raises(ValueError, match="needs the record of reference-s0.2"):
        prune_runs(tier, [(runs[1], None)])


def test_a_sequence_longer_than_the_positions_is_refused(folder, tmp_path):
    section = llama_section(folder, length=40)
    with pytest.raises(ConfigError, match="sequences of 40 tokens do not fit 32 positions"):
        causal_tier(folder, section)
    del section["pretraining"]
    tier = causal_tier(folder, section).model_copy(update={"results": str(tmp_path)})
    with pytest.raises(ModelError, match=r"'tiny' has 32 positions, sequences have 40 tokens"):
        train_run(tier, GATES, progress=False)
    assert not list(tmp_path.rglob("*"))


def test_a_vocabulary_of_another_model_is_refused(tmp_path):
    from finegates.suite.data.tokenizer import train_tokenizer

    write_llama(tmp_path / "llama")
    train_tokenizer([" ".join(map(str, range(50)))]).save_pretrained(tmp_path / "llama")
    tier = causal_tier(tmp_path, llama_section(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelError, match=r"embeddings for 15 tokens, its tokenizer has 55"):
        train_run(tier, GATES, progress=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_is_not_there_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="cannot load model 'x' from .*check the folder"):
        load_causal(CausalModel(name="x", path=str(tmp_path)), "")
    with pytest.raises(ModelError, match="check the network"):
        load_causal(CausalModel(name="x", hub="no/such", revision="0" * 40), "")


def test_a_loss_that_diverges_stops_the_run(folder, tmp_path):
    tier = causal_tier(folder, learning_rate=1e30).model_copy(update={"results": str(tmp_path)})
    with pytest.raises(NonFiniteLossError, match="lower learning rate"):
        train_run(tier, DENSE, progress=False)
    assert not list((tmp_path / "llama" / "models").glob("*"))


def test_a_finished_run_is_written_and_its_checkpoints_go(folder, tmp_path, monkeypatch):
    tier = causal_tier(folder, save_every=4).model_copy(update={"results": str(tmp_path)})
    monkeypatch.setattr("finegates.suite.runs.launch.configured_tier", lambda config: tier)
    path = GATES.record(tier.results)
    train_and_write({}, path, "digest")
    record = read_causal_record(path)
    assert record.code.digest == "digest"
    assert not checkpoint_folder(tier, GATES).exists()
    write_record(record, tmp_path / "copy.json")
    assert read_causal_records([tmp_path / "copy.json"]) == [record]


def test_damaged_records_are_refused(tmp_path):
    path = tmp_path / "r.json"
    with pytest.raises(RecordError, match="cannot read record"):
        read_causal_record(path)
    for text, message in (
        ("{", "is damaged"),
        ('{"format_version": 9}', "format version 9, expected 2"),
        ('{"format_version": 1}', "does not fit its schema"),
        ('{"format_version": 2}', "does not have the digest"),
    ):
        path.write_text(text)
        with pytest.raises(RecordError, match=message):
            read_causal_record(path)


def test_a_curve_goes_forward(folder, tmp_path):
    record = trained(causal_tier(folder), GATES)
    write_record(record, tmp_path / "r.json")
    assert read_causal_record(tmp_path / "r.json") == record
    backward = record.model_copy(update={"curve": record.curve[::-1]})
    write_record(backward, tmp_path / "r.json")
    with pytest.raises(RecordError, match="steps of the curve do not increase"):
        read_causal_record(tmp_path / "r.json")


def test_runs_are_found_by_their_record(folder):
    tier = causal_tier(folder)
    for run in [*pretraining_runs(tier), *posttraining_runs(tier), *pruning_runs(tier)]:
        assert run_named(tier, run.record(tier.results)) == run
        assert title_of(tier, run)
    assert gates_of(tier, DENSE) is None
    with pytest.raises(KeyError):
        run_named(tier, "elsewhere.json")


def test_no_run_leaves_its_model_inside_anothers(folder):
    tier = causal_tier(folder).model_copy(update={"seeds": [0, 1]})
    folders = [runs_module.model_folder(tier, run) for run in pretraining_runs(tier)]
    assert len(set(folders)) == len(folders) > 2
    assert not [a for a in folders for b in folders if b in a.parents]


def test_a_model_folder_appears_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    model, tokenizer = load_causal(CausalModel(name="tiny", path=str(folder / "llama")), "")
    monkeypatch.setattr(
        type(tokenizer), "save_pretrained", lambda *a, **k: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        runs_module._save_model(model, tokenizer, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    shutil.rmtree(tmp_path)
