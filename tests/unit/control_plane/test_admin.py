"""The admin API over a stand-in door, in process; the socket itself is in tests/integration/test_supervisor.py."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from cells.api.messages import RefusalCode
from control_plane import admin, limits, registry_codec, registry_keys, status
from control_plane.access import AccessLog
from control_plane.actions import all_actions
from control_plane.approving import Approvals
from control_plane.door_moves import DoorMoves
from control_plane.errors import ERRORS_BY_CODE
from control_plane.gate import Gate
from control_plane.moves import Moves
from control_plane.operators import Operators
from control_plane.partners import to_profile
from stores.contract import StoreUnavailableError
from stores.sqlite_shelf import SqliteShelf
from stores.sqlite_store import SqliteStore
from tests.over_socket import WHO, over_socket
from tests.stand_in_door import Installation

ACME = {"id": "acme", "name": "Acme"}
SETTLEMENT = {
    "sha256": "ab" * 32,
    "settlement_date": "2026-11-21",
    "kind": "final",
    "partner": None,
    "acquirer": "main",
    "rows": 3,
    "totals": [{"currency": "EUR", "gross": 10**19, "fee": 2, "net": -3, "rows": 3}],
}
COUNTS = {"rows": 3, "matched": 3, "differing": 0, "extra": 0, "missing": 0, "repeated": 0, "not_asked": 0}


@pytest.fixture
async def client(installation: Installation) -> AsyncIterator[httpx.AsyncClient]:
    control, registry, doors, publisher = await installation.control_plane()

    async def collect() -> dict[str, Any]:
        return status.build(
            control_plane={"running": True, "pid": 1, "endpoint": "control.sock", "started_at": "now"},
            states=[],
            answers=await status.ask_cells(doors, installation.settings.cell_names),
            partners=registry.partners(),
            directory_version=publisher.version,
        )

    moving = Moves(
        registry,
        DoorMoves(doors),
        publisher.publish,
        lambda: publisher.version,
        to_profile,
        lambda: {"cell-0": {"store": "sqlite"}, "cell-1": {"store": "sqlite"}},
    )
    operators = Operators(registry, installation.folder.pepper_file.read_bytes())
    await operators.ensure_local(installation.folder.operator_key_file)
    approvals = Approvals(registry, all_actions(registry, control, operators, doors), (), b"p")
    routes = admin.make_routes(registry, control, doors, moving, collect, operators, approvals)
    app = Gate(routes, operators, AccessLog(registry))
    transport = httpx.ASGITransport(over_socket(app))
    key = installation.folder.operator_key_file.read_text()
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://control", headers=headers) as made:
        yield made


async def test_a_key_is_shown_once_and_no_hash_ever(client: httpx.AsyncClient) -> None:
    created = await client.post("/partners", json=ACME)
    assert created.status_code == 201
    key = created.json()["key"]
    assert key["api_key"].startswith("sk_test_acme_")
    shown = await client.get("/partners/acme")
    assert key["api_key"] not in shown.text
    assert "hash" not in shown.text
    assert shown.json()["keys"][0]["hint"] == key["api_key"][-4:]
    assert [change["who"] for change in shown.json()["changes"]] == [WHO] * 3


async def test_an_id_is_made_where_none_is_given(client: httpx.AsyncClient) -> None:
    created = (await client.post("/partners", json={})).json()["partner"]
    assert created["id"].startswith("partner_")
    assert created["name"] == created["id"]
    assert [partner["id"] for partner in (await client.get("/partners")).json()["partners"]] == [created["id"]]


@pytest.mark.parametrize(
    "body",
    [
        {"id": "ACME"},
        {"id": "a" * 41},
        {"id": "a/b"},
        {"mode": "prod"},
        {"rate_per_second": 0},
        {"rate_per_second": 10**9},
        {"name": "two\nlines"},
        {"colour": "red"},
    ],
)
async def test_a_wrong_option_is_named(client: httpx.AsyncClient, body: dict[str, object]) -> None:
    answer = await client.post("/partners", json=body)
    assert answer.status_code == 400
    (name,) = body
    assert answer.json()["kind"] == "settings_invalid"
    assert answer.json()["what"].startswith(f"{name}: ")


async def test_a_partner_that_is_not_there_is_an_error_with_a_hint(client: httpx.AsyncClient) -> None:
    answer = await client.post("/partners/nobody/suspend")
    assert answer.status_code == 404
    assert answer.json()["what"] == "there is no partner 'nobody'"
    assert "partner list" in answer.json()["hint"]


async def test_limits_that_name_nothing_are_refused(client: httpx.AsyncClient) -> None:
    await client.post("/partners", json=ACME)
    assert (await client.patch("/partners/acme/limits", json={})).status_code == 400
    changed = await client.patch("/partners/acme/limits", json={"in_flight_max": 9})
    assert changed.json()["partner"]["in_flight_max"] == 9
    assert changed.json()["partner"]["rate_burst"] == 100


async def test_keys_rotate_and_are_revoked(client: httpx.AsyncClient) -> None:
    first = (await client.post("/partners", json=ACME)).json()["key"]
    second = (await client.post("/partners/acme/keys", json={"grace_s": 0})).json()["key"]
    assert first["api_key"] != second["api_key"]
    assert (await client.delete(f"/partners/acme/keys/{second['id']}")).status_code == 200
    keys = (await client.get("/partners/acme")).json()["keys"]
    assert [key["revoked_at"] is not None for key in keys] == [False, True]
    assert keys[0]["expires_at"] is not None
    too_long = await client.post("/partners/acme/keys", json={"grace_s": limits.KEY_GRACE_S_MAX + 1})
    assert too_long.status_code == 400


async def test_unknown_operations_are_listed_over_all_partners(
    client: httpx.AsyncClient, installation: Installation
) -> None:
    for index in range(6):
        await client.post("/partners", json={"id": f"p{index}"})
    operation = {
        "operation_id": "op_1",
        "payment_id": "pay_1",
        "kind": "capture",
        "amount": 5,
        "currency": "EUR",
        "age_ms": 61_000,
        "attempts": 3,
        "needs_person": True,
        "acquirer": "",
    }
    for door in installation.doors.values():
        door.unknown = [operation]
    found = (await client.get("/unknown")).json()
    assert [row["partner"] for row in found["operations"]] == [f"p{index}" for index in range(6)]
    assert found["operations"][0] == {"partner": "p0", **operation}
    assert len((await client.get("/unknown", params={"partner": "p3"})).json()["operations"]) == 1
    installation.doors["cell-0"].refuse = RefusalCode.PARTNER_UNAVAILABLE
    found = (await client.get("/unknown")).json()
    assert len(found["operations"]) + len(found["not_asked"]) == 6
    assert found["not_asked"], "what could not be asked is said, not left out"


async def test_an_operation_is_resolved_with_who_and_why(client: httpx.AsyncClient, installation: Installation) -> None:
    await client.post("/partners", json=ACME)
    body = {"partner": "acme", "outcome": "succeeded", "note": "the bank's statement of 22 November says so"}
    answer = await client.post("/unknown/op_1/resolve", json=body)
    assert answer.status_code == 200
    (resolved,) = [arguments for door in installation.doors.values() for arguments in door.resolved]
    assert resolved == {
        "operation_id": "op_1",
        "outcome": "succeeded",
        "operator": WHO,
        "note": body["note"],
    }
    changes = (await client.get("/partners/acme")).json()["changes"]
    assert changes[0]["what"] == "operation_resolved"
    assert (await client.post("/unknown/op_1/resolve", json={**body, "outcome": "maybe"})).status_code == 400
    assert (await client.post("/unknown/op_1/resolve", json={**body, "note": ""})).status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/partners", {**ACME, "name": "Acme 4242 4242 4242 4242"}),
        ("/partners", {"id": "p4242424242424242", "name": "Acme"}),
        ("/operators", {"id": "ann4242424242424242", "role": "viewer"}),
        ("/unknown/op_1/resolve", {"partner": "acme", "outcome": "failed", "note": "card 4242-4242-4242-4242"}),
    ],
)
async def test_no_card_number_is_stored_of_what_operators_write(
    client: httpx.AsyncClient, path: str, body: dict[str, str]
) -> None:
    refused = await client.post(path, json=body)
    assert refused.status_code == 400
    assert "card number" in refused.text
    assert "4242" not in refused.text


async def test_what_is_done_with_a_settlement_file_is_noted(
    client: httpx.AsyncClient, installation: Installation
) -> None:
    begun = await client.post("/reconciliations", json=SETTLEMENT)
    assert (begun.status_code, begun.json()["who"]) == (201, WHO)
    path = f"/reconciliations/{begun.json()['entry']}/end"
    assert (await client.post(path, json={**COUNTS, "rows": 4})).status_code == 409, "more rows than the file has"
    assert (await client.post("/reconciliations/1/end", json=COUNTS)).status_code == 404, "another entry"
    assert (await client.post(path, json=COUNTS)).status_code == 201
    store = await SqliteShelf(installation.folder.root).open(*registry_keys.BOOK)
    found = (
        await store.read(
            [registry_keys.change(3), registry_keys.change(4)]  # before: the log's seal, the local operator
        )
    ).values
    await store.close()
    noted = [registry_codec.decode_change(value) for value in found if value is not None]
    assert [(change.who, change.what, change.partner_id) for change in noted] == [
        (WHO, f"reconciliation_{stage}", None) for stage in ("begun", "ended")
    ]
    assert [change.detail for change in noted] == [
        SETTLEMENT,
        {"begun": begun.json()["entry"], "sha256": SETTLEMENT["sha256"], **COUNTS},
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"sha256": "ab"},
        {"sha256": "AB" * 32},
        {"settlement_date": "today"},
        {"kind": "x" * 1_000},
        {"partner": "acme\n"},
        {"acquirer": "a b"},
        {"rows": -1},
        {"rows": limits.SETTLEMENT_FILE_ROWS_MAX + 1},
        {"totals": [{"currency": "EUR", "gross": "many", "fee": 0, "net": 0, "rows": 1}]},
        {"note": "all is well"},
    ],
)
async def test_no_text_of_ones_own_stands_in_a_reconciliations_entry(
    client: httpx.AsyncClient, wrong: dict[str, Any]
) -> None:
    assert (await client.post("/reconciliations", json={**SETTLEMENT, **wrong})).status_code == 400


async def test_a_reconciliation_is_ended_by_who_began_it(client: httpx.AsyncClient) -> None:
    key = (await client.post("/operators", json={"id": "ann", "role": "operator"})).json()["key"]
    entry = (await client.post("/reconciliations", json=SETTLEMENT)).json()["entry"]
    client.headers["Authorization"] = f"Bearer {key}"
    answer = await client.post(f"/reconciliations/{entry}/end", json=COUNTS)
    assert (answer.status_code, answer.json()["what"]) == (409, f"{WHO} began it, and ann ends it")


async def test_while_the_registrys_store_is_away_reads_go_on_and_writes_are_refused_whole(
    client: httpx.AsyncClient, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.post("/partners", json=ACME)
    before = (await client.get("/partners/acme")).json()

    async def away(*_: object) -> None:
        raise StoreUnavailableError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(SqliteStore, "commit", away)
        asked = [
            client.post("/partners", json={"id": "beta"}),
            client.post("/partners/acme/suspend"),
            client.patch("/partners/acme/limits", json={"in_flight_max": 9}),
            client.post("/partners/acme/keys", json={"grace_s": 0}),
            client.delete(f"/partners/acme/keys/{before['keys'][0]['id']}"),
            client.post("/reconciliations", json=SETTLEMENT),
        ]
        for answer in await asyncio.gather(*asked):
            assert answer.status_code == 503
            said = answer.json()
            assert said["kind"] == "registry_unavailable"
            assert said["what"] == "the registry can't be used: disk I/O error"
            assert said["where"].endswith("control.sqlite")
            assert said["hint"]
            assert ERRORS_BY_CODE[said["kind"]].exit_code == 2
        assert (await client.get("/partners/acme")).json() == before
        patched.setattr(SqliteStore, "read", away)
        shown = (await client.get("/partners/acme")).json()
        assert (shown["partner"], shown["keys"], shown["changes"]) == (before["partner"], before["keys"], [])
        assert "disk I/O error" in shown["changes_unread"], "what can't be shown is said, not left out"
        assert len((await client.get("/partners")).json()["partners"]) == 1
        assert (await client.get("/status")).status_code == 200
    assert (await client.get("/partners/acme")).json() == before
    assert (await client.post("/partners/acme/suspend")).status_code == 200


async def test_a_doors_refusal_keeps_its_code(client: httpx.AsyncClient, installation: Installation) -> None:
    await client.post("/partners", json=ACME)
    for door in installation.doors.values():
        door.refuse = RefusalCode.OPERATION_FINAL
    answer = await client.post(
        "/unknown/op_1/resolve", json={"partner": "acme", "outcome": "failed", "note": "asked the bank"}
    )
    assert answer.status_code == 409
    assert answer.json()["code"] == "operation_final"
    changes = json.dumps((await client.get("/partners/acme")).json()["changes"])
    assert "operation_resolved" not in changes


async def test_status_tells_a_door_that_does_not_answer_from_one_that_does(
    client: httpx.AsyncClient, installation: Installation
) -> None:
    for index in range(6):
        await client.post("/partners", json={"id": f"p{index}"})
    await installation.servers[0].aclose()
    found = (await client.get("/status")).json()
    assert [cell["answers"] for cell in found["cells"]] == [False, True]
    assert {row["state"] for row in found["partners"] if row["cell"] == "cell-1"} == {"active"}
    assert {row["state"] for row in found["partners"] if row["cell"] == "cell-0"} == {"not known"}
    installation.doors["cell-1"].profiles.clear()
    found = (await client.get("/status")).json()
    assert {row["state"] for row in found["partners"] if row["cell"] == "cell-1"} == {"absent"}


async def test_who_waits_for_a_move_that_an_evacuation_replaces_is_told_that_it_has_not_ended(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(*_: object) -> asyncio.Task[None]:
        halted = asyncio.create_task(asyncio.sleep(3_600))
        halted.cancel()
        return halted

    await client.post("/partners", json=ACME)
    monkeypatch.setattr(Moves, "start", start)
    answer = await client.post("/partners/acme/move", json={"to": "cell-1", "wait_s": 5})
    assert (answer.status_code, answer.json()) == (200, {"ended": False})


async def test_heads_without_end_are_cut_off_before_any_key_is_looked_at() -> None:
    """Over a real socket: 48 MB of one header without a key cost the control plane seconds of CPU, once."""
    calls = 0

    async def gate(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1

    listener = socket.create_server(("127.0.0.1", 0))
    server = admin.make_server(gate)
    serving = asyncio.create_task(server.serve([listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
    began_s = time.process_time()
    try:
        writer.write(b"GET /status HTTP/1.1\r\nhost: x\r\nx: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(8):
                writer.write(b"y" * 1_048_576)
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            assert (await reader.read(12)) == b"HTTP/1.1 431"
    finally:
        writer.close()
        server.should_exit = True
        await serving
    assert calls == 0
    assert time.process_time() - began_s < 1
