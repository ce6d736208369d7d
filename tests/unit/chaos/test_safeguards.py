"""An experiment ends where its damage leaves the target, and not before; what undoes a fault is done once."""

from chaos import limits
from chaos.safeguards import Safeguards
from chaos.undo import Undo

PROTECTED = {"bob": "cell-0", "eve": "cell-1"}


def counts(answered: float = 10, **errors: float) -> dict[str, dict[str, float]]:
    return {
        partner: {"answered": answered, "errors": errors.get(partner, 0), "refused_429": 0}
        for partner in ("ann", "bob", "eve")
    }


def test_errors_of_the_target_end_nothing() -> None:
    assert Safeguards(PROTECTED).look(counts(ann=1_000), 1.0) is None


def test_errors_outside_the_target_end_it_and_are_named() -> None:
    guards = Safeguards(PROTECTED)
    assert guards.look(counts(bob=limits.CHAOS_ERRORS_OUTSIDE_MAX), 1.0) is None
    why = guards.look(counts(bob=limits.CHAOS_ERRORS_OUTSIDE_MAX, eve=1), 2.0)
    assert why == "3 errors of partners outside the target: bob (2), eve (1)"


def test_a_429_of_a_bystander_is_an_error() -> None:
    told = counts()
    told["eve"]["refused_429"] = 3
    assert Safeguards(PROTECTED).look(told, 1.0) is not None


def test_a_cell_outside_the_target_that_falls_silent_ends_it() -> None:
    guards = Safeguards(PROTECTED)
    longest_s = limits.CHAOS_CELL_SILENT_MS_MAX / 1_000
    assert guards.look(counts(10), 0.0) is None
    told = counts(10)
    told["bob"]["answered"] = 11
    assert guards.look(told, longest_s) is None
    why = guards.look(told, longest_s + 1)
    assert why is not None
    assert why.startswith("cell-1 is outside the target")


def test_the_newest_step_is_undone_first_and_each_once() -> None:
    undo, done = Undo(), list[str]()
    undo.add("first", lambda: done.append("first"))
    undo.add("second", lambda: done.append("second"))
    assert undo.all() == ["second", "first"]
    assert undo.all() == []
    assert done == ["second", "first"]


def test_a_step_that_fails_is_told_and_keeps_no_other() -> None:
    undo, done = Undo(), list[str]()

    def fail() -> None:
        raise OSError("no such process")

    undo.add("first", lambda: done.append("first"))
    undo.add("second", fail)
    assert undo.all() == ["first"]
    assert undo.failed == ["second: OSError: no such process"]
