"""Gated models on disk: restored completely, or refused with the folder and the reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainingArguments

import finegates as fg
from finegates.formats.gated import GatedFormatError
from finegates.gates.attachment import attach, attach_fixed, attach_gates
from finegates.gates.config import GateConfig
from finegates.gates.detachment import hold_gates
from finegates.gates.gated_linear import gated_layers, leaf_gates
from finegates.gates.stochastic import StochasticGate
from finegates.modules.stock_checkpoints import StockCheckpointError
from finegates.modules.tying import shares_embeddings
from finegates.training.trainer import GateTrainer
from support import tiny
from support.described import described_model
from support.described_types import CONFIGURATIONS, WAVES
from support.saved import edit, edit_tensors

OTHERS = CONFIGURATIONS.keys() - WAVES


def gated(architecture: str = "roberta", variant: str = "classifier", **config: Any) -> nn.Module:
    model = attach(tiny.tiny_model(architecture, variant), GateConfig(**config))
    tiny.scatter_gates(model)
    return model.eval()


def output(model: nn.Module) -> torch.Tensor:
    return tiny.output(model, tiny.tokens())


def held() -> nn.Module:
    return hold_gates(gated(preset="structured"))


def fixed() -> nn.Module:
    layers = gated_layers(gated(preset="reference"))
    generator = torch.Generator().manual_seed(0)
    values = {
        name: (torch.rand(layer.out_features, generator=generator).double().round(), None)
        for name, layer in layers.items()
    }
    return attach_fixed(tiny.tiny_model("roberta"), values)  # type: ignore[arg-type]


def without_configuration() -> nn.Module:
    model = tiny.tiny_model("roberta")
    gate = StochasticGate(12, "paper_v1", generator=torch.Generator().manual_seed(3))
    model = attach_gates(model, {"classifier.dense": (gate, None)})
    tiny.scatter_gates(model)
    return model


def with_random_biases() -> nn.Module:
    return gated("llama", "language", preset="reference", random_biases=True)


def inside() -> nn.Module:
    model = tiny.tiny_model("bert")
    attach(model.bert, GateConfig(preset="structured"))
    tiny.scatter_gates(model)
    return model


def named_layers() -> nn.Module:
    return gated(preset="reference", modules=("*intermediate.dense",), rows=False)


def in_half_precision() -> nn.Module:
    return gated("llama", "language", preset="structured").to(torch.bfloat16)


WAYS: dict[str, Callable[[], nn.Module]] = {
    "held": held,
    "fixed": fixed,
    "without configuration": without_configuration,
    "random biases": with_random_biases,
    "inside": inside,
    "named layers": named_layers,
    "half precision": in_half_precision,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_saved_model_computes_what_it_did_however_it_was_gated(way: str, tmp_path: Path) -> None:
    model = WAYS[way]().eval()
    fg.save(model, tmp_path / "model")
    again = fg.load(tmp_path / "model")
    assert torch.equal(output(again), output(model))
    assert again.state_dict().keys() == model.state_dict().keys()
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (again, model)]
    assert trained[0] == trained[1]
    assert torch.equal(output(fg.compact(again)), output(fg.compact(model)))


@pytest.mark.parametrize(
    "name", [*sorted(WAVES), *(pytest.param(n, marks=pytest.mark.slow) for n in sorted(OTHERS))]
)
def test_a_gated_model_of_every_described_type_is_read_back(name: str, tmp_path: Path) -> None:
    """Those on waves have a parameter that ignores the device of construction."""
    model = described_model(name)
    fg.attach(model, fg.GateConfig(target=0.05, sequence_length=9))
    fg.save(model, tmp_path / "gated")
    expected, found = model.state_dict(), fg.load(tmp_path / "gated").state_dict()
    assert expected.keys() == found.keys()
    tensors = [n for n, value in expected.items() if isinstance(value, torch.Tensor)]
    assert all(torch.equal(expected[n], found[n]) for n in tensors)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5", "bert"])
def test_a_weight_shared_with_the_embeddings_stays_shared(
    architecture: str, tmp_path: Path
) -> None:
    dense = tiny.tiny_model(architecture, "language", tie_word_embeddings=True)
    model = attach(dense, GateConfig(preset="structured"))
    tiny.scatter_gates(model)
    assert shares_embeddings(model)
    fg.save(model.eval(), tmp_path / "model")
    again = fg.load(tmp_path / "model")
    assert shares_embeddings(again)
    assert torch.equal(output(again), output(model))


def test_a_loaded_model_shares_its_gates_and_can_be_trained(tmp_path: Path) -> None:
    model = gated(preset="structured")
    fg.save(model, tmp_path / "model")
    again = fg.load(tmp_path / "model")
    assert len(leaf_gates(again)) == len(leaf_gates(model))
    parts = again.finegates_structure  # type: ignore[union-attr]
    assert {id(gate) for part in parts for gate in part.gates()} == {  # type: ignore[union-attr]
        id(gate) for gate in leaf_gates(again)
    }
    names = load_file(tmp_path / "model" / "model.safetensors")
    assert len([n for n in names if n.endswith(".latent")]) == len(leaf_gates(model))


def test_a_save_is_replaced_and_files_of_others_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    fg.save(gated(preset="reference"), folder)
    (folder / "tokenizer.json").write_text("{}")
    model = gated(preset="structured")
    fg.save(model, folder)
    assert torch.equal(output(fg.load(folder)), output(model))
    assert (folder / "tokenizer.json").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_path_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not an earlier save"):
        fg.save(gated(), tmp_path / "model")
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["mine.txt"]


class Wrapper(nn.Module):
    """A wrapper of an unknown class around a gated model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Any) -> Any:
        return self.inner(**inputs)


def test_what_could_not_be_made_again_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Wrapper is not a transformers model"):
        fg.save(Wrapper(gated()), tmp_path / "a")
    changed = gated()
    changed.roberta.encoder.layer[0].intermediate.intermediate_act_fn = nn.Tanh()
    with pytest.raises(ValueError, match="intermediate_act_fn"):
        fg.save(changed, tmp_path / "a")
    own = gated()
    own.__class__ = type("Own", (type(own),), {})
    with pytest.raises(ValueError, match="'Own' is not a model"):
        fg.save(own, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_wrappers_checkpoint_is_resumed_and_says_why_it_cannot_be_loaded(tmp_path: Path) -> None:
    def run(folder: Path, model: nn.Module) -> GateTrainer:
        arguments = TrainingArguments(
            str(folder),
            max_steps=4,
            save_steps=2,
            use_cpu=True,
            report_to="none",
            remove_unused_columns=False,
        )
        rows = [{"input_ids": torch.arange(3, 9), "labels": i % 2} for i in range(8)]
        return GateTrainer(model=model, args=arguments, train_dataset=rows)

    def wrapped() -> nn.Module:
        return Wrapper(gated(preset="structured").float())

    whole, resumed = wrapped(), wrapped()
    run(tmp_path / "a", whole).train()
    checkpoint = tmp_path / "a" / "checkpoint-2"
    run(tmp_path / "b", resumed).train(resume_from_checkpoint=str(checkpoint))
    for (name, found), expected in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(found, expected), name
    with pytest.raises(GatedFormatError, match=r"Wrapper is not a transformers model.*resume with"):
        fg.load(checkpoint)


@pytest.mark.parametrize("active", ["default", "second"])
def test_the_adapter_that_is_chosen_among_several_is_the_one_that_is_read_back(
    active: str, tmp_path: Path
) -> None:
    model = fg.add_lora(tiny.tiny_model("roberta"))
    model.add_adapter("second", model.peft_config["default"])  # type: ignore[operator, union-attr, index]
    model.set_adapter(active)  # type: ignore[operator]
    attach(model, GateConfig())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(generator=generator)
    fg.save(model.eval(), tmp_path / "model")
    assert torch.equal(output(fg.load(tmp_path / "model")), output(model))


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("architecture", ["roberta", "t5"])
def test_adapters_are_read_back_when_the_wrapper_around_them_was_dropped(
    architecture: str, second: bool, tmp_path: Path
) -> None:
    model = tiny.tiny_model(architecture)
    wrapper = fg.add_lora(model)
    if second:
        wrapper.add_adapter("second", wrapper.peft_config["default"])  # type: ignore[operator, union-attr, index]
        wrapper.set_adapter("second")  # type: ignore[operator]
    del wrapper
    attach(model, GateConfig(preset="structured"))
    tiny.scatter_gates(model)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    fg.save(model.eval(), tmp_path)
    assert torch.equal(output(fg.load(tmp_path)), output(model))


@pytest.mark.parametrize("preset", ["reference", "structured"])
def test_stock_methods_refuse_a_gated_model_and_a_copy(preset: str, tmp_path: Path) -> None:
    lora = attach(fg.add_lora(tiny.tiny_model("roberta")), GateConfig(preset=preset))
    native = tiny.tiny_model("roberta")
    native.add_adapter(lora.peft_config["default"])  # type: ignore[operator, union-attr, index]
    attach(native, GateConfig(preset=preset))
    model = gated(preset=preset)
    for refused in (model, copy.deepcopy(model), lora, native):
        for name in ("save_pretrained", "push_to_hub"):
            with pytest.raises(StockCheckpointError, match=r"finegates\.save\(model, folder\)"):
                getattr(refused, name)(str(tmp_path / "stock"))
    with pytest.raises(StockCheckpointError, match="GateTrainer"):
        Trainer(model, TrainingArguments(str(tmp_path / "t"), use_cpu=True)).save_model()
    assert not (tmp_path / "stock").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = attach(fg.add_lora(tiny.tiny_model("roberta"), rank=2), GateConfig(preset="structured"))
    fg.save(model, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["model.safetensors", "buffers.safetensors", "finegates.json"])
def test_a_changed_bit_or_a_missing_file_is_refused_with_folder_and_reason(
    name: str, folder: Path
) -> None:
    intact = (folder / name).read_bytes()
    broken = bytearray(intact)
    broken[len(broken) // 2] ^= 1
    (folder / name).write_bytes(bytes(broken))
    with pytest.raises(ValueError, match=rf"{folder}: .*"):
        fg.load(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{folder}: .*missing"):
        fg.load(folder)


def test_wrong_blueprints_are_refused(folder: Path) -> None:
    whole = (folder / "finegates.json").read_text()
    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda s: s.update(version=99),
        lambda s: s.update(model={}),
        lambda s: s.update(aliases=None),
        lambda s: s["model"]["plain"].update({"class": "Trainer"}),
        lambda s: s["model"]["plain"]["config"].update(hidden_size=2**50),
        lambda s: s["model"]["plain"]["config"].update(intermediate_size=2**30),
        lambda s: s["model"]["plain"]["config"].update(num_hidden_layers=10**6),
        lambda s: s["model"]["gates"]["configs"][""].update(preset="no such"),
        lambda s: s["model"]["gates"]["configs"].update({"no.such": {}}),
        lambda s: s["model"]["gates"]["layers"].update({"classifier.dense": {"rows": 1}}),
        lambda s: s["model"]["adapters"]["configs"]["default"].update(r=3),
        lambda s: s["model"]["adapters"]["configs"]["default"].update(megatron_core="os"),
        lambda s: s["model"]["adapters"]["configs"]["default"].update(peft_type="IA3"),
        lambda s: s["model"]["adapters"].update(active=["other"]),
        lambda s: s["model"]["adapters"].update(own={"roberta": {"active": [], "enabled": False}}),
        lambda s: s["model"]["adapters"].update(
            own={"classifier.dense": {"active": ["other"], "enabled": True}}
        ),
    ]
    for change in changes:
        (folder / "finegates.json").write_text(whole)
        edit(folder, change)
        with pytest.raises(GatedFormatError, match=str(folder)):
            fg.load(folder)


def test_wrong_tensors_are_refused(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    latent = next(name for name in names if name.endswith(".latent"))
    hardness = next(name for name in names if name.endswith("._extra_state"))
    whole = {p.name: p.read_bytes() for p in folder.iterdir()}
    changes: list[Callable[[dict[str, torch.Tensor]], object]] = [
        lambda t: t.pop(latent),
        lambda t: t.update({latent: torch.zeros(3)}),
        lambda t: t.update({latent: t[latent].to(torch.int64)}),
        lambda t: t.update({"no.such": torch.zeros(1)}),
        lambda t: t.pop(hardness),
        lambda t: t.update({hardness: torch.tensor(2.0)}),
        lambda t: t.update({hardness: torch.zeros(2)}),
    ]
    for change in changes:
        for name, content in whole.items():
            (folder / name).write_bytes(content)
        edit_tensors(folder, change)
        with pytest.raises(GatedFormatError, match=str(folder)):
            fg.load(folder)
