"""The gate of the admin API: keys, roles and bodies, over the whole application and a stand-in door."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from control_plane import admin, fleet_api, gate, limits, rebalance_api
from control_plane.access import AccessLog
from control_plane.actions import all_actions
from control_plane.approving import Approvals
from control_plane.door_moves import DoorMoves
from control_plane.errors import FolderError, RefusedError
from control_plane.evacuation import Evacuation
from control_plane.fleet import Fleet, Ground
from control_plane.gate import DRY_RUN_HEADER, FailedKeys, Gate
from control_plane.load import Load
from control_plane.moves import Moves
from control_plane.moves_mover import MovesMover
from control_plane.operators import LOCAL, RESERVED, Operators
from control_plane.origin import Peer
from control_plane.partners import to_profile
from control_plane.processes import ProcessSpec
from control_plane.rebalancer import Rebalancer
from control_plane.registry import Registry
from control_plane.registry_records import ACCESSES
from control_plane.roles import DRY_RUNS, ON_THIS_MACHINE, ROLE_OF, ROLES, Role, role_for
from control_plane.supervisor import Supervisor
from tests.over_socket import UID, WHO, over_socket
from tests.stand_in_door import Installation

# What names a person, and once named one in the audit log.
AS_PEOPLE = {"X-Operator": "ann"}
PLACES = {"cell-0": {"store": "sqlite"}, "cell-1": {"store": "sqlite"}}


class Scene:
    """The application behind its gate, whose waits are written down and not waited for."""

    def __init__(self, registry: Registry, operators: Operators, app: FastAPI, installation: Installation) -> None:
        self.registry = registry
        self.operators = operators
        self.app = app
        self.installation = installation
        self.waited: list[float] = []
        self.peer: Peer | None = Peer(UID)
        self.now = 0.0
        self.accesses = AccessLog(registry, lambda: self.now)
        self.gate = Gate(app, operators, self.accesses, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.waited.append(seconds)

    async def ask(self, method: str, path: str, key: str | None, **more: Any) -> httpx.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(over_socket(self.gate, self.peer))
        async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
            return await client.request(method, path, headers={**AS_PEOPLE, **headers}, **more)

    def local_key(self) -> str:
        return self.installation.folder.operator_key_file.read_text()


@pytest.fixture
async def scene(installation: Installation) -> AsyncIterator[Scene]:
    control, registry, doors, publisher = await installation.control_plane()
    moves = Moves(registry, DoorMoves(doors), publisher.publish, lambda: publisher.version, to_profile, lambda: PLACES)
    operators = Operators(registry, installation.folder.pepper_file.read_bytes())
    await operators.ensure_local(installation.folder.operator_key_file)

    async def status() -> dict[str, Any]:
        return {"fine": True}

    ground = Ground(installation.settings, installation.folder, lambda _: [], lambda: None, lambda _: True)
    fleet = Fleet(ground, registry, publisher, doors, Supervisor([], installation.folder, "0" * 16, _is_well))
    rebalancer = Rebalancer(registry, MovesMover(moves), Load(registry, installation.folder, []))
    evacuation = Evacuation(registry, fleet, moves, doors, dict, after_s=0)
    more = [fleet_api.routes(fleet, evacuation), rebalance_api.routes(rebalancer)]
    approvals = Approvals(registry, all_actions(registry, control, operators, doors), (), b"p")
    app = admin.make_routes(registry, control, doors, moves, status, operators, approvals, more)
    return Scene(registry, operators, app, installation)


async def _is_well(_: ProcessSpec) -> bool:
    return True


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    described = app.openapi()["paths"]
    return {(method.upper(), path) for path, methods in described.items() for method in methods}


async def test_every_route_is_in_the_table_and_none_other(scene: Scene) -> None:
    assert routes_of(scene.app) == set(ROLE_OF)


def path_of(route: str) -> str:
    for name in ("partner_id", "key_id", "operation_id", "operator_id", "approval_id", "name", "entry"):
        route = route.replace(f"{{{name}}}", "nobody")
    return route


async def test_each_role_is_kept_from_what_is_above_it_and_from_nothing_else(scene: Scene) -> None:
    keys = {role: (await scene.operators.add(role.word, role, "ann")).text for role in Role}
    for (method, route), needed in ROLE_OF.items():
        for role, key in keys.items():
            answer = await scene.ask(method, path_of(route), key)
            allowed = role >= needed
            assert (answer.status_code != 403) == allowed, (method, route, role)
            if not allowed:
                assert answer.json()["code"] == "forbidden"
        answer = await scene.ask(method, path_of(route), None)
        assert answer.status_code == 401, (method, route)


def test_a_route_that_nobody_thought_of_needs_the_highest_role() -> None:
    assert role_for("POST", "/new") == ("/new", Role.ADMIN)
    assert role_for("GET", "/partners/a/b") == ("/partners/a/b", Role.ADMIN)
    assert role_for("POST", "/partners/import") == ("/partners/import", Role.OPERATOR)
    assert role_for("GET", "/partners/acme") == ("/partners/{partner_id}", Role.VIEWER)
    assert list(ROLES.values()) == sorted(Role)


BAD_KEYS: dict[str, Callable[[str], str | None]] = {
    "none": lambda _: None,
    "empty": lambda _: "",
    "another": lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"),
    "longer": lambda key: key + "A",
    "of nobody": lambda key: key.replace("ok_local_", "ok_nobody_"),
    "a partner's": lambda key: key.replace("ok_local_", "sk_test_acme_"),
}


@pytest.mark.parametrize("bad", BAD_KEYS.values(), ids=list(BAD_KEYS))
async def test_a_key_that_is_not_good_is_a_problem_and_is_not_repeated(
    scene: Scene, bad: Callable[[str], str | None]
) -> None:
    key = bad(scene.local_key())
    answer = await scene.ask("GET", "/status", key)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert {"type", "title", "status", "detail", "code"} <= answer.json().keys()
    assert not key or key not in answer.text


async def test_failed_keys_are_slowed_and_good_ones_are_not(scene: Scene) -> None:
    for _ in range(12):
        assert (await scene.ask("GET", "/status", "ok_local_wrong")).status_code == 401
    assert scene.waited == sorted(scene.waited)
    assert scene.waited[0] * 1_000 == limits.FAILED_KEY_DELAY_MS_MIN
    assert scene.waited[-1] * 1_000 == limits.FAILED_KEY_DELAY_MS_MAX
    waits = len(scene.waited)
    assert (await scene.ask("GET", "/status", scene.local_key())).status_code == 200
    assert len(scene.waited) == waits


async def test_past_so_many_that_wait_the_answer_comes_at_once(scene: Scene) -> None:
    scene.gate._failed.waiting = limits.FAILED_KEYS_WAITING_MAX
    answer = await scene.ask("GET", "/status", None)
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_failed_keys")
    assert scene.waited == []
    assert (await scene.ask("GET", "/status", scene.local_key())).status_code == 200


def test_failures_are_counted_by_address_within_a_window_in_a_bounded_table(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    failed = FailedKeys(lambda: now[0])
    assert [failed.note("a") for _ in range(3)] == [50, 100, 200]
    assert failed.note("b") == 50
    now[0] += limits.FAILED_KEYS_WINDOW_MS / 1_000
    assert failed.note("a") == 50
    monkeypatch.setattr(gate.limits, "FAILED_KEYS_ADDRESSES_MAX", 2)
    for address in ("c", "d", "e"):
        failed.note(address)
    assert len(failed._windows) == 2


async def test_who_did_it_is_the_operator_whatever_it_says_of_itself(scene: Scene) -> None:
    key = (await scene.operators.add("bob", Role.ADMIN, "ann")).text
    await scene.ask("POST", "/partners", key, json={"id": "acme"})
    await scene.ask("POST", "/partners", scene.local_key(), json={"id": "beta"})
    entries = [entry async for entry in scene.registry.audit_log()]
    assert {entry.who for entry in entries if entry.partner_id == "acme"} == {"bob"}
    assert {entry.who for entry in entries if entry.partner_id == "beta"} == {WHO}
    assert {entry.origin for entry in entries if entry.partner_id == "beta"} == {f"uid {UID}"}
    assert {entry.origin for entry in entries if entry.who == "control_plane"} == {""}


async def test_over_tcp_the_local_key_is_nobodys_and_an_operators_own_is_with_its_address(scene: Scene) -> None:
    key = (await scene.operators.add("ann", Role.ADMIN, "bob")).text
    scene.peer = None
    answer = await scene.ask("POST", "/partners", scene.local_key(), json={"id": "acme"})
    assert (answer.status_code, scene.waited) == (401, [limits.FAILED_KEY_DELAY_MS_MIN / 1_000])
    assert (await scene.ask("POST", "/partners", key, json={"id": "acme"})).status_code == 201
    entries = [entry async for entry in scene.registry.audit_log() if entry.partner_id == "acme"]
    assert {(entry.who, entry.origin) for entry in entries} == {("ann", "127.0.0.1")}
    for method, route in ON_THIS_MACHINE:
        assert (await scene.ask(method, path_of(route), key, json={})).status_code == 403


async def test_who_logged_in_is_told_beside_the_user_that_it_became(scene: Scene) -> None:
    scene.peer = Peer(0, 1_000)
    found = (await scene.ask("GET", "/whoami", scene.local_key())).json()
    assert (found["who"], found["origin"]) == ("local:0", "uid 0, logged in as 1000")


async def told(scene: Scene) -> list[tuple[str, str, str | None, str, dict[str, Any]]]:
    """Give what the audit log tells of reads and refusals."""
    await scene.accesses.work()
    entries = [entry async for entry in scene.registry.audit_log() if entry.what in ACCESSES]
    return [(entry.who, entry.what, entry.partner_id, entry.origin, entry.detail) for entry in entries]


async def test_who_reads_partners_and_the_log_is_in_the_log_once_a_minute(scene: Scene) -> None:
    await scene.ask("POST", "/partners", scene.local_key(), json={"id": "acme"})
    key = (await scene.operators.add("ann", Role.VIEWER, "bob")).text
    scene.peer = None
    for _ in range(3):
        for path in (
            "/partners/acme",
            "/unknown?partner=acme",
            "/audit-log",
            "/partners",
            "/status",
            "/partners/nobody",
        ):
            await scene.ask("GET", path, key)
    by_ann = ("ann", "read")
    span = {"times": 3}
    found = await told(scene)
    assert [(*one[:4], {name: one[4][name] for name in ("route", "times")}) for one in found] == [
        (*by_ann, "acme", "127.0.0.1", {"route": "/partners/{partner_id}", **span}),
        (*by_ann, "acme", "127.0.0.1", {"route": "/unknown", **span}),
        (*by_ann, None, "127.0.0.1", {"route": "/audit-log", **span}),
        (*by_ann, None, "127.0.0.1", {"route": "/partners", **span}),
    ]
    for _ in range(5):
        await scene.ask("GET", "/partners", key)
        assert await told(scene) == found, "the like within a minute is counted"
    scene.now += limits.ACCESS_WINDOW_MS / 1_000
    (again,) = (await told(scene))[len(found) :]
    assert (again[0], again[4]["route"], again[4]["times"]) == ("ann", "/partners", 5)
    history = (await scene.registry.changes("acme"))[0]
    assert history.what not in ACCESSES, "a partner's history is of changes"


async def test_what_is_refused_and_forbidden_is_in_the_log(scene: Scene) -> None:
    await scene.ask("POST", "/partners", scene.local_key(), json={"id": "acme"})
    key = (await scene.operators.add("ann", Role.VIEWER, "bob")).text
    await scene.ask("POST", "/partners/acme/suspend", key)
    await scene.ask("GET", "/operators", key)
    await scene.ask("POST", "/partners/" + "x" * 500 + "/anything", key)
    await scene.ask("POST", "/partners/acme/restore", scene.local_key())
    await scene.ask("POST", "/partners/nobody/suspend", scene.local_key())
    await scene.ask("POST", "/partners", scene.local_key(), json={"id": "A" * 500})
    forbidden = {"status": "403", "code": "forbidden", "times": 1}
    assert await told(scene) == [
        (
            "ann",
            "forbidden",
            "acme",
            f"uid {UID}",
            {"method": "POST", "route": "/partners/{partner_id}/suspend", **forbidden},
        ),
        ("ann", "forbidden", None, f"uid {UID}", {"method": "GET", "route": "/operators", **forbidden}),
        ("ann", "forbidden", None, f"uid {UID}", {"method": "POST", "route": "none that is known", **forbidden}),
        (
            WHO,
            "refused",
            None,
            f"uid {UID}",
            {
                "method": "POST",
                "route": "/partners/{partner_id}/suspend",
                "status": "404",
                "code": "not_found",
                "times": 1,
            },
        ),
        (
            WHO,
            "refused",
            None,
            f"uid {UID}",
            {"method": "POST", "route": "/partners", "status": "400", "code": "settings_invalid", "times": 1},
        ),
    ]


async def test_keys_that_are_not_good_are_in_the_log_with_the_operator_that_they_name(scene: Scene) -> None:
    await scene.operators.add("ann", Role.VIEWER, "bob")
    scene.peer = None
    secret = "s" * 43
    for key in (f"ok_ann_{secret}", f"ok_carl_{secret}", "x" * 5_000, scene.local_key(), None):
        await scene.ask("GET", "/partners", key)
    failed = ("nobody", "operator_key_failed", None, "127.0.0.1")
    found = await told(scene)
    assert [one[:4] for one in found] == [failed] * 3
    assert [(one[4].get("operator"), one[4]["times"]) for one in found] == [("ann", 1), (None, 3), ("local", 1)]
    assert secret not in repr(found)


@pytest.mark.parametrize("name", sorted(RESERVED | {LOCAL}))
async def test_no_operator_is_called_as_the_control_plane_calls_itself(scene: Scene, name: str) -> None:
    answer = await scene.ask("POST", "/operators", scene.local_key(), json={"id": name, "role": "viewer"})
    assert answer.status_code == 409


async def test_an_operators_name_is_none_of_a_local_user(scene: Scene) -> None:
    answer = await scene.ask("POST", "/operators", scene.local_key(), json={"id": "local:0", "role": "admin"})
    assert answer.status_code == 400


async def test_an_operator_is_added_disabled_enabled_and_given_a_new_key(scene: Scene) -> None:
    admin_key = scene.local_key()
    made = await scene.ask("POST", "/operators", admin_key, json={"id": "ann", "role": "viewer"})
    assert made.status_code == 201
    key = made.json()["key"]
    assert "hash" not in made.text
    assert (await scene.ask("GET", "/whoami", key)).json()["operator"]["id"] == "ann"
    assert (await scene.ask("POST", "/operators", admin_key, json={"id": "ann", "role": "admin"})).status_code == 409
    assert (await scene.ask("POST", "/operators/ann/disable", admin_key)).status_code == 200
    assert (await scene.ask("GET", "/whoami", key)).status_code == 401
    assert (await scene.ask("POST", "/operators/ann/enable", admin_key)).status_code == 200
    assert (await scene.ask("GET", "/whoami", key)).status_code == 200
    newer = (await scene.ask("POST", "/operators/ann/key", admin_key)).json()["key"]
    assert (await scene.ask("GET", "/whoami", key)).status_code == 401
    assert (await scene.ask("GET", "/whoami", newer)).status_code == 200
    assert (await scene.ask("POST", "/operators/nobody/disable", admin_key)).status_code == 404
    kept = repr([entry async for entry in scene.registry.audit_log()])
    assert key not in kept
    assert newer not in kept
    assert scene.registry.operator("ann").hash not in kept


async def test_the_last_admin_stays(scene: Scene) -> None:
    with pytest.raises(RefusedError, match="last admin"):
        await scene.operators.set_status(LOCAL, "disabled", "ann")
    await scene.operators.add("bob", Role.ADMIN, "ann")
    await scene.operators.set_status(LOCAL, "disabled", "ann")
    assert (await scene.ask("GET", "/status", scene.local_key())).status_code == 401
    await scene.operators.ensure_local(scene.installation.folder.operator_key_file)
    assert (await scene.ask("GET", "/status", scene.local_key())).status_code == 401, "a new start does not enable it"


async def test_the_local_key_is_kept_to_this_user_and_made_again_where_it_is_gone(scene: Scene) -> None:
    file = scene.installation.folder.operator_key_file
    before = scene.local_key()
    file.chmod(0o644)
    await scene.operators.ensure_local(file)
    assert (scene.local_key(), file.stat().st_mode & 0o777) == (before, 0o600)
    file.unlink()
    await scene.operators.ensure_local(file)
    assert scene.local_key() != before
    assert file.stat().st_mode & 0o777 == 0o600
    assert (await scene.ask("GET", "/status", before)).status_code == 401
    assert (await scene.ask("GET", "/status", scene.local_key())).status_code == 200
    file.write_bytes(b"\xff")
    with pytest.raises(FolderError):
        await scene.operators.ensure_local(file)


async def test_a_body_that_is_too_large_is_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate.limits, "ADMIN_BODY_BYTES_MAX", 100)
    answer = await scene.ask("POST", "/partners", scene.local_key(), content=b'{"name": "' + b"x" * 200 + b'"}')
    assert answer.status_code == 400
    assert scene.registry.partners() == []


async def test_what_is_not_there_is_a_problem(scene: Scene) -> None:
    answer = await scene.ask("GET", "/nothing", scene.local_key())
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    answer = await scene.ask("PUT", "/partners", scene.local_key())
    assert answer.status_code == 405
    assert answer.headers["content-type"] == "application/problem+json"


BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/partners/{partner_id}/delete"): {"grace_s": 60},
    ("POST", "/partners"): {"id": "beta"},
    ("PATCH", "/partners/{partner_id}/limits"): {"rate_burst": 7},
    ("PUT", "/partners/{partner_id}/acquirers"): {"acquirers": ["second"]},
    ("PUT", "/partners/{partner_id}/currencies"): {"currencies": ["EUR"]},
    ("POST", "/partners/{partner_id}/keys"): {"grace_s": 0},
    ("POST", "/operators"): {"id": "new", "role": "viewer"},
    ("POST", "/rebalance/apply"): {"by": "hash"},
}
CHANGES_NOTHING = {  # of a partner that is active and dedicated, and an operator that is active
    ("POST", "/partners/{partner_id}/resume"),
    ("POST", "/partners/{partner_id}/isolate"),
    ("POST", "/partners/{partner_id}/restore"),
    ("POST", "/operators/{operator_id}/enable"),
}


ACT_ELSEWHERE = {("POST", "/partners/{partner_id}/move"), ("POST", "/unknown/{operation_id}/resolve")}
NEED_A_RUN = {("POST", "/rebalance/pause"), ("POST", "/rebalance/abort")}


@pytest.mark.parametrize(("method", "route"), sorted(DRY_RUNS - ACT_ELSEWHERE - NEED_A_RUN))
async def test_a_dry_run_says_what_it_would_write_and_writes_nothing(scene: Scene, method: str, route: str) -> None:
    made = await scene.ask("POST", "/partners", scene.local_key(), json={"id": "acme"})
    await scene.operators.add("ann", Role.VIEWER, "bob")
    path = route.replace("{partner_id}", "acme").replace("{operator_id}", "ann")
    path = path.replace("{key_id}", made.json()["key"]["id"])

    def state() -> tuple[object, ...]:
        registry, doors = scene.registry, scene.installation.doors.values()
        held = (registry.partners(), registry.all_keys(), registry.operators(), registry.head)
        return (*held, registry.directory_version(), [sorted(door.profiles.items()) for door in doors])

    before = state()
    transport = httpx.ASGITransport(over_socket(scene.gate))
    headers = {**AS_PEOPLE, "Authorization": f"Bearer {scene.local_key()}", DRY_RUN_HEADER: "true"}
    async with httpx.AsyncClient(transport=transport, base_url="http://control", headers=headers) as client:
        tried = await client.request(method, path, json=BODIES.get((method, route)))
    assert tried.status_code == 200, tried.text
    assert tried.json()["dry_run"] is True
    assert bool(tried.json()["entries"]) == ((method, route) not in CHANGES_NOTHING)
    assert state() == before

    done = await scene.ask(method, path, scene.local_key(), json=BODIES.get((method, route)))
    assert done.is_success
    entries = [entry async for entry in scene.registry.audit_log(before[3].sequence)]  # type: ignore[attr-defined]
    for would, is_now in zip(tried.json()["entries"], entries, strict=False):
        assert (would["what"], would["partner_id"]) == (is_now.what, is_now.partner_id)


async def test_what_can_not_be_tried_without_doing_it_is_not_done(scene: Scene) -> None:
    await scene.ask("POST", "/partners", scene.local_key(), json={"id": "acme"})
    for method, route in set(ROLE_OF) - DRY_RUNS:
        head = scene.registry.head
        transport = httpx.ASGITransport(over_socket(scene.gate))
        headers = {**AS_PEOPLE, "Authorization": f"Bearer {scene.local_key()}", DRY_RUN_HEADER: "true"}
        async with httpx.AsyncClient(transport=transport, base_url="http://control", headers=headers) as client:
            answer = await client.request(method, path_of(route), json={})
        assert answer.status_code == 400, (method, route)
        assert scene.registry.head == head


async def tried(scene: Scene, path: str, body: dict[str, Any]) -> httpx.Response:
    headers = {**AS_PEOPLE, "Authorization": f"Bearer {scene.local_key()}", DRY_RUN_HEADER: "true"}
    transport = httpx.ASGITransport(over_socket(scene.gate))
    async with httpx.AsyncClient(transport=transport, base_url="http://control", headers=headers) as client:
        return await client.post(path, json=body)


async def test_a_move_is_tried_without_a_step(scene: Scene) -> None:
    made = await scene.ask("POST", "/partners", scene.local_key(), json={"id": "acme"})
    home = made.json()["partner"]["cell"]
    away = next(name for name in PLACES if name != home)
    head = scene.registry.head
    would = await tried(scene, "/partners/acme/move", {"to": away})
    (entry,) = would.json()["entries"]
    assert (entry["what"], entry["detail"]["to"]) == ("partner_move_begun", away)
    assert (await tried(scene, "/partners/acme/move", {"to": home})).status_code == 409
    assert (scene.registry.head, scene.registry.moves()) == (head, [])


async def test_a_rebalancing_is_tried_without_a_step(scene: Scene) -> None:
    made = await scene.ask("POST", "/partners", scene.local_key(), json={"id": "acme"})
    home = made.json()["partner"]["cell"]
    away = next(name for name in PLACES if name != home)
    scene.registry._held.partners["acme"] = replace(scene.registry.partner("acme"), cell=away)

    async def status() -> Any:
        return (await scene.ask("GET", "/rebalance", scene.local_key())).json()

    async def tell(path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        before = await status(), scene.registry.head
        would = (await tried(scene, path, body)).json()
        assert (await status(), scene.registry.head) == before
        (entry,) = would["entries"]
        return entry["what"], {**entry["detail"], "plan_shown": would.get("plan")}

    for path in ("/rebalance/pause", "/rebalance/abort"):
        assert (await tried(scene, path, {})).status_code == 409, "there is none"
    what, begun = await tell("/rebalance/apply", {"at_once": 3})
    assert (what, begun["moves"], begun["at_once"]) == ("rebalance_begun", 1, 3)
    assert begun["plan_shown"]["moves"][0]["to_cell"] == home
    assert begun["plan_shown"]["id"] == begun["plan"]
    assert (await tried(scene, "/rebalance/apply", {"plan_id": "0" * 12})).json()["code"] == "plan_changed"

    done = await scene.ask("POST", "/rebalance/apply", scene.local_key(), json={"plan_id": begun["plan"]})
    assert (done.status_code, done.json()["counts"]["waiting"]) == (201, 1)
    for verb, word in (("pause", "paused"), ("abort", "aborted")):
        what, detail = await tell(f"/rebalance/{verb}", {})
        assert (what, detail["waiting"], detail["moving"]) == (f"rebalance_{word}", 1, 0)
    await scene.ask("POST", "/rebalance/pause", scene.local_key())
    what, detail = await tell("/rebalance/apply", {"per_hour": 7})
    assert (what, detail["per_hour"][1], detail["waiting"]) == ("rebalance_resumed", 7, 1)


async def test_resolving_is_tried_only_of_what_needs_a_person(scene: Scene) -> None:
    made = await scene.ask("POST", "/partners", scene.local_key(), json={"id": "acme"})
    door = scene.installation.doors[made.json()["partner"]["cell"]]
    shown = {"operation_id": "op_1", "payment_id": "pay_1", "kind": "purchase", "amount": 1, "currency": "EUR"}
    body = {"partner": "acme", "outcome": "failed", "note": "asked"}
    head = scene.registry.head
    for unknown, status_code in (([], 409), ([shown], 409), ([{**shown, "needs_person": True}], 200)):
        door.unknown = unknown
        assert (await tried(scene, "/unknown/op_1/resolve", body)).status_code == status_code
    assert (scene.registry.head, door.resolved) == (head, [])


async def test_a_dry_run_finds_what_is_wrong(scene: Scene) -> None:
    transport = httpx.ASGITransport(over_socket(scene.gate))
    headers = {**AS_PEOPLE, "Authorization": f"Bearer {scene.local_key()}", DRY_RUN_HEADER: "true"}
    async with httpx.AsyncClient(transport=transport, base_url="http://control", headers=headers) as client:
        assert (await client.post("/partners/nobody/suspend")).status_code == 404
        assert (await client.post("/partners", json={"id": "acme", "acquirers": ["third"]})).status_code == 409
        client.headers[DRY_RUN_HEADER] = "perhaps"
        assert (await client.post("/partners", json={"id": "acme"})).status_code == 400
    assert scene.registry.partners() == []
