"""Derivatives of each row's loss by shared gates, against finite differences of a gated model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finegates.gates.attachment import attach_fixed
from finegates.gates.detachment import detach
from finegates.gates.gated_linear import gated_layers
from finegates.gates.stochastic import StochasticGate
from finegates.pruning.groups import SharedGroups
from finegates.pruning.sensitivity import measure_sensitivity
from support.tiny import ARCHITECTURES, VOCABULARY, is_causal, tiny_model

# Norms, rotations and losses are computed in float32 also in a float64 model. A loss of about 3 has
# an error of about 3e-7. Its differences have 1.5 times that error over STEP, plus the stencil's
# STEP^4 / 30 times the fifth derivative.
STEP = 0.01
NOISE = 5e-5
FAST = ("bert", "deberta-v2", "llama", "t5-gated")


def rows(architecture: str, variant: str, count: int = 3) -> dict[str, Tensor]:
    """One batch; rows differ in length and in the number of labels that count."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (count, 6), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, 4:] = 0
    if architecture.startswith("t5"):
        ids[:, -1] = 1
        ids[-1, 3] = 1
    ids = torch.where(mask.bool(), ids, 0)
    if architecture.startswith("t5") and variant == "classifier":
        ids[-1] = torch.tensor([5, 6, 7, 8, 9, 1])  # every row has the same number of end tokens
        mask[-1] = 1
    batch = {"input_ids": ids, "attention_mask": mask}
    if variant == "classifier":
        batch["labels"] = torch.tensor([0, 1, 1])[:count]
    else:
        batch["labels"] = torch.where(mask.bool(), ids, -100)
        batch["labels"][0, :3] = -100
    return batch


def parts(batch: dict[str, Tensor], sizes: list[int]) -> list[dict[str, Tensor]]:
    split = {key: value.split(sizes) for key, value in batch.items()}
    return [{key: values[i] for key, values in split.items()} for i in range(len(sizes))]


def row_losses(model: nn.Module, batch: dict[str, Tensor], shifted: bool) -> Tensor:
    """Each row's contribution to the mean loss, scaled so that L is the mean over rows."""
    labels = batch["labels"]
    counted = labels[:, 1:] if shifted and labels.ndim > 1 else labels
    items = torch.tensor(
        [int((row != -100).sum()) for row in counted] if labels.ndim > 1 else [1] * len(labels)
    )
    losses = torch.stack([model(**row).loss.detach() for row in parts(batch, [1] * len(labels))])
    return losses * items * len(labels) / items.sum()


def differences(
    model: nn.Module, groups: SharedGroups, batch: dict[str, Tensor], shifted: bool
) -> Any:
    """Fourth-order differences of the rows' losses by a dimension of each gate.

    It is the first, the middle and the last one in turn.
    """
    layers = gated_layers(attach_fixed(model, groups.values()))

    def losses(gate: StochasticGate, place: int, moved: int) -> Tensor:
        mask = torch.ones(gate.size, dtype=torch.float64)
        mask[place] += moved * STEP
        for path, sides in groups.values({gate: mask}).items():
            for side, values in zip(("rows", "cols"), sides, strict=True):
                if values is not None:
                    getattr(layers[path], side).values = values
        return row_losses(model, batch, shifted)

    for number, gate in enumerate(groups.open):
        place = (0, gate.size // 2, gate.size - 1)[number % 3]
        low, lower, higher, high = (losses(gate, place, moved) for moved in (-2, -1, 1, 2))
        yield gate, place, (8 * (higher - lower) - (high - low)) / (12 * STEP)
    detach(model)


@pytest.mark.parametrize("variant", ["classifier", "language"])
@pytest.mark.parametrize(
    "architecture",
    [a if a in FAST else pytest.param(a, marks=pytest.mark.slow) for a in ARCHITECTURES],
)
def test_sensitivity_is_that_of_finite_differences(architecture, variant):
    # Differences across the kink of ReLU are not derivatives.
    smooth = {"dense_act_fn": "gelu_new"} if architecture == "t5" else {}
    model = tiny_model(architecture, variant, **smooth)
    batch = rows(architecture, variant)
    shifted = variant == "language" and is_causal(architecture)
    groups = SharedGroups(model, "all", 6)
    for gate, mask in groups.open.items():
        groups.open[gate] = mask.double()
    found = measure_sensitivity(model, groups, [batch], lambda: None)
    for gate, place, slopes in differences(model, groups, batch, shifted):
        assert float(found.absolute[gate][place]) == pytest.approx(
            float(slopes.abs().mean()), abs=NOISE
        )
        assert float(found.square[gate][place]) ** 0.5 == pytest.approx(
            float(slopes.square().mean()) ** 0.5, abs=NOISE
        )


@pytest.mark.parametrize("architecture", FAST)
@pytest.mark.parametrize("variant", ["classifier", "language"])
def test_sensitivity_does_not_depend_on_the_cut_into_batches(architecture, variant):
    model = tiny_model(architecture, variant)
    batch = rows(architecture, variant)
    groups = SharedGroups(model, "all", 6)
    whole = measure_sensitivity(model, groups, [batch], lambda: None)
    cut = measure_sensitivity(model, groups, parts(batch, [1, 2]), lambda: None)
    for gate in groups.open:
        assert torch.allclose(whole.absolute[gate], cut.absolute[gate], rtol=1e-5, atol=1e-9)
        assert torch.allclose(whole.square[gate], cut.square[gate], rtol=1e-5, atol=1e-12)


def test_a_closed_head_says_nothing_of_its_values():
    model = tiny_model("bert")
    groups = SharedGroups(model, "all", 6)
    part = groups.structure[0]
    groups.open[part.heads][1] = 0.0
    found = measure_sensitivity(model, groups, [rows("bert", "classifier")], lambda: None)
    width = part.values.size // part.heads.size
    values = found.absolute[part.values].view(-1, width)
    assert not bool(values[1].any())
    assert bool(values[0].all())


def test_a_batch_without_labels_is_refused_with_the_remedy():
    model = tiny_model("bert")
    batch = {k: v for k, v in rows("bert", "classifier").items() if k != "labels"}
    with pytest.raises(ValueError, match="returns no loss .* needs labels"):
        measure_sensitivity(model, SharedGroups(model, "all", 6), [batch], lambda: None)


def test_labels_that_no_loss_counts_are_refused():
    model = tiny_model("bert", "language")
    batch = rows("bert", "language")
    batch["labels"] = torch.full_like(batch["labels"], -100)
    with pytest.raises(ValueError, match="no labels that the loss counts"):
        measure_sensitivity(model, SharedGroups(model, "all", 6), [batch], lambda: None)


def test_a_derivative_that_is_no_number_names_its_gate():
    model = tiny_model("bert")
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"encoder\.layer\..* is not finite"):
        measure_sensitivity(
            model, SharedGroups(model, "all", 6), [rows("bert", "classifier")], lambda: None
        )
