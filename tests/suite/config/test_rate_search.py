"""The same few rates for every contender, on rows that no starting point has seen."""

import pytest

from finegates.suite.config.load import ConfigError, configured_tier
from finegates.suite.config.searched import searched_tier, with_factors
from finegates.suite.config.tasks import TASKS
from finegates.suite.config.tier import Tier
from finegates.suite.models.sources import read_table
from support.tier import tiny_tier

METHODS = {
    "full": {"experiment": "full", "learning_rate": 1e-4, "head_learning_rate": 1e-3},
    "constant": {"experiment": "full"},
    "taylor": {"experiment": "one_shot", "prune": {"target": 0.4, "after": "full"}},
    "fisher": {
        "experiment": "one_shot",
        "prune": {"criterion": "fisher", "target": 0.4, "after": "full"},
        "rates_of": "taylor",
    },
    "gates": {
        "experiment": "structured",
        "gates": {"target": 0.4},
        "learning_rate": 1e-3,
        "gate_learning_rate": 1e-2,
        "distillation": {"teacher": "full"},
    },
}
SEARCH = {"factors": [3.0, 0.3333, 1.0], "held_out": 8, "contenders": ["full", "taylor", "gates"]}


def tier_of(tmp_path, search=SEARCH, methods=METHODS) -> Tier:
    return tiny_tier(tmp_path, methods=methods, rate_search=search, runs_per_process="run")


def test_every_contender_is_tried_with_every_factor_and_nothing_else_is(tmp_path):
    trials = searched_tier(tier_of(tmp_path)).methods
    assert list(trials) == [
        f"{label}-x{factor}" for label in SEARCH["contenders"] for factor in ("0.333", "1", "3")
    ]
    assert {trial.rates_of for trial in trials.values()} == set(SEARCH["contenders"])


def test_a_factor_moves_the_rates_of_weights_and_gates_and_not_that_of_the_head(tmp_path):
    trials = searched_tier(tier_of(tmp_path)).methods
    assert trials["gates-x3"].rate == pytest.approx(3e-3)
    assert trials["gates-x3"].gate_rate == pytest.approx(3e-2)
    assert trials["full-x3"].rate == pytest.approx(3e-4)
    assert trials["full-x3"].head_learning_rate == 1e-3


def test_trials_start_from_a_trial_which_has_not_seen_the_held_out_rows(tmp_path):
    search = searched_tier(tier_of(tmp_path))
    assert search.methods["taylor-x3"].start == "full-x1"
    assert search.methods["gates-x0.333"].start == "full-x1"
    assert search.kept == ["full-x1"]
    rows = {
        split: read_table(search, "cola", split).to_pylist() for split in ("train", "validation")
    }
    every = read_table(tier_of(tmp_path), "cola", "train").to_pylist()
    assert rows["validation"] == every[-8:]
    assert rows["train"] == every[:-8]


def test_a_search_may_train_on_fewer_rows(tmp_path):
    search = searched_tier(tier_of(tmp_path, {**SEARCH, "train_rows": 16}))
    assert read_table(search, "cola", "train").num_rows == 16
    assert read_table(search, "cola", "validation").num_rows == 8


def test_what_is_chosen_moves_the_contender_and_whoever_has_its_rates(tmp_path):
    tier = with_factors(tier_of(tmp_path), {"full": 1.0, "taylor": 3.0, "gates": 0.3333})
    factors = {label: method.rate_factor for label, method in tier.methods.items()}
    assert factors == {"full": 1.0, "constant": 1.0, "taylor": 3.0, "fisher": 3.0, "gates": 0.3333}


def test_a_contender_without_a_choice_does_not_run(tmp_path):
    with pytest.raises(ValueError, match="no rate was chosen for gates; run the rate search again"):
        with_factors(tier_of(tmp_path), {"full": 1.0, "taylor": 3.0})


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"contenders": ["fall"]}, r"rate_search\.contenders: no method 'fall'.*'full'"),
        ({"contenders": ["taylor"]}, "starts from 'full', which must be a contender too"),
        ({"contenders": ["full", "taylor", "fisher"]}, r"methods\.fisher\.rates_of"),
        ({"contenders": ["full"]}, r"methods\.fisher\.rates_of: 'taylor' is not among"),
        ({"factors": [3.0, 0.3]}, "factors: 1 is missing"),
        ({"factors": [1.0, 1.0]}, "factors must not repeat"),
        ({"held_out": 0}, "held_out"),
    ],
)
def test_a_wrong_search_is_refused_by_its_key(tmp_path, search, said):
    with pytest.raises(ValueError, match=said):
        tier_of(tmp_path, {**SEARCH, **search})


def test_a_matching_method_is_not_searched(tmp_path):
    methods = {
        "gates": {"experiment": "reference", "gates": {"target": 0.4}},
        "matched": {"experiment": "structured", "gates": {"match": "gates"}},
    }
    with pytest.raises(ValueError, match="'matched' goes on from another run of the tier"):
        tier_of(tmp_path, {**SEARCH, "contenders": ["matched"]}, methods)


def test_rates_without_a_search_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"methods\.fisher\.rates_of: 'taylor' is not among"):
        tiny_tier(tmp_path, methods=METHODS)


def test_a_part_of_a_tier_names_the_contenders_whose_rates_it_takes():
    with pytest.raises(ConfigError, match="'fisher-inner' needs 'taylor-distilled'"):
        configured_tier({"tier": "baselines", "methods": "full,fisher-inner"})


@pytest.mark.parametrize("name", ["baselines", "base"])
def test_in_a_published_comparison_every_contender_has_searched_rates_and_the_same_head(name):
    tier = configured_tier({"tier": name})
    searched = tier.rate_search.contenders
    for label, method in tier.methods.items():
        assert method.head_learning_rate == 1e-3, label
        if label == "full-constant":
            continue
        assert label in searched or method.rates_of in searched, label
        assert (method.schedule or tier.training.schedule) == "linear", label
        assert method.warmup == 0.06, label
    assert set(tier.tasks) <= set(TASKS)
