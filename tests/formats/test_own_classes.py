"""Models of classes that transformers does not have: what works, and what the messages say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertConfig, BertModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import finegates as fg
from finegates.adapters import register
from finegates.cli import main
from support.own_model import SPECS, OwnConfig, OwnModel, OwnNet, gated, logits
from support.tiny import ARCHITECTURES
from support.undescribed import forget


def unregister() -> None:
    """As in a process that did not register the class with transformers."""
    for config in (OwnConfig, DerivedConfig):
        CONFIG_MAPPING._extra_content.pop(config.model_type, None)
        AutoModel._model_mapping._extra_content.pop(config, None)


@pytest.fixture(autouse=True)
def _described() -> Iterator[None]:
    register(*SPECS)
    torch.manual_seed(0)
    yield
    forget()
    unregister()


def register_class() -> None:
    AutoConfig.register(OwnConfig.model_type, OwnConfig)
    AutoModel.register(OwnConfig, OwnModel)


@pytest.mark.parametrize("compact", [True, False])
def test_a_registered_class_comes_back_where_it_is_registered(
    compact: bool, tmp_path: Path
) -> None:
    register_class()
    model = gated(OwnModel(OwnConfig()))
    model = fg.compact(model) if compact else model
    fg.save(model, tmp_path / "model")
    again = fg.load(tmp_path / "model")
    assert type(again) is OwnModel
    assert torch.equal(logits(again), logits(model))
    unregister()
    with pytest.raises(ValueError, match=r"class 'OwnModel'.*must be registered before, with Auto"):
        fg.load(tmp_path / "model")


@pytest.mark.parametrize("compact", [True, False])
def test_a_class_that_is_not_registered_is_refused_with_the_calls_that_register_it(
    compact: bool, tmp_path: Path
) -> None:
    model = gated(OwnModel(OwnConfig()))
    model = fg.compact(model) if compact else model
    calls = (
        r"AutoConfig.register\('own_of_the_tests', OwnConfig\) and "
        r"transformers.AutoModel.register\(OwnConfig, OwnModel\)"
    )
    with pytest.raises(ValueError, match=calls):
        fg.save(model, tmp_path / "model")
    with pytest.raises(ValueError, match=calls):
        model.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


class DerivedConfig(BertConfig):
    model_type = "derived_of_the_tests"


def test_a_class_with_a_configuration_of_transformers_needs_one_of_its_own(tmp_path: Path) -> None:
    class Derived(BertModel):
        pass

    config = ARCHITECTURES["bert"]()
    small = fg.compact(gated(Derived(config)))
    with pytest.raises(ValueError, match=r"Derived a configuration class of its own, derived from"):
        fg.save(small, tmp_path / "model")
    Derived.config_class = DerivedConfig
    AutoConfig.register(DerivedConfig.model_type, DerivedConfig, exist_ok=True)
    AutoModel.register(DerivedConfig, Derived, exist_ok=True)
    values = {k: v for k, v in config.to_diff_dict().items() if k != "model_type"}
    small = fg.compact(gated(Derived(DerivedConfig(**values))))
    fg.save(small, tmp_path / "model")
    again, inputs = fg.load(tmp_path / "model"), torch.arange(16).view(2, 8)
    with torch.no_grad():
        assert torch.equal(again(inputs).pooler_output, small(inputs).pooler_output)


def test_a_stock_model_of_a_class_of_ones_own_needs_no_registration(tmp_path: Path) -> None:
    small = fg.compact(gated(OwnModel(OwnConfig())))
    fg.uniform(small).save_pretrained(tmp_path)
    again = OwnModel.from_pretrained(tmp_path, trust_remote_code=False)
    torch.testing.assert_close(logits(again), logits(small))


def test_a_plain_module_is_refused_with_what_works(tmp_path: Path) -> None:
    model = gated(OwnNet())
    for given in (model, small := fg.compact(model)):
        with pytest.raises(ValueError, match=r"OwnNet.*has no config; write it with torch\.save"):
            fg.save(given, tmp_path / "model")
    for refused in (fg.uniform, fg.uniform_cost):
        with pytest.raises(ValueError, match=r"OwnNet.*has no config; write it with torch\.save"):
            refused(small)
    torch.save(small, tmp_path / "model.pt")
    again: Any = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(logits(again), logits(small))


def test_a_number_that_a_class_of_ones_own_knows_is_bounded(tmp_path: Path) -> None:
    register_class()
    small = fg.compact(gated(OwnModel(OwnConfig())))
    small.config.heads = 2**60
    with pytest.raises(ValueError, match=f"heads = {2**60} is larger"):
        fg.save(small, tmp_path / "model")


def test_commands_take_a_class_of_ones_own_that_the_file_of_descriptions_registers(
    tmp_path: Path, capsys: Any
) -> None:
    register_class()
    fg.save(gated(OwnModel(OwnConfig())), tmp_path / "gated")
    OwnModel(OwnConfig()).save_pretrained(tmp_path / "dense")
    unregister()
    forget()
    (tmp_path / "specs.py").write_text(
        "from transformers import AutoConfig, AutoModel\n"
        "from support.own_model import SPECS, OwnConfig, OwnModel\n"
        "AutoConfig.register(OwnConfig.model_type, OwnConfig, exist_ok=True)\n"
        "AutoModel.register(OwnConfig, OwnModel, exist_ok=True)\n"
        "register(*SPECS)\n"
    )
    given = ["--length", "8", "--specs", str(tmp_path / "specs.py")]
    for name in ("dense", "gated"):
        assert main(["plan", str(tmp_path / name), *given]) == 0
    assert "OwnModel" in capsys.readouterr().out
