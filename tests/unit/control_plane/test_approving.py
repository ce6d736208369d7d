"""Changes by two persons over the admin API and stand-in doors: made once, as asked for, and told to neither."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from cells.api.messages import RefusalCode
from control_plane import admin, limits
from control_plane.access import AccessLog
from control_plane.actions import all_actions
from control_plane.approvals import KINDS, Person
from control_plane.approving import Approvals
from control_plane.data_folder import timestamp
from control_plane.door_moves import DoorMoves
from control_plane.errors import RegistryError
from control_plane.gate import DRY_RUN_HEADER, Gate
from control_plane.moves import Moves
from control_plane.operators import Operators
from control_plane.partners import Changed, NewPartner, Partners, to_profile
from control_plane.registry import Registry
from control_plane.roles import Role
from router.directory import hash_key, parse_key
from stores.contract import StoreUnavailableError
from stores.sqlite_store import SqliteStore
from tests.stand_in_door import Installation

PEPPER = b"p" * 32
UNKNOWN = {
    "operation_id": "op_1",
    "payment_id": "pay_1",
    "kind": "purchase",
    "amount": 1_250,
    "currency": "EUR",
    "needs_person": True,
    "acquirer": "main",
}
RESOLVE = {"partner": "acme", "outcome": "succeeded", "note": "asked by phone"}
ANN, BOB = Person("ann", "ann"), Person("bob", "bob")


async def collect() -> dict[str, Any]:
    return {}


class Scene:
    """A control plane where all kinds of changes need two persons; `ann`, `bob` and `eve` are operators."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.keys: dict[str, str] = {}

    async def start(self) -> None:
        """Make the control plane anew, as after a crash."""
        self.partners, self.registry, self.doors, publisher = await self.installation.control_plane()
        pepper = self.installation.folder.pepper_file.read_bytes()
        self.operators = Operators(self.registry, pepper)
        actions = all_actions(self.registry, self.partners, self.operators, self.doors)
        self.approvals = Approvals(self.registry, actions, KINDS, pepper)
        moves = Moves(
            self.registry, DoorMoves(self.doors), publisher.publish, lambda: publisher.version, to_profile, dict
        )
        routes = admin.make_routes(
            self.registry, self.partners, self.doors, moves, collect, self.operators, self.approvals
        )
        self.app = Gate(routes, self.operators, AccessLog(self.registry))

    async def fill(self) -> None:
        for name, role in (("ann", Role.ADMIN), ("bob", Role.ADMIN), ("eve", Role.VIEWER)):
            self.keys[name] = (await self.operators.add(name, role, "setup")).text
        for name, mode in (("acme", "live"), ("beta", "test")):
            await self.partners.create(NewPartner(name, name, mode, 50, 100, 256), "setup")
        for door in self.installation.doors.values():
            door.unknown = [UNKNOWN]

    async def ask(self, who: str, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        said = {"Authorization": f"Bearer {self.keys[who]}", **headers}
        async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
            return await client.request(method, path, json=body, headers=said)

    async def asked(self, who: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = await self.ask(who, method, path, body)
        assert answer.status_code == 202, answer.text
        told: dict[str, Any] = answer.json()
        return told

    async def approve(self, who: str, approval_id: str) -> httpx.Response:
        return await self.ask(who, "POST", f"/approvals/{approval_id}/approve")

    @property
    def resolved(self) -> list[dict[str, Any]]:
        return [one for door in self.installation.doors.values() for one in door.resolved]

    async def whats(self) -> list[str]:
        return [entry.what async for entry in self.registry.audit_log()]


@pytest.fixture
async def scene(installation: Installation) -> Scene:
    made = Scene(installation)
    await made.start()
    await made.fill()
    return made


async def test_a_live_partner_s_new_key_is_known_to_neither_of_the_two(scene: Scene) -> None:
    told = await scene.asked("ann", "POST", "/partners/acme/keys", {"grace_s": 0})
    approval = told["approval"]
    assert approval["who_may_decide"] == ["bob"]
    assert approval["arguments"] == {"partner_id": "acme", "grace_s": 0}
    assert len(scene.registry.keys("acme")) == 1, "nothing is changed yet"
    refused = await scene.approve("ann", approval["id"])
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert (await scene.approve("eve", approval["id"])).status_code == 403
    answer = (await scene.approve("bob", approval["id"])).json()
    assert answer["approval"]["state"] == "done"
    key = told["first_part"] + answer["result"]["key"]["second_part"]
    assert parse_key(key) == ("live", "acme")
    kept = next(one for one in scene.registry.keys("acme") if one.id == answer["result"]["key"]["id"])
    assert hash_key(scene.installation.folder.pepper_file.read_bytes(), key) == kept.hash
    assert told["first_part"] not in str(answer), "who approves is not told the first part"
    shown = await scene.ask("bob", "GET", f"/approvals/{approval['id']}")
    assert "_part" not in shown.text
    first, second = scene.registry.keys("acme")
    assert first.expires_at is not None
    assert second.expires_at is None
    (added,) = [entry for entry in await scene.registry.changes("acme") if entry.what == "key_added"][:1]
    assert added.who == "ann, approved by bob"
    assert [notice.what for notice in scene.registry.notices("acme")] == ["key_rotated"]
    again = await scene.approve("bob", approval["id"])
    assert (again.status_code, len(scene.registry.keys("acme"))) == (409, 2), "it is made once"


async def test_what_is_asked_for_again_is_the_one_that_waits(scene: Scene) -> None:
    first = await scene.asked("ann", "POST", "/partners/acme/keys", {"grace_s": 0})
    again = await scene.asked("ann", "POST", "/partners/acme/keys", {"grace_s": 0})
    assert again == first
    other = await scene.asked("bob", "POST", "/partners/acme/keys", {"grace_s": 0})
    assert other["approval"]["id"] == first["approval"]["id"]
    assert "first_part" not in other, "it is told to who asked first"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/partners/beta/keys", {"grace_s": 0}, 201),
        ("POST", "/partners/acme/suspend", None, 200),
        ("POST", "/operators/eve/disable", None, 200),
        ("POST", "/operators/ann/key", None, 201),
        ("POST", "/partners/nobody/keys", {"grace_s": 0}, 404),
        ("DELETE", "/partners/acme/keys/key_none", None, 404),
        ("POST", "/unknown/op_2/resolve", RESOLVE, 409),
        ("POST", "/operators", {"id": "bob", "role": "admin"}, 409),
    ],
)
async def test_what_needs_one_person_or_is_refused_does_not_wait(
    scene: Scene, method: str, path: str, body: Any, status: int
) -> None:
    answer = await scene.ask("ann", method, path, body)
    assert answer.status_code == status, answer.text
    assert scene.registry.approvals() == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", "/partners/acme/keys/{key}", None),
        ("POST", "/unknown/op_1/resolve", RESOLVE),
        ("POST", "/partners/beta/delete", {"grace_s": 60}),
        ("POST", "/operators", {"id": "dan", "role": "admin"}),
        ("POST", "/operators/eve/key", None),
        ("POST", "/operators/eve/enable", None),
    ],
)
async def test_each_of_these_waits_is_tried_without_waiting_and_is_made_once(
    scene: Scene, method: str, path: str, body: Any
) -> None:
    if path.endswith("enable"):
        await scene.ask("ann", "POST", "/operators/eve/disable")
    path = path.format(key=scene.registry.keys("acme")[0].id)
    tried = await scene.ask("ann", method, path, body, **{DRY_RUN_HEADER: "true"})
    assert tried.json()["waits_for_approval"] in KINDS
    assert len(tried.json()["entries"]) == 1
    assert scene.registry.approvals() == []
    told = await scene.asked("ann", method, path, body)
    before = await scene.whats()
    answer = await scene.approve("bob", told["approval"]["id"])
    assert answer.status_code == 200, answer.text
    new = (await scene.whats())[len(before) :]
    entry = tried.json()["entries"][0]["what"]
    assert sorted(what for what in new if what != "approval_approved") == sorted([entry, "approval_done"])
    who = {change.who async for change in scene.registry.audit_log() if change.what == entry}
    assert "ann, approved by bob" in who
    assert (await scene.approve("bob", told["approval"]["id"])).status_code == 409
    assert (await scene.whats())[len(before) :] == new


async def test_an_operator_s_key_too_is_known_to_neither(scene: Scene) -> None:
    told = await scene.asked("ann", "POST", "/operators", {"id": "dan", "role": "admin"})
    answer = (await scene.approve("bob", told["approval"]["id"])).json()
    assert "key" not in answer["result"]
    key = told["first_part"] + answer["result"]["second_part"]
    found = scene.operators.authenticate(key)
    assert found is not None
    assert found.id == "dan"


async def test_what_changed_meanwhile_is_not_made(scene: Scene) -> None:
    told = await scene.asked("ann", "POST", "/partners/acme/keys", {"grace_s": 0})
    await scene.partners.set_limits("acme", {"rate_burst": 7}, "ann")
    answer = await scene.approve("bob", told["approval"]["id"])
    assert answer.status_code == 409
    assert "changed since" in answer.json()["what"]
    assert scene.registry.approval(told["approval"]["id"]).state == "failed"
    assert len(scene.registry.keys("acme")) == 1


async def test_it_is_refused_or_withdrawn_and_then_is_over(scene: Scene) -> None:
    for who, verb, body, state in (
        ("bob", "refuse", {"note": "nobody asked us"}, "refused"),
        ("ann", "withdraw", None, "withdrawn"),
    ):
        told = await scene.asked("ann", "POST", "/partners/acme/keys", {"grace_s": 0})
        path = f"/approvals/{told['approval']['id']}"
        wrong = "ann" if verb == "refuse" else "bob"
        assert (await scene.ask(wrong, "POST", f"{path}/{verb}", body)).status_code == 403
        answer = await scene.ask(who, "POST", f"{path}/{verb}", body)
        assert answer.json()["approval"]["state"] == state
        assert (await scene.approve("bob", told["approval"]["id"])).status_code == 409
    listed = (await scene.ask("eve", "GET", "/approvals")).json()
    assert [one["state"] for one in listed["approvals"]] == ["refused", "withdrawn"]
    assert listed["two_persons_for"] == sorted(KINDS)
    assert len(scene.registry.keys("acme")) == 1


async def test_what_waits_too_long_expires(scene: Scene) -> None:
    told = await scene.asked("ann", "POST", "/partners/acme/keys", {"grace_s": 0})
    waiting = scene.registry.approval(told["approval"]["id"])
    async with scene.registry.writing() as draft:
        draft.put_approval(replace(waiting, expires_at=timestamp(datetime.now(UTC) - timedelta(seconds=1))))
        draft.note("clock", "passed", None, {})
    shown = await scene.ask("eve", "GET", f"/approvals/{waiting.id}")
    assert (shown.json()["approval"]["state"], shown.json()["approval"]["who_may_decide"]) == ("expired", [])
    assert (await scene.approve("bob", waiting.id)).status_code == 409
    await scene.approvals.work()
    assert scene.registry.approval(waiting.id).state == "expired"
    assert "approval_expired" in await scene.whats()


async def test_only_so_many_wait(scene: Scene) -> None:
    for grace_s in range(limits.APPROVALS_PENDING_PER_OPERATOR_MAX):
        await scene.asked("ann", "POST", "/partners/acme/keys", {"grace_s": grace_s})
    refused = await scene.ask("ann", "POST", "/partners/acme/keys", {"grace_s": 99})
    assert refused.status_code == 409
    assert "at most" in refused.json()["what"]
    await scene.asked("bob", "POST", "/partners/acme/keys", {"grace_s": 99})


async def test_approvals_outlive_the_control_plane(scene: Scene) -> None:
    told = await scene.asked("ann", "POST", "/partners/acme/keys", {"grace_s": 0})
    waiting = scene.registry.approval(told["approval"]["id"])
    await scene.start()
    assert scene.registry.approval(waiting.id) == waiting
    answer = (await scene.approve("bob", waiting.id)).json()
    key = told["first_part"] + answer["result"]["key"]["second_part"]
    assert parse_key(key) == ("live", "acme")


async def test_a_crash_before_the_commit_leaves_it_waiting_and_one_after_it_leaves_it_done(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = await scene.asked("ann", "POST", "/partners/acme/keys", {"grace_s": 0})
    approval_id = told["approval"]["id"]

    async def full(*_: object) -> None:
        raise StoreUnavailableError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(SqliteStore, "commit", full)
        with pytest.raises(RegistryError):
            await scene.approvals.approve(approval_id, BOB)
    assert scene.registry.approval(approval_id).state == "pending"

    async def die(*_: object) -> Changed:
        raise RuntimeError("killed after the commit")

    with monkeypatch.context() as broken:
        broken.setattr(Partners, "_publish", die)
        with pytest.raises(RuntimeError, match="killed"):
            await scene.approvals.approve(approval_id, BOB)
    await scene.start()
    assert scene.registry.approval(approval_id).state == "done"
    assert len(scene.registry.keys("acme")) == 2
    await scene.approvals.work()
    assert len(scene.registry.keys("acme")) == 2


async def test_a_crash_while_a_door_is_asked_is_made_good_by_the_next_start_and_under_one_name(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = await scene.asked("ann", "POST", "/unknown/op_1/resolve", RESOLVE)
    approval_id = told["approval"]["id"]
    assert "purchase of 1250 EUR" in told["approval"]["summary"]
    assert scene.resolved == [], "nothing is asked of the door before"

    async def die(*_: object) -> None:
        raise RuntimeError("killed before it is noted")

    with monkeypatch.context() as broken:
        broken.setattr(Registry, "note", die)
        with pytest.raises(RuntimeError, match="killed"):
            await scene.approvals.approve(approval_id, BOB)
    await scene.start()
    assert scene.registry.approval(approval_id).state == "approved"
    assert (await scene.approve("bob", approval_id)).status_code == 409
    await scene.approvals.work()
    assert scene.registry.approval(approval_id).state == "done"
    first, second = scene.resolved
    assert first == second
    assert first["operator"] == "ann, approved by bob"
    ids = {command_id for door in scene.installation.doors.values() for command_id in door.command_ids}
    assert ids == {f"resolve_{approval_id}"}, "so the partner's actor does it once"
    await scene.approvals.work()
    assert len(scene.resolved) == 2


async def test_a_door_that_may_have_done_it_is_asked_on_and_one_that_says_no_ends_it(scene: Scene) -> None:
    doors = list(scene.installation.doors.values())
    told = await scene.asked("ann", "POST", "/unknown/op_1/resolve", RESOLVE)
    for door in doors:
        door.refuse_resolving = RefusalCode.OUTCOME_UNKNOWN
    assert (await scene.approve("bob", told["approval"]["id"])).status_code == 409
    assert scene.registry.approval(told["approval"]["id"]).state == "approved"
    for door in doors:
        door.refuse_resolving = RefusalCode.OPERATION_FINAL
    await scene.approvals.work()
    ended = scene.registry.approval(told["approval"]["id"])
    assert ended.state == "failed"
    assert "operation_final" in ended.why
