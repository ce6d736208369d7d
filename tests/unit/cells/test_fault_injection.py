"""Faults on order: which texts order one, and that it acts in the moment of the decision of its own command only."""

import os
import signal
import time

import pytest

from cells import limits
from cells.fault_injection import Fault, FaultInjector, FaultKind, parse


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("crash", Fault(FaultKind.CRASH)),
        ("loop", Fault(FaultKind.LOOP)),
        ("leak:300", Fault(FaultKind.LEAK, 300)),
        ("slow:250", Fault(FaultKind.SLOW, 250)),
        ("files:9000", Fault(FaultKind.FILES, 9_000)),
        ("threads:300", Fault(FaultKind.THREADS, 300)),
        ("threads", None),
        (f"slow:{limits.FAULT_AMOUNT_MAX}", Fault(FaultKind.SLOW, limits.FAULT_AMOUNT_MAX)),
        (f"slow:{limits.FAULT_AMOUNT_MAX + 1}", None),
        ("crash:1", None),
        ("leak", None),
        ("leak:-1", None),
        ("leak:\u0663", None),
        ("explode", None),
        ("", None),
        (7, None),
    ],
)
def test_known_texts_order_a_fault_and_others_nothing(text: object, fault: Fault | None) -> None:
    assert parse({"metadata": {"bulkhead_fault": text}}) == fault


@pytest.mark.parametrize("arguments", [{}, {"metadata": None}, {"metadata": {"other": "crash"}}, {"metadata": "crash"}])
def test_commands_without_the_key_order_nothing(arguments: dict[str, object]) -> None:
    assert parse(arguments) is None


def test_a_fault_is_done_after_its_command_was_marked_and_to_no_other() -> None:
    marked: list[str] = []
    faults = FaultInjector(lambda partner_id, command_id: marked.append(f"{partner_id}/{command_id}"))
    with faults.ordered("c1", {"metadata": {"bulkhead_fault": "slow:200"}}):
        began = time.monotonic()
        faults.executing("acme", "c2")
        assert time.monotonic() - began < 0.1
        faults.executing("acme", "c1")
        assert time.monotonic() - began >= 0.2
    began = time.monotonic()
    faults.executing("acme", "c1")
    assert time.monotonic() - began < 0.1
    assert marked == ["acme/c2", "acme/c1", "acme/c1"]


def test_a_crash_is_a_death_by_signal() -> None:
    faults = FaultInjector(lambda _, __: None)
    pid = os.fork()
    if pid == 0:
        with faults.ordered("c1", {"metadata": {"bulkhead_fault": "crash"}}):
            faults.executing("acme", "c1")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
