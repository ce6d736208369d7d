"""Values are frozen to mypy, and what frozen dataclasses are at run time but for that."""

import subprocess
import sys
from pathlib import Path

import pytest

from actors.payment import Failure, Operation, OperationKind, OperationState
from actors.values import dataclass

ROOT = Path(__file__).resolve().parents[3]


def test_values_are_equal_and_have_a_hash() -> None:
    assert Failure("a", retryable=True) == Failure("a", retryable=True)
    assert len({Failure("a", retryable=True), Failure("a", retryable=True), Failure("b", retryable=True)}) == 2


def test_a_value_has_no_other_fields() -> None:
    operation = Operation("op_1", OperationKind.PURCHASE, 5, OperationState.PENDING, 1)
    with pytest.raises(AttributeError):
        operation.colour = "red"  # type: ignore[attr-defined]


def test_what_may_change_is_no_value() -> None:
    with pytest.raises(AssertionError):
        dataclass(frozen=False, slots=True)


def test_the_type_checker_refuses_to_change_one(tmp_path: Path) -> None:
    program = tmp_path / "changes.py"
    program.write_text("from actors.payment import Failure\n\nFailure('a', True).code = 'b'\n")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'Property "code" defined in "Failure" is read-only' in done.stdout
