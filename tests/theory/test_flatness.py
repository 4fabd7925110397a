"""Flat directions of blocks: rescalings that leave the output unchanged, and their exact number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import finegates as fg
from finegates.gates.gated_linear import gated_layers
from support.described import InFloat64, described_inputs, described_model
from support.described_types import CONFIGURATIONS
from theory import factor_directions, flatness, measured_directions
from theory.block_models import KINDS, block_model, block_output
from theory.checks import flatness as checks
from theory.checks import trained_biases as bias_checks
from theory.checks.settings import Settings
from theory.factor_directions import start_directions
from theory.flatness import flat_space, generators, jacobian, nullity
from theory.free_gates import free_gates, set_values
from theory.trained_biases import bias_directions

# Kinds that differ in the proposition's conditions.
FEW = ("bert", "llama", "t5", "qwen3", "phi3")


@pytest.mark.parametrize("name", KINDS)
def test_every_generator_multiplied_into_the_sides_changes_no_output(name):
    plain = block_model(name).requires_grad_(False)
    spans, before = generators(plain), block_output(plain, 2)
    assert spans
    random = np.random.default_rng(0)
    total: dict[tuple[str, str], np.ndarray] = {}
    for span in spans:  # all at once, each by its own factor
        power = random.uniform(-1, 1)
        for side, exponents in span.exponents.items():
            total[side] = total.get(side, 0) + power * exponents
    sides = {
        path: tuple(
            None if (path, side) not in total else torch.as_tensor(np.exp(total[path, side]))
            for side in ("rows", "cols")
        )
        for path in dict.fromkeys(path for path, _ in total)
    }
    after = block_output(fg.attach_fixed(plain, sides), 2)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-11 * float(before.abs().max()))


def test_the_numbers_are_those_of_the_closed_forms():
    def count(name: str, preset: str, width: int = 8) -> int:
        model = block_model(name, width)
        fg.attach(model, fg.GateConfig(preset=preset, train_head=False))
        return len(flat_space(model))

    assert [count("bert", "reference", d) for d in (8, 16)] == [17, 33]
    assert [count("bert", "structured", d) for d in (8, 16)] == [2, 2]
    # One key-value head of 4: 4 values, 2 rotated pairs, 12 hidden dimensions, 7 layers.
    assert count("llama", "reference") == 4 + 2 + 12 + 7
    # Heads against values; inputs, and values against outputs; hidden dimensions against outputs.
    assert count("llama", "structured") == 1 + 2 + 1


def test_free_gates_keep_what_is_shared_and_give_closed_gates_a_gradient():
    model = block_model("bert")
    fg.attach(model, fg.GateConfig(train_head=False)).double()
    before = block_output(model, 1)
    gates = free_gates(model)
    torch.testing.assert_close(block_output(model, 1), before, rtol=0, atol=0)
    layers = gated_layers(model)
    key, value = (layers[f"encoder.layer.0.attention.self.{part}"] for part in ("key", "value"))
    assert key.cols is value.cols
    assert sum(gate.size for gate in gates) == 6 * 8 + 12 + 2
    values = torch.linspace(0, 2, sum(gate.size for gate in gates), dtype=torch.float64)
    set_values(gates, values)
    torch.testing.assert_close(torch.cat([gate.values.detach() for gate in gates]), values)
    block_output(model, 1).square().sum().backward()
    assert gates[0].values[0] == 0
    assert gates[0].values.grad[0] != 0


@pytest.mark.parametrize("zeros", [0, 1, 3])
def test_the_nullity_of_a_matrix_is_that_of_its_construction(zeros):
    random = np.random.default_rng(zeros)
    matrix = random.standard_normal((9, 6)) * [1, 1e-6, 1e3, 1, 1, 1]
    matrix[:, 6 - zeros :] = matrix[:, : 6 - zeros] @ random.standard_normal((6 - zeros, zeros))
    found = nullity(matrix)
    assert (found.size, found.count) == (6, zeros)
    assert found.gap > 1e6
    assert nullity(matrix[:2]).count == 4
    assert nullity(np.eye(3)[:, :2] * np.array([1.0, 0.0])).count == 1


SMALL = Settings(problems=1)


@pytest.fixture
def fresh():
    """Clears cached measurements of gates, before and after."""
    measured_directions.measured_gates.cache_clear()
    yield
    measured_directions.measured_gates.cache_clear()


@pytest.mark.parametrize("kind", ["values", "scores", "hidden", "layers"])
def test_a_forgotten_rescaling_is_found_out(fresh, monkeypatch, kind):
    original = flatness.generators
    monkeypatch.setattr(
        flatness, "generators", lambda *a: [g for g in original(*a) if g.kind != kind]
    )
    assert checks.check_directions(SMALL).verdict == "contradicted"


def test_a_rescaling_that_changes_outputs_is_found_out(fresh, monkeypatch):
    original = flatness.generators
    wrong = flatness.Generator(
        "values", {("encoder.layer.0.attention.self.value", "rows"): np.eye(8)[0]}
    )
    monkeypatch.setattr(flatness, "generators", lambda *a: [*original(*a), wrong])
    broken = [case for case in checks.check_directions(SMALL).cases if not case.holds]
    assert {case.name.partition(",")[0] for case in broken} == {"bert", "llama", "t5"} & {
        case.name.partition(",")[0] for case in broken
    }
    assert any(case.name == "bert, independent, moved far" for case in broken)


def test_a_count_wrong_by_a_quarter_is_found_out(fresh, monkeypatch):
    original = measured_directions.flat_space

    def more(model):
        basis = original(model)
        return np.concatenate([basis, basis[: -(-len(basis) // 4)]])

    monkeypatch.setattr(measured_directions, "flat_space", more)
    assert checks.check_directions(SMALL).verdict == "contradicted"


@pytest.fixture
def unfactored():
    """Clears cached measurements of factors, before and after."""
    measured_directions.measured_factors.cache_clear()
    yield
    measured_directions.measured_factors.cache_clear()


@pytest.mark.parametrize("forgotten", ["centred_layers", "shifted_keys"])
def test_a_direction_of_factors_next_to_a_layer_norm_is_not_forgotten(
    unfactored, monkeypatch, forgotten
):
    monkeypatch.setattr(factor_directions, forgotten, lambda model: [])
    found = checks.check_factors(SMALL)
    assert {case.name.partition(",")[0] for case in found.cases if not case.holds} == {"bert"}


def test_layers_next_to_a_layer_norm_are_those_of_the_architecture():
    def near(name: str) -> tuple[list[str], list[str]]:
        model = block_model(name)
        return tuple(
            [path.rpartition("layer.0.")[2] for path in find(model)]
            for find in (factor_directions.centred_layers, factor_directions.shifted_keys)
        )  # type: ignore[return-value]

    writers = ["attention.output.dense", "output.dense"]
    assert near("bert") == (writers, ["attention.self.key"])
    assert near("llama") == ([], [])
    # The embeddings' norm is before a map to another width.
    assert near("albert")[1] == []
    # Rotary embeddings turn a shift of keys by their position.
    assert len(near("starcoder2")[0]) == 2
    assert near("starcoder2")[1] == []


def test_at_the_start_of_lora_all_of_a_is_flat_and_what_norms_subtract_from_b(monkeypatch):
    model = block_model("bert")  # five layers read 8 numbers and one 12; two write to a norm
    assert [start_directions(model, r) for r in (1, 3)] == [5 * 8 + 12 + 2, 3 * (5 * 8 + 12 + 2)]
    found = measured_directions.measured_factors("bert", 3, 8, 0, start=True)
    assert found.nullity.count == found.predicted
    monkeypatch.setattr(
        measured_directions, "start_directions", lambda *a: 1 + start_directions(*a)
    )
    measured_directions.measured_factors.cache_clear()
    broken = [case.name for case in checks.check_factors(SMALL).cases if not case.holds]
    measured_directions.measured_factors.cache_clear()
    assert broken
    assert all(name.endswith("start") for name in broken)


@pytest.mark.parametrize(
    ("name", "width", "count"),
    [
        # Keys and values of width d, and two layers that norms read.
        ("bert", 8, 2 * 8 + 2),
        ("bert", 16, 2 * 16 + 2),
        ("bloom", 8, 2 * 8 + 2),
        # One key-value head of four rotated dimensions: values alone.
        ("starcoder2", 8, 4 + 2),
        # Half of each head is rotated.
        ("gpt_neox", 8, 4 + 8 + 2),
        # No bias in the output layers.
        ("qwen2", 8, 0),
        ("llama", 8, 0),
    ],
)
def test_biases_have_the_flat_directions_of_their_positions_and_norms(name, width, count):
    assert bias_directions(block_model(name, width)) == count


def test_moving_biases_of_keys_values_and_means_far_changes_no_output():
    model = block_model("bert").requires_grad_(False)
    before = block_output(model, 2)
    attention = model.encoder.layer[0].attention
    generator = torch.Generator().manual_seed(0)
    key, value, mean = (torch.randn(8, generator=generator, dtype=torch.float64) for _ in range(3))
    attention.self.key.bias += 3 * key
    attention.self.value.bias += 3 * value
    attention.output.dense.bias += mean[0] - attention.output.dense.weight @ (3 * value)
    model.encoder.layer[0].output.dense.bias += mean[1]
    # Scores are moved by 3 q · key; rounding errors grow with them.
    torch.testing.assert_close(block_output(model, 2), before, rtol=0, atol=1e-10)
    attention.self.query.bias += 1e-3
    assert (block_output(model, 2) - before).abs().max() > 1e-5


@pytest.mark.parametrize("more", [1, -1])
def test_a_wrong_number_of_directions_of_biases_is_found_out(monkeypatch, more):
    monkeypatch.setattr(
        bias_checks, "bias_directions", lambda model: max(0, more + bias_directions(model))
    )
    assert bias_checks.check_biases(SMALL).verdict == "contradicted"


@pytest.mark.slow
def test_factors_of_rank_eight_have_the_flat_directions_of_the_closed_form_at_width_32():
    found = measured_directions.measured_factors("bert", 8, 32, 0)
    assert found.nullity.count == found.predicted == 6 * 64 + 3 * 8


def test_the_real_shape_is_counted_as_in_the_closed_form():
    frame = checks.models_frame().set_index("parameters")
    width, blocks = 768, 12
    assert list(frame.loc["independent gates", ["layers", "size", "flat"]]) == [
        6 * blocks,
        blocks * (10 * width + 2 * 4 * width),
        blocks * (2 * width + 1),
    ]
    for rank in (1, 8):
        assert frame.loc[f"LoRA {rank}", "flat"] == blocks * (6 * rank**2 + 3 * rank)


@pytest.mark.parametrize("widths", [(8, 16), (8, 24), (16, 24)])
def test_the_verdict_on_degeneracy_does_not_depend_on_the_widths(monkeypatch, widths):
    """A comparison of shares at one width would: narrow grouped blocks have few directions."""
    monkeypatch.setattr(checks, "WIDTH", widths[0])
    monkeypatch.setattr(checks, "WIDER", widths[1])
    monkeypatch.setattr(checks, "kinds", lambda settings: ["bert", "llama", "starcoder2"])
    assert checks.check_degeneracy(SMALL).verdict == "contradicted"


def test_a_gradient_that_does_not_vanish_between_closed_partners_is_found_out(monkeypatch):
    original = checks._loss_of_pair
    monkeypatch.setattr(
        checks, "_loss_of_pair", lambda *a: original(*a) + 1e-6 * (a[-1][0] + a[-1][1] ** 2)
    )
    assert checks.check_closed(SMALL).verdict == "contradicted"


def test_sharing_removes_scores_only_if_keys_share_their_column_gate():
    """v and k have biases and no row gates. Gates on q's rows and k's columns are still flat."""
    model = block_model("bert")
    before = block_output(model, 2)
    attention = "encoder.layer.0.attention.self"
    ones = torch.ones(8, dtype=torch.float64)
    sides = {f"{attention}.query": (1.7 * ones, None), f"{attention}.key": (None, ones / 1.7)}
    after = block_output(fg.attach_fixed(model, sides), 2)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-13 * float(before.abs().max()))
    sides[f"{attention}.value"] = (None, ones / 1.7)
    model = block_model("bert")
    moved = block_output(fg.attach_fixed(model, sides), 2)
    assert (moved - before).abs().max() > 1e-2


# Types with more flat directions than the description predicts, in a block or for these inputs.
MORE = {
    "deepseek_v3": "latents between projections have invertible maps of their own",
    "smollm3": "some layers turn no keys, and all are described as turning them",
    "falcon/alibi": "no keys are turned, but they are described so",
    "deberta": "queries and values have biases outside of their one layer",
    "deberta/talking": "the same",
    "opt": "ReLUs that no input opens",
    "m2m_100": "ReLUs that no input opens",
    "gpt_oss": "experts without a token",
    "clip": "fewer outputs than gates",
    "siglip": "fewer outputs than gates",
    "olmo/clipped": "values that are clipped for every input",
}


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["reference", "structured"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_described_type_has_the_flat_directions_of_the_proposition(name, preset):
    matrix, basis = described_jacobian(name, preset)
    assert np.linalg.norm(matrix @ basis.T) <= 1e-10 * np.linalg.norm(matrix)
    found = nullity(matrix)
    if name not in MORE:
        assert found.count == len(basis)


@pytest.mark.slow
def test_sharing_does_not_lower_the_share_where_biases_are_outside_of_the_gates():
    """DeBERTa's first version adds biases to queries and values after their one gated layer."""
    shares = []
    for preset in ("reference", "structured"):
        found = nullity(described_jacobian("deberta", preset)[0])
        shares.append(found.count / found.size)
    assert shares[1] > shares[0]


def described_jacobian(name: str, preset: str) -> tuple[np.ndarray, np.ndarray]:
    """The Jacobian of a described type's outputs in its gates, and the proposition's subspace."""
    model = described_model(name, attention="eager")
    # Weights of 0.3 saturate attention at these widths, and saturated directions are almost flat.
    for parameter in model.parameters():
        parameter.data.mul_(0.7)
    many = [described_inputs(name, seed=i) for i in range(6)]
    inputs = {key: torch.cat([each[key] for each in many]) for key in many[0]}
    if "attention_mask" in inputs:  # fully masked rows are NaN with a short window
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    fg.attach(model, fg.GateConfig(preset=preset, target=0.1, train_head=False))
    gates = free_gates(model.eval())
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for gate in gates:
        gate.values.requires_grad_(True).data.uniform_(0.5, 1.5, generator=generator)

    def output() -> torch.Tensor:
        with InFloat64():
            return torch.cat(
                [
                    value.flatten()
                    for key, value in model(**inputs).items()
                    if torch.is_tensor(value)
                    and value.requires_grad
                    and any(name in key for name in ("hidden", "embeds", "logits"))
                ]
            )

    return jacobian(output, [gate.values for gate in gates], 0), flat_space(model)
