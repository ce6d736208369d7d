"""What holds for all tests: Hypothesis's profiles, and that unit tests do without Ray."""

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_UNIT_TESTS = Path(__file__).parent / "unit"
# What tests say that were skipped, and what is missing.
_WITHOUT_FOUNDATIONDB = {
    "no FoundationDB cluster": "no cluster is named by BULKHEAD_TEST_FDB_CLUSTER_FILE",
    "no FoundationDB server": "fdbserver and fdbcli are not on the PATH",
}

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what became of the tests that need FoundationDB."""
    stats = terminalreporter.stats
    reasons = [report.longrepr[2] for report in stats.get("skipped", []) if isinstance(report.longrepr, tuple)]
    for skipped, why in _WITHOUT_FOUNDATIONDB.items():
        count = sum(skipped in reason for reason in reasons)
        if count:
            terminalreporter.write_line(f"FoundationDB: {count} tests skipped, {why}")
    named = os.environ.get("BULKHEAD_TEST_FDB_CLUSTER_FILE")
    ran = sum("fdb" in report.nodeid for name in ("passed", "failed") for report in stats.get(name, []))
    if named and ran:
        terminalreporter.write_line(f"FoundationDB: {ran} tests ran against {named}")


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
