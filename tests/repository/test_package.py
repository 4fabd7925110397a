"""The published wheel works with its declared dependencies and nothing else installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.install

PIP = ["-m", "pip", "--disable-pip-version-check", "--no-input"]
BASE = {"accelerate", "numpy", "safetensors", "torch", "transformers", "typing-extensions"}
"""Names of the extras."""
HEAVY = {"datasets", "evaluate", "matplotlib", "onnx", "pandas", "peft", "pyarrow", "pytest"}
HEAVY |= {"scikit-learn", "scipy", "snakemake", "sphinx"}


def finish(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A program whose environment is independent of this one."""
    own = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    words = list(map(str, command))
    return subprocess.run(words, cwd=cwd, env=own, capture_output=True, text=True, timeout=600)


def run(*command: object, cwd: Path) -> str:
    done = finish(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Wheel and source distribution of the files tracked by git, built from a copy."""
    folder = tmp_path_factory.mktemp("package")
    source, dist = folder / "source", folder / "dist"
    tracked = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file() and not name.startswith("results/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, cwd=source)
    return dist


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def alone(wheel, tmp_path_factory) -> Path:
    """The Python of an environment with only the wheel, without extras, in the tested versions."""
    folder = tmp_path_factory.mktemp("alone")
    run(sys.executable, "-m", "venv", folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    constraints = ["-q", "-c", ROOT / "constraints.txt"]
    # torch first, so that the configured index's build (CPU or GPU) is kept.
    run(python, *PIP, "install", *constraints, "torch", cwd=folder)
    run(python, *PIP, "install", *constraints, wheel, cwd=folder)
    return python


def test_the_index_would_take_wheel_and_source(built):
    files = sorted(built.iterdir())
    assert [f.suffix for f in files] == [".whl", ".gz"]
    said = run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=built)
    assert said.count("PASSED") == 2


def test_the_wheel_asks_for_the_base_packages_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        needs = message_from_bytes(archive.read(name)).get_all("Requires-Dist")
    assert {n.split(">")[0] for n in needs if "extra ==" not in n} == BASE


def test_wheel_and_source_hold_every_file_of_the_packages(built, wheel):
    listed = run("git", "ls-files", "-z", "finegates", "theory", cwd=ROOT)
    tracked = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    with zipfile.ZipFile(wheel) as archive:
        assert tracked - set(archive.namelist()) == {n for n in tracked if n.endswith("README.md")}
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked - inside == {n for n in tracked if n.endswith("README.md")}


def test_what_is_installed_is_small(alone):
    listed = run(alone, *PIP, "list", "--format=freeze", cwd=alone.parent)
    names = {line.split("==")[0].lower() for line in listed.splitlines()}
    assert names & HEAVY == set()


WORK = """
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import finegates as fg

assert "site-packages" in fg.__file__, fg.__file__
torch.manual_seed(0)
config = BertConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
)
model = BertForSequenceClassification(config)
rows = [
    {"input_ids": torch.randint(0, 64, (16,)), "labels": torch.tensor(i % 2)} for i in range(32)
]
fg.attach(model, fg.GateConfig(target=0.4))
arguments = TrainingArguments(
    sys.argv[1], max_steps=30, per_device_train_batch_size=8, report_to=[], save_strategy="no"
)
fg.GateTrainer(model=model, args=arguments, train_dataset=rows).train()
model.eval()
inputs = {"input_ids": torch.stack([row["input_ids"] for row in rows])}
with torch.no_grad():
    gated = model(**inputs).logits
small = fg.compact(model)
fg.save(small, Path(sys.argv[1]) / "small")
loaded = fg.load(Path(sys.argv[1]) / "small")
with torch.no_grad():
    torch.testing.assert_close(small(**inputs).logits, gated, rtol=1e-4, atol=1e-4)
    assert torch.equal(loaded(**inputs).logits, small(**inputs).logits)
before = sum(p.numel() for p in BertForSequenceClassification(config).parameters())
after = sum(p.numel() for p in loaded.parameters())
print("kept", after / before)
assert after < 0.9 * before
"""


def test_attach_train_compact_save_load_work_with_the_base_packages_alone(alone, tmp_path):
    said = run(alone, "-W", "error::ImportWarning", "-c", WORK, tmp_path, cwd=tmp_path)
    assert "kept" in said


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("fg.add_lora(torch.nn.Linear(2, 2))", "peft"),
        ("fg.export_onnx(torch.nn.Linear(2, 2), 'x.onnx', {'x': torch.ones(2, 2)})", "onnx"),
    ],
)
def test_what_needs_an_extra_names_it(alone, tmp_path, code, extra):
    program = f"import torch, finegates as fg\ntry:\n    {code}\nexcept ImportError as e: print(e)"
    said = run(alone, "-c", program, cwd=tmp_path)
    assert f"pip install 'finegates[{extra}]'" in said


@pytest.mark.parametrize("command", ["compare one other", "scaling"])
def test_a_command_of_the_suite_names_its_extra(alone, tmp_path, command):
    done = finish(alone.parent / "finegates", *command.split(), cwd=tmp_path)
    assert done.returncode != 0
    assert "pip install 'finegates[suite]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_command_line_plans_with_the_base_packages_alone(alone, tmp_path):
    make = (
        "from transformers import BertConfig, BertForSequenceClassification as B; "
        "B(BertConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, "
        "num_attention_heads=4)).save_pretrained('model')"
    )
    run(alone, "-c", make, cwd=tmp_path)
    said = run(alone.parent / "finegates", "plan", "model", cwd=tmp_path)
    assert "MACs" in said
