"""What holds for all tests: Hypothesis's profiles, and that unit tests do without Ray."""

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_UNIT_TESTS = Path(__file__).parent / "unit"

settings.register_profile(
    "quick",
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=2_000, stateful_step_count=60)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_configure(config: pytest.Config) -> None:
    # The foundationdb package brings an old copy of six, whose importer lacks a method that is asked for ever after.
    config.addinivalue_line("filterwarnings", "ignore:_SixMetaPathImporter:ImportWarning")


@contextmanager
def _without_ray(path: Path) -> Iterator[None]:
    """Let `import ray` fail, wherever in the code it stands, while a unit test is imported or runs."""
    if not path.is_relative_to(_UNIT_TESTS):
        yield
        return
    absent = object()
    before = sys.modules.get("ray", absent)
    sys.modules["ray"] = None  # type: ignore[assignment]  # what the import system takes as "can't be imported"
    try:
        yield
    finally:
        del sys.modules["ray"]
        if before is not absent:
            sys.modules["ray"] = before  # type: ignore[assignment]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    with _without_ray(collector.path):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with _without_ray(item.path):
        return (yield)
