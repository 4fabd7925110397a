"""Shared test setup: Hypothesis profiles, one thread per worker, no network, opt-in tests.

Tests with a marker of :data:`OPT_IN` are skipped, with the reason, unless ``--run-<marker>`` is
given. For a parameter matrix marked ``sampled``, a few cases always run, in which every value of
every parameter appears (``sampled(n)``: at most n cases). The others are ``thorough``, which
``--run-slow`` includes.
"""

from __future__ import annotations

import gc
import os
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support.sampling import sample

# Set before torch and the Hugging Face libraries are imported, which read these only once. Workers
# of pytest-xdist and programs that tests start inherit them.
DEFAULT_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
}
for _name, _value in DEFAULT_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# A worker's first model takes seconds to import, so a deadline would measure the import.
_SHARED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", derandomize=True, max_examples=60, print_blob=True, **_SHARED)
settings.register_profile("dev", max_examples=25, **_SHARED)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)

OPT_IN = {
    "thorough": "is one of many like it, or runs a whole workflow",
    "slow": "takes more than a few seconds",
    "hub": "needs a model hub and the network",
    "browser": "opens a page in a browser",
    "install": "builds the package and installs it into an environment of its own",
    "cluster": "starts a Slurm cluster of its own",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--run-slow`` and the other opt-in options."""
    group = parser.getgroup("finegates", "tests that run only when asked for")
    for marker, reason in OPT_IN.items():
        group.addoption(
            f"--run-{marker}", action="store_true", help=f"also run what {reason} ({marker})"
        )


# Libraries leave millions of objects. Searching them for garbage, as each training does at its end,
# takes longer than a training of a tiny model.
gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Limits garbage collection to objects made after the imports of all test modules."""
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Allows the Hugging Face libraries to use the network if hub tests are requested."""
    if config.getoption("--run-hub"):
        os.environ["HF_HUB_OFFLINE"] = "0"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips opt-in tests that were not requested, and says how to run them.

    Each of several workers starts with a part of the list and then takes tests from the ends of the
    others' parts. So the long tests of the workflow come first and those of faults last. If they
    were spread over several workers, each worker would compute the shared results again.
    """
    if hasattr(config, "workerinput"):
        place = {"workflow": 0, "faults": 2}
        items.sort(key=lambda item: place.get(item.path.parent.name, 1))
    _sample(items)
    wanted = {marker for marker in OPT_IN if config.getoption(f"--run-{marker}")}
    if "slow" in wanted:
        wanted.add("thorough")
    skips = {
        marker: pytest.mark.skip(reason=f"{reason}: run with --run-{marker}")
        for marker, reason in OPT_IN.items()
        if marker not in wanted
    }
    for item in items:
        for marker, skip in skips.items():
            if item.get_closest_marker(marker):
                item.add_marker(skip)


def _sample(items: list[pytest.Item]) -> None:
    """Marks the cases of a test that a sample leaves out as thorough."""
    matrices: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("sampled"):
            matrices[item.nodeid.partition("[")[0]].append(item)
    for cases in matrices.values():
        marker = cases[0].get_closest_marker("sampled")
        fast = [case for case in cases if not case.get_closest_marker("slow")]
        # Cases share the objects given to parametrize, whose equality may be arbitrary.
        values = [{name: id(v) for name, v in case.callspec.params.items()} for case in fast]
        kept = sample(values, *marker.args)
        for index, case in enumerate(fast):
            if index not in kept:
                case.add_marker(pytest.mark.thorough)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent
