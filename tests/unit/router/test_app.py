"""The application as a whole: what it must not import, and that its models tell what cells really answer."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from actors import payment as actor
from actors import views
from actors.payment import Failure, Operation, OperationKind, OperationState, Payment
from router import models

ROOT = Path(__file__).resolve().parents[3]
NOW = 1_795_366_800_123


def test_the_router_loads_neither_ray_nor_an_actor_nor_a_store() -> None:
    program = (
        "import sys, router.__main__, router.app, listeners.server, cells.api.logs\n"
        "print(*sorted(name for name in sys.modules if name.split('.')[0] in "
        "('ray', 'sqlite3', 'fdb', 'aiohttp', 'actors', 'cells', 'control_plane', 'acquirer_simulator')))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(found.stdout.split())
    # The wire's messages are made of a few of the actors' value types; no more of them comes along.
    assert {name for name in loaded if name.startswith("actors.")} == {
        "actors.answers",
        "actors.bulkheads",
        "actors.limits",
        "actors.profile",
        "actors.refusals",
        "actors.ulids",
        "actors.values",
    }
    assert {name for name in loaded if not name.startswith(("actors", "cells.api"))} == {"cells"}


def test_the_router_listens_before_it_loads_what_takes_long() -> None:
    """A router that was killed refuses connections for as long as it takes the next one to come so far."""
    program = "import sys, router.__main__; print(*{'fastapi', 'uvicorn', 'structlog', 'msgpack'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.split() == []


def operation(kind: OperationKind, state: OperationState, **rest: Any) -> Operation:
    prefix = "re_" if kind is OperationKind.REFUND else "op_"
    return Operation(f"{prefix}01JD8Z6V3H4K5M6N7P8Q9R0S1T", kind, 1_250, state, NOW, **rest)


PAYMENT = Payment(
    id="pay_01JD8Z6V3H4K5M6N7P8Q9R0S1T",
    created_ms=NOW,
    amount=1_250,
    currency="EUR",
    payment_method="tok_approve",
    manual_capture=False,
    reference="order-1",
    description=None,
    metadata={"a": "b"},
    operations=(
        operation(OperationKind.PURCHASE, OperationState.SUCCEEDED, settled_ms=NOW + 5),
        operation(OperationKind.REFUND, OperationState.FAILED, settled_ms=NOW + 9, failure=Failure("expired", True)),
    ),
)


def names(value: Any) -> Any:
    """Give a JSON value's names at every depth, without its values."""
    if isinstance(value, dict):
        return {name: names(entry) for name, entry in value.items()}
    return [names(entry) for entry in value] if isinstance(value, list) else None


@pytest.mark.parametrize(
    ("model", "rendered"),
    [
        (models.Payment, views.render_payment(PAYMENT, "test")),
        (models.Refund, views.render_refund(PAYMENT, PAYMENT.operations[1])),
        (
            models.PaymentList,
            views.render_list([views.payment_view(PAYMENT, "live")], has_more=True, next_starting_after=PAYMENT.id),
        ),
        (models.Balance, views.render_balance({("EUR", "partner_payable"): -1_250})),
    ],
)
def test_the_models_have_the_very_names_that_cells_answer_with(model: type[BaseModel], rendered: bytes) -> None:
    read = model.model_validate_json(rendered)
    assert names(orjson.loads(read.model_dump_json())) == names(orjson.loads(rendered))


def test_statuses_and_kinds_are_the_actor_s() -> None:
    assert [status.value for status in models.PaymentStatus] == [status.value for status in actor.PaymentStatus]
    assert [status.value for status in models.OperationStatus] == [state.value for state in OperationState]
