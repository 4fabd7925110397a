"""Stock checkpoints: refused if they would not represent the model, otherwise written."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, load_checkpoint_in_model
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from finegates.compaction import CompactLinear, CostModel, compact, use_products
from finegates.formats.compact import load, save
from finegates.formats.stock import uniform
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.lora import add_lora
from finegates.modules.stock_checkpoints import StockCheckpointError
from finegates.training.trainer import GateTrainer
from support import tiny
from support.paths import ROOT

ARCHITECTURES = sorted(tiny.ARCHITECTURES)


def with_closed_inputs(architecture: str, variant: str = "base", **overrides: object) -> nn.Module:
    """A model compact on input sides only: nearly all kept names have their old shapes."""
    model = attach(
        tiny.tiny_model(architecture, variant, **overrides), GateConfig(preset="structured")
    )
    for part in model.finegates_structure:  # type: ignore[union-attr]
        part.inputs.latent.data[:4] = -1.0
    return compact(model.eval())


def loaded(model: nn.Module, folder: Path) -> nn.Module:
    save(model, folder / "saved")
    return load(folder / "saved")


def pickled(model: nn.Module, folder: Path) -> nn.Module:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    found: nn.Module = torch.load(stream, weights_only=False)
    return found


WAYS: dict[str, Callable[[nn.Module, Path], nn.Module]] = {
    "compact": lambda model, _: model,
    "loaded": loaded,
    "copied": lambda model, _: copy.deepcopy(model),
    "pickled": pickled,
    "with products": lambda model, _: use_products(model, CostModel(onednn_from=1)),
    "compacted again": lambda model, _: compact(model, inplace=True),
}


def refuses(model: nn.Module, folder: Path) -> None:
    for name in ("save_pretrained", "push_to_hub"):
        with pytest.raises(StockCheckpointError, match=r"finegates\.save\(model.*uniform\(model\)"):
            getattr(model, name)(str(folder / "stock"))
    assert not (folder / "stock").exists()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_compact_model_is_refused_before_anything_is_written(
    architecture: str, tmp_path: Path
) -> None:
    refuses(with_closed_inputs(architecture), tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_it_is_refused_however_it_came_about(way: str, tmp_path: Path) -> None:
    refuses(WAYS[way](with_closed_inputs("llama"), tmp_path), tmp_path)


def test_a_model_that_has_a_compact_one_inside_is_refused_too(tmp_path: Path) -> None:
    small = with_closed_inputs("bert")

    class Around(PreTrainedModel):
        config_class = type(small.config)
        _supports_sdpa = True

        def __init__(self, config: object) -> None:
            super().__init__(config)  # type: ignore[arg-type]
            self.inner = small

    around = Around(small.config)
    with pytest.raises(StockCheckpointError, match=r"inner\.encoder\.layer\.0"):
        around.save_pretrained(tmp_path / "stock")
    assert not (tmp_path / "stock").exists()


def test_one_compact_layer_is_enough(tmp_path: Path) -> None:
    model = attach(
        tiny.tiny_model("bert"), GateConfig(preset="reference", modules=("*0.intermediate.dense",))
    )
    refuses(compact(model.eval()), tmp_path)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "t5"])
def test_a_dense_model_with_other_products_is_written_and_read_back(
    architecture: str, tmp_path: Path
) -> None:
    dense = tiny.tiny_model(architecture, "language", dtype=torch.float32)
    expected = tiny.output(dense, tiny.tokens())
    fast = use_products(dense, CostModel(onednn_from=1))
    assert any(isinstance(module, CompactLinear) for module in fast.modules())
    fast.save_pretrained(tmp_path)  # type: ignore[operator]
    again = type(fast).from_pretrained(tmp_path).eval()  # type: ignore[attr-defined]
    assert torch.equal(tiny.output(again, tiny.tokens()), expected)


def test_the_stock_model_of_a_compact_one_is_written(tmp_path: Path) -> None:
    small = with_closed_inputs("llama")
    uniform(small).save_pretrained(tmp_path)  # type: ignore[operator]
    again = type(small).from_pretrained(tmp_path, dtype=torch.float64)  # type: ignore[attr-defined]
    found, expected = (tiny.output(m.eval(), tiny.tokens()) for m in (again, small))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def training(folder: Path, **settings: object) -> dict[str, object]:
    rows = {"labels": [0, 1, 0, 1], "input_ids": [[3, 4, 5]] * 4, "attention_mask": [[1, 1, 1]] * 4}
    arguments = TrainingArguments(
        folder, report_to="none", use_cpu=True, num_train_epochs=2, learning_rate=1e-2, **settings
    )
    return {"args": arguments, "train_dataset": Dataset.from_dict(rows)}


def test_checkpoints_of_a_compact_models_training_are_saves_and_can_be_resumed(
    tmp_path: Path,
) -> None:
    options = {"dtype": torch.float32, "hidden_dropout_prob": 0.0}
    options["attention_probs_dropout_prob"] = 0.0
    small = with_closed_inputs("bert", "classifier", **options)
    start = copy.deepcopy(small)
    settings = training(tmp_path / "run", save_strategy="epoch", per_device_train_batch_size=4)
    GateTrainer(model=small, **settings).train()  # type: ignore[arg-type]
    checkpoint = tmp_path / "run" / "checkpoint-1"
    again = load(checkpoint)
    assert not torch.equal(tiny.output(again, tiny.tokens()), tiny.output(start, tiny.tokens()))
    resumed = GateTrainer(model=start, **settings)  # type: ignore[arg-type]
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for (name, found), expected in zip(start.named_parameters(), small.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_the_stock_trainer_says_what_to_do_instead(tmp_path: Path) -> None:
    small = with_closed_inputs("bert", "classifier", dtype=torch.float32)
    settings = training(tmp_path / "run", save_strategy="no")
    trainer = Trainer(model=small, **settings)  # type: ignore[arg-type]
    trainer.train()
    save(small, tmp_path / "small")
    with pytest.raises(StockCheckpointError, match=r"finegates\.GateTrainer"):
        trainer.save_model()


@pytest.mark.parametrize("kind", ["gated", "compact", "compact with an adapter"])
def test_accelerate_writes_no_weights_that_from_pretrained_would_mix_with_random_ones(
    kind: str, tmp_path: Path
) -> None:
    """It writes weights without a configuration, so from_pretrained would use the default one."""
    if kind == "gated":
        model = attach(tiny.tiny_model("bert"), GateConfig())
    else:
        model = with_closed_inputs("bert", "classifier")
    if kind == "compact with an adapter":
        model = add_lora(model, rank=2)
    accelerator = Accelerator(cpu=True)
    with pytest.raises(StockCheckpointError, match=r"finegates\.save\(.*Accelerator\.save_state"):
        accelerator.save_model(accelerator.prepare(model), tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_states_of_accelerate_come_back_into_the_same_gates(tmp_path: Path) -> None:
    model = attach(tiny.tiny_model("llama"), GateConfig())
    tiny.scatter_gates(model)
    expected = tiny.output(model.eval(), tiny.tokens())
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    accelerator.save_state(str(tmp_path / "state"))
    tiny.scatter_gates(model, seed=1)
    assert not torch.equal(tiny.output(prepared, tiny.tokens()), expected)
    accelerator.load_state(str(tmp_path / "state"))
    assert torch.equal(tiny.output(prepared, tiny.tokens()), expected)


def test_accelerate_writes_a_model_without_gates_as_before(tmp_path: Path) -> None:
    attach(tiny.tiny_model("bert"), GateConfig())
    dense = tiny.tiny_model("gpt2")
    accelerator = Accelerator(cpu=True)
    accelerator.save_model(accelerator.prepare(dense), tmp_path)
    again = tiny.tiny_model("gpt2", seed=1)
    load_checkpoint_in_model(again, tmp_path)
    assert torch.equal(tiny.output(again, tiny.tokens()), tiny.output(dense, tiny.tokens()))


def test_a_sentence_transformer_is_refused_and_each_way_of_the_message_works(
    tmp_path: Path,
) -> None:
    library = pytest.importorskip("sentence_transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1, "a": 3, "b": 4, "c": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    dense = tiny.tiny_model("bert", "base", dtype=torch.float32)
    dense.save_pretrained(tmp_path / "dense")  # type: ignore[operator]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path / "dense")
    whole = library.SentenceTransformer(str(tmp_path / "dense"), device="cpu")
    small = attach(whole[0].model, GateConfig(preset="structured")).eval()
    tiny.scatter_gates(small)
    small = whole[0].model = compact(small)
    texts = ["a b c", "a"]
    expected = whole.encode(texts, convert_to_tensor=True)

    with pytest.raises(StockCheckpointError, match="SentenceTransformer around it"):
        whole.save_pretrained(str(tmp_path / "whole"))
    whole[0].model = loaded(small, tmp_path)
    assert torch.equal(whole.encode(texts, convert_to_tensor=True), expected)
    whole[0].model = uniform(small)
    whole.save_pretrained(str(tmp_path / "stock"))
    again = library.SentenceTransformer(str(tmp_path / "stock"), device="cpu")
    found = again.encode(texts, convert_to_tensor=True)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_of_peft_that_is_imported_after_the_gates_is_not_written_alone(tmp_path):
    program = """if True:
        import sys
        import finegates
        from support.tiny import tiny_model
        model = finegates.attach(tiny_model("bert"))
        import peft
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["classifier"]))
        model.save_pretrained(sys.argv[1])
        """
    command = [sys.executable, "-c", program, str(tmp_path / "adapter")]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    ran = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert "StockCheckpointError: nothing was written" in ran.stderr
    assert not (tmp_path / "adapter").exists()
