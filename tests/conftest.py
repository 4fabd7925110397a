"""What every test shares: Hypothesis profiles, one thread per worker, no network, opt-in tests.

Tests with a marker of :data:`OPT_IN` are skipped, with the reason, unless ``--run-<marker>`` is
given. Of a matrix of parameters marked ``sampled`` a few cases run always, in which every value of
every parameter appears (``sampled(n)``: at most n cases); the others are ``thorough``, which
``--run-slow`` includes.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support.sampling import sample

# Before torch and the Hugging Face libraries are imported, which read these once. Workers of
# pytest-xdist and programs that tests start inherit them.
DEFAULT_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
}
for _name, _value in DEFAULT_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# The first model of a worker takes seconds to import: time says nothing about an example.
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
    """Adds ``--run-slow`` and the like."""
    group = parser.getgroup("finegates", "tests that run only when asked for")
    for marker, reason in OPT_IN.items():
        group.addoption(
            f"--run-{marker}", action="store_true", help=f"also run what {reason} ({marker})"
        )


def pytest_configure(config: pytest.Config) -> None:
    """Lets the Hugging Face libraries use the network when hub tests are asked for."""
    if config.getoption("--run-hub"):
        os.environ["HF_HUB_OFFLINE"] = "0"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips the opt-in tests that were not asked for, and says how to run them.

    With several workers, which begin with a part of the list each and then take from the ends of
    each other's, the long tests of the workflow come first and those of faults last: dealt out to
    several workers, each would make the shared results again.
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
    """Marks as thorough what a sample of the cases of a test leaves out."""
    matrices: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("sampled"):
            matrices[item.nodeid.partition("[")[0]].append(item)
    for cases in matrices.values():
        marker = cases[0].get_closest_marker("sampled")
        fast = [case for case in cases if not case.get_closest_marker("slow")]
        # Cases share the objects that parametrize was given; their equality may be anything.
        values = [{name: id(v) for name, v in case.callspec.params.items()} for case in fast]
        kept = sample(values, *marker.args)
        for index, case in enumerate(fast):
            if index not in kept:
                case.add_marker(pytest.mark.thorough)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent
