"""The door over real worker processes, without Ray: shares, sending again, quarantine, ownership, the control plane."""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import orjson
import pytest

from actors.errors import StoreMissingError
from actors.store import Put, Store
from cells import door as door_module
from cells import limits as cell_limits
from cells.api import frames, limits, messages
from cells.api.bulkheads import Bulkhead
from cells.api.connection import Connection, PeerLostError, Request
from cells.api.messages import Answer, Command, Method, Profile, RefusalCode, Refused
from cells.cell_book import open_book
from cells.door import Door
from cells.shedding import Work, bounds
from cells.workforce import Link, Workforce
from stores.shelf import Shelf, open_shelf
from stores.sqlite_shelf import SqliteShelf
from stores.sqlite_store import SqliteStore
from tests.eventually import eventually, eventually_true
from tests.stand_in_cluster import StandInCluster
from tests.worker_process import GIVE_UP, POISON, STALL

SECRET = b"s" * 32
ACQUIRER_URL = "http://127.0.0.1:9"  # nobody is there; no test here gets that far
BUDGET_MS = 8_000


class OpenCell:
    """A door with its workforce, asked as a router or the control plane would ask it."""

    def __init__(self, folder: Path, cluster: StandInCluster, name: str = "cell-0") -> None:
        self.folder = folder
        self.name = name
        self.cluster = cluster
        self.superseded = asyncio.Event()
        self.broken: list[str] = []
        self.door: Door
        self.workforce: Workforce
        self._book: Store
        self._shelf: Shelf
        self.place: dict[str, Any] = {"store": "sqlite", "folder": str(folder)}
        self.bulkheads_off: set[Bulkhead] = set()
        self.fault_injection = False

    async def open(self, spares: int) -> None:
        self._shelf = open_shelf(self.place)
        self._book = await open_book(self._shelf)
        self.door = Door(
            self.name,
            self._shelf,
            self._book,
            {"main": ACQUIRER_URL},
            self.superseded.set,
            bulkheads_off=self.bulkheads_off,
        )
        await self.door.open()
        (self.folder / "secret").write_bytes(SECRET)
        self.workforce = Workforce(
            cell=self.name,
            host="127.0.0.1",
            folder=self.folder,
            logs_folder=self.folder,
            secret_file=self.folder / "secret",
            place=self.place,
            key=frames.role_key(SECRET, "door"),
            cluster=self.cluster,
            spares=spares,
            on_dead=self.door.worker_died,
            on_late=self.door.confirm,
            on_broken=self.broken.append,
            fault_injection=self.fault_injection,
            bulkheads_off=self.bulkheads_off,
        )
        await self.door.staff(self.workforce)

    async def close(self) -> None:
        """End as a killed door does: whatever it had begun stops, its workers live on."""
        if self.door._confirming is not None:
            self.door._confirming.cancel()
            await asyncio.gather(self.door._confirming, return_exceptions=True)
        await self.door.stop()
        await self.workforce.stop()
        await self._book.close()

    async def ask(
        self,
        method: str,
        partner_id: str,
        *,
        command_id: str = "c1",
        budget_ms: int = BUDGET_MS,
        role: str = "router",
        **arguments: Any,
    ) -> Answer | Refused:
        body = messages.encode_command(Command(command_id, "r1", arguments))
        return messages.decode_answer(await self.door.handle(Request(role, method, partner_id, budget_ms, body)))

    async def write(self, partner_id: str, command_id: str, budget_ms: int = BUDGET_MS) -> Answer | Refused:
        """Have the partner's actor decide something that needs no acquirer."""
        return await self.ask(
            Method.VOID_PAYMENT, partner_id, command_id=command_id, budget_ms=budget_ms, payment_id="pay_none"
        )

    async def control(self, method: str, body: dict[str, Any], role: str = "control") -> Answer | Refused:
        request = Request(role, method, "", BUDGET_MS, msgpack.packb(body))
        return messages.decode_answer(await self.door.handle(request))

    async def onboard(self, *partner_ids: str) -> None:
        for partner_id in partner_ids:
            answer = await self.control(Method.ONBOARD, {"profile": {"partner_id": partner_id, "version": 1}})
            assert isinstance(answer, Answer), answer

    async def status(self) -> dict[str, Any]:
        answer = await self.control(Method.CELL_STATUS, {})
        assert isinstance(answer, Answer)
        status = orjson.loads(answer.body)
        assert isinstance(status, dict)
        return status

    async def partner(self, partner_id: str) -> dict[str, Any]:
        (found,) = [partner for partner in (await self.status())["partners"] if partner["partner"] == partner_id]
        assert isinstance(found, dict)
        return found

    def link(self, partner_id: str) -> Link:
        link = self.door._seats[partner_id].link
        assert link is not None
        return link

    def book(self, partner_id: str) -> Path:
        return self.folder / "partners" / f"{partner_id}.sqlite"

    async def serves(self, partner_id: str) -> None:
        assert isinstance(await self.ask(Method.GET_BALANCE, partner_id), Answer)


@contextlib.asynccontextmanager
async def opened(folder: Path, cluster: StandInCluster, spares: int = 1) -> AsyncIterator[OpenCell]:
    cell = OpenCell(folder, cluster)
    await cell.open(spares)
    try:
        yield cell
    finally:
        await cell.close()


@pytest.fixture
async def cell(tmp_path: Path, cluster: StandInCluster) -> AsyncIterator[OpenCell]:
    async with opened(tmp_path, cluster) as made:
        yield made


def code(answer: Answer | Refused) -> RefusalCode:
    assert isinstance(answer, Refused), answer
    return answer.refusal.code


# Commands


async def test_a_command_reaches_its_partner_and_its_answer_comes_back_unread(cell: OpenCell) -> None:
    await cell.onboard("alpha")
    balance = await cell.ask(Method.GET_BALANCE, "alpha")
    assert isinstance(balance, Answer)
    assert code(await cell.write("alpha", "c1")) is RefusalCode.PAYMENT_NOT_FOUND


async def test_a_partner_that_is_not_here(cell: OpenCell) -> None:
    assert code(await cell.ask(Method.GET_BALANCE, "nobody")) is RefusalCode.PARTNER_MOVED


NEWS = {
    "notification_id": "msg_1",
    "operation_id": "op_1",
    "original_id": None,
    "result": "approved",
    "reference": "ref",
    "expires_ms": None,
}


async def test_notifications_have_a_share_of_their_own(cell: OpenCell, monkeypatch: pytest.MonkeyPatch) -> None:
    await cell.onboard("alpha")
    monkeypatch.setattr(limits, "DOOR_PARTNER_COMMANDS_MAX", 0)
    assert code(await cell.write("alpha", "c1")) is RefusalCode.MAILBOX_FULL
    assert code(await cell.ask(Method.NOTIFY_RESULT, "alpha", **NEWS)) is RefusalCode.PAYMENT_NOT_FOUND
    monkeypatch.setattr(limits, "DOOR_PARTNER_NOTIFICATIONS_MAX", 0)
    refused = await cell.ask(Method.NOTIFY_RESULT, "alpha", **NEWS)
    assert code(refused) is RefusalCode.MAILBOX_FULL
    assert isinstance(refused, Refused)
    assert refused.refusal.retry_after_ms == 1_000
    assert code(await cell.ask(Method.NOTIFY_RESULT, "nobody", **NEWS)) is RefusalCode.PARTNER_MOVED


@pytest.mark.parametrize("method", [Method.NOTIFY_RESULT, Method.NOTIFY_DISPUTE])
async def test_only_routers_speak_for_acquirers(cell: OpenCell, method: str) -> None:
    await cell.onboard("alpha")
    refused = await cell.ask(method, "alpha", role="control", **NEWS)
    assert isinstance(refused, Refused)
    assert "for routers only" in refused.refusal.detail


async def test_each_partner_has_its_share_of_the_door(cell: OpenCell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DOOR_PARTNER_COMMANDS_MAX", 3)
    await cell.onboard("alpha", "beta")
    stalled = [asyncio.create_task(cell.write("alpha", f"{STALL}-{number}", 2_000)) for number in range(3)]
    await asyncio.sleep(0)
    refused = await cell.write("alpha", "one-too-many")
    assert code(refused) is RefusalCode.MAILBOX_FULL
    assert isinstance(refused, Refused)
    assert refused.refusal.retry_after_ms is not None
    assert code(await cell.write("beta", "c1")) is RefusalCode.PAYMENT_NOT_FOUND
    for task in stalled:
        task.cancel()
    await asyncio.gather(*stalled, return_exceptions=True)
    assert code(await cell.write("alpha", "c2")) is RefusalCode.PAYMENT_NOT_FOUND


async def test_a_death_costs_the_commands_under_way_a_delay_and_no_error(cell: OpenCell) -> None:
    await cell.onboard("alpha")
    await eventually(lambda: any(cell.workforce.is_spare(link) for link in cell.workforce.links.values()))
    os.kill(cell.link("alpha").endpoint.pid, signal.SIGSTOP)  # so that they are surely under way
    asking = [asyncio.create_task(cell.write("alpha", f"c{number}")) for number in range(50)]
    await asyncio.sleep(0.05)
    began = time.monotonic()
    os.kill(cell.link("alpha").endpoint.pid, signal.SIGKILL)
    answers = await asyncio.gather(*asking)
    assert {code(answer) for answer in answers} == {RefusalCode.PAYMENT_NOT_FOUND}
    assert time.monotonic() - began < 1
    partner = await cell.partner("alpha")
    assert (partner["state"], partner["epoch"], partner["takeovers"]) == ("active", 2, 1)


async def test_a_command_is_sent_so_often_and_no_more(cell: OpenCell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection loses it: after the last send the caller is told to ask, and the next command is served."""
    await cell.onboard("alpha")
    sent: list[str] = []
    request = Connection.request

    async def losing(self: Connection, method: str, partner_id: str, body: bytes, budget_ms: int) -> bytes:
        if method == Method.VOID_PAYMENT and messages.decode_command(body).command_id == "unlucky":
            sent.append(method)
            raise PeerLostError("as the test ordered")
        return await request(self, method, partner_id, body, budget_ms)

    monkeypatch.setattr(Connection, "request", losing)
    assert code(await cell.write("alpha", "unlucky")) is RefusalCode.OUTCOME_UNKNOWN
    assert len(sent) == limits.COMMAND_SENDS_MAX
    assert code(await cell.write("alpha", "c2")) is RefusalCode.PAYMENT_NOT_FOUND


async def test_a_poison_command_is_quarantined_and_no_other(cell: OpenCell) -> None:
    await cell.onboard("alpha", "beta")
    beta_epoch = cell.door._seats["beta"].epoch
    poison, *others = await asyncio.gather(
        cell.write("alpha", f"{POISON}-1"), *(cell.write("beta", f"c{number}") for number in range(20))
    )
    assert code(poison) is RefusalCode.COMMAND_QUARANTINED
    assert {code(other) for other in others} == {RefusalCode.PAYMENT_NOT_FOUND}
    takeovers = (await cell.partner("alpha"))["takeovers"]
    assert takeovers == limits.POISON_DEATHS_MAX
    # Sent again by its router: refused at the door, nobody dies any more.
    assert code(await cell.write("alpha", f"{POISON}-1")) is RefusalCode.COMMAND_QUARANTINED
    assert code(await cell.write("alpha", "innocent")) is RefusalCode.PAYMENT_NOT_FOUND
    assert (await cell.partner("alpha"))["takeovers"] == takeovers
    assert cell.door._seats["beta"].epoch == beta_epoch


async def test_those_that_die_with_a_poison_are_not_suspected(cell: OpenCell) -> None:
    await cell.onboard("alpha")
    answers = await asyncio.gather(
        *(cell.write("alpha", f"before-{number}") for number in range(5)),
        cell.write("alpha", f"{POISON}-1"),
        *(cell.write("alpha", f"after-{number}") for number in range(5)),
    )
    codes = [code(answer) for answer in answers]
    # Sent twice and lost twice, an innocent one is told to ask; but it is never refused for good.
    assert codes.pop(5) is RefusalCode.COMMAND_QUARANTINED
    assert set(codes) <= {RefusalCode.PAYMENT_NOT_FOUND, RefusalCode.OUTCOME_UNKNOWN}
    for number in range(5):
        assert code(await cell.write("alpha", f"after-{number}")) is RefusalCode.PAYMENT_NOT_FOUND


async def test_an_actor_that_gave_up_is_activated_again(cell: OpenCell) -> None:
    await cell.onboard("alpha", "beta")
    first_epoch = cell.door._seats["alpha"].epoch
    assert first_epoch is not None
    # It gives up at this command each time: sent twice, then nobody knows.
    assert code(await cell.write("alpha", f"{GIVE_UP}-1")) is RefusalCode.OUTCOME_UNKNOWN
    assert code(await cell.write("alpha", "c2")) is RefusalCode.PAYMENT_NOT_FOUND
    partner = await cell.partner("alpha")
    assert partner["takeovers"] == limits.COMMAND_SENDS_MAX
    assert partner["epoch"] == first_epoch + limits.COMMAND_SENDS_MAX
    assert (await cell.partner("beta"))["takeovers"] == 0


async def test_what_an_actor_gave_up_in_the_middle_of_is_unknown_not_undone(cell: OpenCell) -> None:
    """The actor may have written it: where no other owner is found in time, nobody may say that nothing was written."""
    await cell.onboard("alpha")
    await eventually(lambda: any(cell.workforce.is_spare(link) for link in cell.workforce.links.values()))
    shutil.move(cell.book("alpha"), cell.folder / "away")
    assert code(await cell.write("alpha", f"{GIVE_UP}-1", 1_500)) is RefusalCode.OUTCOME_UNKNOWN
    assert code(await cell.write("alpha", "c2")) is RefusalCode.PARTNER_UNAVAILABLE


async def test_a_command_that_is_never_answered_is_unknown_and_after_some_its_worker_goes(
    cell: OpenCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UNANSWERED_MS_MIN", 300)
    await cell.onboard("alpha")
    pid = cell.link("alpha").endpoint.pid
    stalled = [cell.write("alpha", f"{STALL}-{number}", 700) for number in range(2)]
    assert [code(answer) for answer in await asyncio.gather(*stalled)] == [RefusalCode.OUTCOME_UNKNOWN] * 2
    assert cell.link("alpha").endpoint.pid == pid
    assert code(await cell.write("alpha", f"{STALL}-3", 700)) is RefusalCode.OUTCOME_UNKNOWN
    assert code(await cell.write("alpha", "c2")) is RefusalCode.PAYMENT_NOT_FOUND
    assert cell.link("alpha").endpoint.pid != pid


async def test_who_gives_no_time_to_answer_does_not_get_a_worker_killed(cell: OpenCell) -> None:
    await cell.onboard("alpha")
    pid = cell.link("alpha").endpoint.pid
    os.kill(pid, signal.SIGSTOP)
    hurried = [cell.write("alpha", f"h{number}", 20) for number in range(10)]
    assert {code(answer) for answer in await asyncio.gather(*hurried)} == {RefusalCode.OUTCOME_UNKNOWN}
    os.kill(pid, signal.SIGCONT)
    assert code(await cell.write("alpha", "c2")) is RefusalCode.PAYMENT_NOT_FOUND
    assert cell.link("alpha").endpoint.pid == pid


async def test_a_door_that_slept_does_not_blame_the_worker_for_its_own_silence(
    cell: OpenCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UNANSWERED_MS_MIN", 300)
    monkeypatch.setattr(limits, "DOOR_LATE_MS", 100)
    await cell.onboard("alpha")
    pid = cell.link("alpha").endpoint.pid
    asking = [asyncio.create_task(cell.write("alpha", f"c{number}", 400)) for number in range(5)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    time.sleep(0.7)  # noqa: ASYNC251 - the door sleeps, with all of its loop
    await asyncio.gather(*asking)
    assert code(await cell.write("alpha", "next")) is RefusalCode.PAYMENT_NOT_FOUND
    assert cell.link("alpha").endpoint.pid == pid


@pytest.mark.parametrize("budget_ms", [-1, 0, 2**60])
async def test_a_strange_budget_is_bounded(cell: OpenCell, monkeypatch: pytest.MonkeyPatch, budget_ms: int) -> None:
    monkeypatch.setattr(door_module, "COMMAND_DEADLINE_MS", 100)
    await cell.onboard("alpha")
    assert code(await cell.write("alpha", f"{STALL}-1", budget_ms)) in (
        RefusalCode.OUTCOME_UNKNOWN,
        RefusalCode.PARTNER_UNAVAILABLE,
    )


async def test_a_command_that_cannot_be_read_is_answered(cell: OpenCell) -> None:
    await cell.onboard("alpha")
    for method in (Method.CREATE_PAYMENT, Method.GET_PAYMENT):
        answer = await cell.door.handle(Request("router", method, "alpha", BUDGET_MS, b"\xc1"))
        assert code(messages.decode_answer(answer)) is RefusalCode.INTERNAL_ERROR
    assert code(await cell.ask("get_everything", "alpha")) is RefusalCode.INTERNAL_ERROR


# Ownership


async def test_a_partner_without_its_book_is_unavailable_and_others_are_not(
    tmp_path: Path, cluster: StandInCluster
) -> None:
    async with opened(tmp_path, cluster) as cell:
        await cell.onboard("alpha", "beta", "gamma")
    cluster.end()
    cluster.endpoints.clear()
    book = cell.book("alpha")
    for path in book.parent.glob("alpha.sqlite*"):
        shutil.move(path, tmp_path / path.name)
    for path in book.parent.glob("beta.sqlite*"):
        path.write_bytes(b"not a book at all" * 1_000)
    async with opened(tmp_path, cluster) as cell:
        await cell.serves("gamma")
        for partner_id, error in (("alpha", "StoreMissingError"), ("beta", "StoreCorruptError")):
            answer = await cell.ask(Method.GET_BALANCE, partner_id)
            assert code(answer) is RefusalCode.PARTNER_UNAVAILABLE

            async def is_given_up(partner_id: str = partner_id, error: str = error) -> bool:
                partner = await cell.partner(partner_id)
                return partner["state"] == "unavailable" and error in partner["why"]

            await eventually_true(is_given_up)  # it is tried again and again, so it may be just now
        # Onboarding again is no way to an empty book.
        again = await cell.control(Method.ONBOARD, {"profile": {"partner_id": "alpha", "version": 2}})
        assert code(again) is RefusalCode.PARTNER_UNAVAILABLE
        assert not book.exists()
        assert not cell.superseded.is_set()
        await cell.serves("gamma")
        # Once its book is back, the partner is too, by itself.
        for path in tmp_path.glob("alpha.sqlite*"):  # noqa: ASYNC240 - a test may block
            shutil.move(path, book.parent / path.name)
        await eventually(lambda: cell.door._seats["alpha"].link is not None)
        await cell.serves("alpha")


async def test_a_cell_that_lost_its_own_book_does_not_begin_anew(tmp_path: Path, cluster: StandInCluster) -> None:
    async with opened(tmp_path, cluster) as cell:
        await cell.onboard("alpha")
    for path in tmp_path.glob("cell.sqlite*"):  # noqa: ASYNC240 - a test may block
        path.unlink()
    with pytest.raises(StoreMissingError):
        await open_book(SqliteShelf(tmp_path))
    assert not (tmp_path / "cell.sqlite").exists()


async def test_an_acquirer_without_an_address_costs_no_worker(cell: OpenCell) -> None:
    profile = {"partner_id": "alpha", "version": 1, "acquirer_url": "not an address"}
    answer = await cell.control(Method.ONBOARD, {"profile": profile})
    assert code(answer) is RefusalCode.PARTNER_UNAVAILABLE
    assert (await cell.partner("alpha"))["state"] == "unavailable"
    await cell.onboard("beta")
    await cell.serves("beta")
    assert cell.cluster.killed == []


async def test_the_next_door_takes_the_workers_over_at_a_higher_epoch(tmp_path: Path, cluster: StandInCluster) -> None:
    async with opened(tmp_path, cluster) as first:
        await first.onboard("alpha", "beta")
        workers = {partner: first.link(partner).name for partner in ("alpha", "beta")}
        door_epoch, epoch = first.door.door_epoch, first.door._seats["alpha"].epoch
        assert epoch is not None
    async with opened(tmp_path, cluster) as second:
        assert second.door.door_epoch == door_epoch + 1
        assert {partner: second.link(partner).name for partner in ("alpha", "beta")} == workers
        assert second.door._seats["alpha"].epoch == epoch + 1
        await second.serves("alpha")
        await second.serves("beta")


async def test_a_superseded_door_ends_when_it_finds_out_that_it_slept(tmp_path: Path, cluster: StandInCluster) -> None:
    async with opened(tmp_path, cluster) as old:
        await old.onboard("alpha")
        async with opened(tmp_path, cluster) as new:
            epoch = new.door._seats["alpha"].epoch
            old.workforce._on_late()
            async with asyncio.timeout(5):
                await old.superseded.wait()
            new.door.confirm()
            await new.serves("alpha")
            assert not new.superseded.is_set()
            assert new.door._seats["alpha"].epoch == epoch


async def test_a_superseded_door_can_neither_onboard_nor_configure_nor_take_back(
    tmp_path: Path, cluster: StandInCluster
) -> None:
    async with opened(tmp_path, cluster) as old:
        await old.onboard("alpha")
        async with opened(tmp_path, cluster) as new:
            seat, link = old.door._seats["alpha"], old.link("alpha")
            epoch = new.door._seats["alpha"].epoch
            # It assigns the partner to the very worker that has it: the rightful actor is left alone.
            old.door._ownership._vacate(seat, link)
            await old.door._ownership._assign(seat, link)
            assert seat.link is None
            assert seat.state == "unavailable"
            async with asyncio.timeout(5):
                await old.superseded.wait()
            await new.serves("alpha")
            assert (new.door._seats["alpha"].epoch, new.door._seats["alpha"].takeovers) == (epoch, 0)
            old.superseded.clear()
            profile = {"profile": {"partner_id": "alpha", "version": 9}}
            assert code(await old.control(Method.CONFIGURE, profile)) is RefusalCode.PARTNER_UNAVAILABLE
            assert old.superseded.is_set()
            profile = {"profile": {"partner_id": "beta", "version": 1}}
            assert code(await old.control(Method.ONBOARD, profile)) is RefusalCode.PARTNER_UNAVAILABLE
            assert "beta" not in new.door._seats


async def test_a_worker_that_dies_as_it_answers_does_not_get_the_partner(
    cell: OpenCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer and its end arrive together: the seat must not keep a dead worker for ever."""
    await cell.onboard("alpha")
    request = Connection.request
    dying: list[Connection] = []

    async def dies_after(self: Connection, method: str, partner_id: str, body: bytes, budget_ms: int) -> bytes:
        answer = await request(self, method, partner_id, body, budget_ms)
        if method == Method.ASSIGN and not dying:
            dying.append(self)
            self.abort()
            await asyncio.sleep(0)
        return answer

    monkeypatch.setattr(Connection, "request", dies_after)
    os.kill(cell.link("alpha").endpoint.pid, signal.SIGKILL)
    assert code(await cell.write("alpha", "c1")) is RefusalCode.PAYMENT_NOT_FOUND
    assert cell.link("alpha").connection is not dying[0]


async def test_an_activation_that_fails_by_a_bug_is_tried_again(
    cell: OpenCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cell.onboard("alpha")
    take = cell.workforce.take
    failures = iter([ZeroDivisionError("a bug"), ZeroDivisionError("again")])

    async def failing() -> Link:
        for failure in failures:
            raise failure
        return await take()

    monkeypatch.setattr(cell.workforce, "take", failing)
    os.kill(cell.link("alpha").endpoint.pid, signal.SIGKILL)
    assert code(await cell.write("alpha", "c1")) is RefusalCode.PAYMENT_NOT_FOUND


async def test_a_partner_that_two_workers_have_is_left_to_one(tmp_path: Path, cluster: StandInCluster) -> None:
    """As after a takeover from a worker that was presumed dead: the next door clears it up."""
    async with opened(tmp_path, cluster, spares=0) as first:
        await first.onboard("alpha")
        seat, owner = first.door._seats["alpha"], first.link("alpha")
        other = await first.workforce.take()
        first.door._ownership._vacate(seat, owner)
        await first.door._ownership._assign(seat, other)
        assert await first.door._ownership._hosted(owner) == ["alpha"]
    async with opened(tmp_path, cluster, spares=0) as second:
        hosting = [link for link in second.workforce.links.values() if await second.door._ownership._hosted(link)]
        assert [link.partners for link in hosting] == [{"alpha"}]
        await second.serves("alpha")


# The control plane


@pytest.mark.parametrize(
    "method",
    [
        Method.ONBOARD,
        Method.CONFIGURE,
        Method.CELL_STATUS,
        Method.RESOLVE_OPERATION,
        Method.RECONCILE_OPERATIONS,
        Method.COMPARE_SETTLEMENT,
        Method.LIST_UNRECONCILED,
        Method.ASSIGN,
    ],
)
async def test_a_router_may_not_do_what_is_the_control_plane_s(cell: OpenCell, method: str) -> None:
    answer = await cell.control(method, {"profile": {"partner_id": "alpha", "version": 1}}, role="router")
    assert code(answer) is RefusalCode.INTERNAL_ERROR
    assert cell.door._seats == {}
    assert list(cell.folder.glob("partners/*")) == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"profile": None},
        {"profile": {"version": 1}},
        {"profile": {"partner_id": "../escaped", "version": 1}},
        {"profile": {"partner_id": "", "version": 1}},
        {"profile": {"partner_id": "Alpha", "version": 1}},
        {"profile": {"partner_id": "a" * 41, "version": 1}},
        {"profile": {"partner_id": "alpha\n", "version": 1}},
    ],
)
@pytest.mark.parametrize("method", [Method.ONBOARD, Method.CONFIGURE])
async def test_what_is_no_profile_is_answered_and_makes_nothing(
    cell: OpenCell, method: str, body: dict[str, Any]
) -> None:
    assert code(await cell.control(method, body)) is RefusalCode.INTERNAL_ERROR
    assert list(cell.folder.glob("partners/*")) == []


async def test_onboarding_twice_at_once_makes_one_seat(cell: OpenCell) -> None:
    await asyncio.gather(*(cell.onboard("alpha") for _ in range(4)))
    status = await cell.status()
    assert [worker["partners"] for worker in status["workers"] if worker["partners"]] == [["alpha"]]
    assert (await cell.partner("alpha"))["epoch"] == 1


async def test_a_book_from_before_is_kept_at_onboarding(cell: OpenCell) -> None:
    await SqliteShelf(cell.folder).create("partners", "alpha")
    store = await SqliteStore.open(cell.book("alpha"))
    await store.acquire(0)
    await store.close()
    await cell.onboard("alpha")
    assert (await cell.partner("alpha"))["epoch"] == 2


async def test_a_profile_is_kept_and_handed_over_and_an_older_one_is_not(
    tmp_path: Path, cluster: StandInCluster
) -> None:
    async with opened(tmp_path, cluster) as cell:
        await cell.onboard("alpha")
        for version, status in ((3, "suspended"), (2, "active")):
            profile = messages.encode_profile(Profile("alpha", version, status=status))
            answer = await cell.control(Method.CONFIGURE, {"profile": profile})
            assert isinstance(answer, Answer)
            assert orjson.loads(answer.body)["profile_version"] == 3
        partner = await cell.partner("alpha")
        assert (partner["profile_version"], partner["status"]) == (3, "suspended")
        create: dict[str, Any] = {
            "amount": 1,
            "currency": "EUR",
            "payment_method": "tok",
            "capture_method": "automatic",
        }
        assert code(await cell.ask(Method.CREATE_PAYMENT, "alpha", **create)) is RefusalCode.PARTNER_SUSPENDED
        unknown = await cell.control(Method.CONFIGURE, {"profile": {"partner_id": "beta", "version": 1}})
        assert code(unknown) is RefusalCode.PARTNER_MOVED
    async with opened(tmp_path, cluster) as cell:
        assert (await cell.partner("alpha"))["profile_version"] == 3


@pytest.mark.parametrize(
    "kept",
    [
        b"\xc1",
        msgpack.packb([]),
        msgpack.packb({"partner_id": "alpha", "version": 4, "rate_per_second": 0}),
        msgpack.packb({"partner_id": "other", "version": 4}),
    ],
)
async def test_a_profile_that_can_t_be_read_costs_its_partner_s_writes_until_it_is_handed_over_again(
    tmp_path: Path, cluster: StandInCluster, kept: bytes
) -> None:
    async with opened(tmp_path, cluster) as cell:
        await cell.onboard("alpha", "beta")
        await cell._book.commit((), [Put(("partner", "alpha"), kept)])
    async with opened(tmp_path, cluster) as cell:
        await cell.serves("beta")
        partner = await cell.partner("alpha")
        assert (partner["profile_version"], partner["status"]) == (0, "suspended")
        await cell.control(Method.CONFIGURE, {"profile": {"partner_id": "alpha", "version": 1}})
        assert (await cell.partner("alpha"))["status"] == "active"
        assert code(await cell.write("alpha", "c1")) is RefusalCode.PAYMENT_NOT_FOUND


@pytest.mark.parametrize("method", [Method.ASSIGN, Method.CONFIGURE])
@pytest.mark.parametrize("body", [b"", b"\xc1", msgpack.packb([1]), msgpack.packb({"profile": 1}), msgpack.packb({})])
async def test_a_worker_answers_what_it_can_t_read_of_a_door(cell: OpenCell, method: str, body: bytes) -> None:
    await cell.onboard("alpha")
    connection = cell.link("alpha").connection
    answer = messages.decode_answer(await connection.request(method, "alpha", body, BUDGET_MS))
    assert code(answer) is RefusalCode.INTERNAL_ERROR
    await cell.serves("alpha")


async def test_a_profile_that_the_worker_missed_is_seen_and_handed_over_again(
    cell: OpenCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cell.onboard("alpha")
    request = Connection.request
    missed: list[str] = []

    async def misses(self: Connection, method: str, partner_id: str, body: bytes, budget_ms: int) -> bytes:
        if method == Method.CONFIGURE and not missed:
            missed.append(partner_id)
            raise PeerLostError("as the test ordered")
        return await request(self, method, partner_id, body, budget_ms)

    monkeypatch.setattr(Connection, "request", misses)
    profile = {"profile": {"partner_id": "alpha", "version": 2}}
    await cell.control(Method.CONFIGURE, profile)
    assert (await cell.partner("alpha"))["profile_version"] == 1
    await cell.control(Method.CONFIGURE, profile)
    assert (await cell.partner("alpha"))["profile_version"] == 2


async def test_status_tells_workers_partners_and_spares(cell: OpenCell) -> None:
    await cell.onboard("alpha", "beta")
    await eventually(lambda: any(cell.workforce.is_spare(link) for link in cell.workforce.links.values()))
    status = await cell.status()
    assert status["cell"] == "cell-0"
    assert status["door_epoch"] == 1
    assert [partner["partner"] for partner in status["partners"]] == ["alpha", "beta"]
    assert all(partner["breaker"] == "closed" and partner["state"] == "active" for partner in status["partners"])
    spares = [worker for worker in status["workers"] if worker["spare"]]
    assert [worker["partners"] for worker in spares] == [[]]
    assert all(worker["healthy"] for worker in status["workers"])
    assert {worker["pid"] for worker in status["workers"]} == {
        link.endpoint.pid for link in cell.workforce.links.values()
    }


# Faults on order, and bulkheads that are off


@contextlib.asynccontextmanager
async def weakened(folder: Path, cluster: StandInCluster, *off: Bulkhead) -> AsyncIterator[OpenCell]:
    cell = OpenCell(folder, cluster)
    cell.fault_injection, cell.bulkheads_off = True, set(off)
    await cell.open(spares=1)
    try:
        yield cell
    finally:
        await cell.close()


async def order(cell: OpenCell, partner_id: str, fault: str, command_id: str) -> Answer | Refused:
    return await cell.ask(
        Method.CREATE_PAYMENT,
        partner_id,
        command_id=command_id,
        amount=100,
        currency="XAU",  # refused as it is decided, so that no acquirer is needed
        payment_method="tok",
        capture_method="automatic",
        metadata={"bulkhead_fault": fault},
    )


async def test_a_crash_on_order_is_a_deadly_command(tmp_path: Path, cluster: StandInCluster) -> None:
    async with weakened(tmp_path, cluster) as cell:
        await cell.onboard("alpha", "beta")
        assert code(await order(cell, "alpha", "crash", "deadly")) is RefusalCode.COMMAND_QUARANTINED
        assert (await cell.partner("alpha"))["takeovers"] == limits.POISON_DEATHS_MAX
        assert (await cell.partner("beta"))["takeovers"] == 0
        assert code(await cell.write("alpha", "next")) is RefusalCode.PAYMENT_NOT_FOUND


async def test_a_loop_on_order_is_found_and_its_partner_taken_over(tmp_path: Path, cluster: StandInCluster) -> None:
    async with weakened(tmp_path, cluster) as cell:
        await cell.onboard("alpha", "beta")
        looping = asyncio.create_task(order(cell, "alpha", "loop", "deadly"))
        await eventually(lambda: cell.door._seats["alpha"].takeovers == 1, 10)
        await cell.serves("beta")
        assert code(await looping) is RefusalCode.COMMAND_QUARANTINED
        assert (await cell.partner("beta"))["takeovers"] == 0


async def test_without_fault_injection_the_key_is_plain_metadata(cell: OpenCell) -> None:
    await cell.onboard("alpha")
    assert code(await order(cell, "alpha", "crash", "c1")) is RefusalCode.CURRENCY_UNKNOWN
    assert (await cell.partner("alpha"))["takeovers"] == 0


async def test_without_its_bulkhead_a_poison_command_goes_on_killing(tmp_path: Path, cluster: StandInCluster) -> None:
    async with weakened(tmp_path, cluster, Bulkhead.POISON) as cell:
        await cell.onboard("alpha")
        for times in (1, 2):
            assert code(await order(cell, "alpha", "crash", "deadly")) is RefusalCode.OUTCOME_UNKNOWN
            assert (await cell.partner("alpha"))["takeovers"] == times * limits.COMMAND_SENDS_MAX


async def test_without_its_bulkhead_a_partner_may_take_the_whole_door(
    tmp_path: Path, cluster: StandInCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DOOR_PARTNER_COMMANDS_MAX", 0)
    monkeypatch.setattr(limits, "DOOR_PARTNER_NOTIFICATIONS_MAX", 0)
    async with weakened(tmp_path, cluster, Bulkhead.PARTNER_SHARE) as cell:
        await cell.onboard("alpha")
        assert code(await cell.write("alpha", "c1")) is RefusalCode.PAYMENT_NOT_FOUND
        assert code(await cell.ask(Method.NOTIFY_RESULT, "alpha", **NEWS)) is RefusalCode.PAYMENT_NOT_FOUND


@pytest.mark.parametrize("off", [set(), {Bulkhead.WORKER_MEMORY}])
async def test_a_leaking_worker_is_ended_and_its_partner_taken_over(
    tmp_path: Path, cluster: StandInCluster, monkeypatch: pytest.MonkeyPatch, off: set[Bulkhead]
) -> None:
    monkeypatch.setattr(cell_limits, "WORKER_RESIDENT_BYTES_MAX", 250_000_000)
    async with weakened(tmp_path, cluster, *off) as cell:
        await cell.onboard("alpha", "beta")
        link = cell.link("alpha")
        answered = code(await order(cell, "alpha", "leak:250", "c1"))
        # A beat may come before the answer, on a machine that has much to do; then it is sent again, and leaks again.
        ended_before = set() if off else {RefusalCode.OUTCOME_UNKNOWN, RefusalCode.COMMAND_QUARANTINED}
        assert answered in {RefusalCode.CURRENCY_UNKNOWN} | ended_before
        await eventually(lambda: link.heartbeat.resident_bytes > 250_000_000 or link.name not in cell.workforce.links)
        if off:
            await asyncio.sleep(2 * limits.HEARTBEAT_INTERVAL_MS / 1_000)
            assert link.name in cell.workforce.links
            return
        await eventually(lambda: cell.door._seats["alpha"].takeovers >= 1)
        began = time.monotonic()
        await cell.serves("alpha")
        assert time.monotonic() - began < 1
        assert (await cell.partner("beta"))["takeovers"] == 0


async def test_what_leaks_faster_than_hearts_beat_dies_at_its_bound_while_its_command_is_marked(
    tmp_path: Path, cluster: StandInCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_limits, "WORKER_RESIDENT_BYTES_MAX", 1 << 40)  # the door looks on
    async with weakened(tmp_path, cluster) as cell:
        await cell.onboard("alpha", "beta")
        much = cell_limits.WORKER_DATA_BYTES_MAX // 1_048_576 + 100
        assert code(await order(cell, "alpha", f"leak:{much}", "deadly")) is RefusalCode.COMMAND_QUARANTINED
        assert (await cell.partner("alpha"))["takeovers"] == limits.POISON_DEATHS_MAX
        assert (await cell.partner("beta"))["takeovers"] == 0
        assert code(await cell.write("alpha", "next")) is RefusalCode.PAYMENT_NOT_FOUND


@pytest.mark.parametrize(
    ("fault", "answered"),
    [
        (f"files:{cell_limits.WORKER_FILES_MAX}", RefusalCode.INTERNAL_ERROR),
        (f"threads:{cell_limits.WORKER_THREADS_MAX + 1}", RefusalCode.CURRENCY_UNKNOWN),
    ],
)
async def test_a_worker_without_files_or_with_too_many_threads_is_ended_and_its_partner_taken_over(
    tmp_path: Path, cluster: StandInCluster, fault: str, answered: RefusalCode
) -> None:
    async with weakened(tmp_path, cluster) as cell:
        await cell.onboard("alpha", "beta")
        # Or a beat comes while the command is still at it: then it has ended its worker.
        assert code(await order(cell, "alpha", fault, "c1")) in {answered, RefusalCode.COMMAND_QUARANTINED}
        await eventually(lambda: cell.door._seats["alpha"].takeovers >= 1)
        await cell.serves("alpha")
        assert (await cell.partner("beta"))["takeovers"] == 0


async def test_a_full_cell_sheds_reads_then_payments_then_the_rest_before_anything_is_sent(cell: OpenCell) -> None:
    await cell.onboard("acme")
    shedder = cell.door._shedder
    shed = RefusalCode.CELL_OVERLOADED
    for work, refused in zip(Work, ({"read"}, {"read", "new"}, {"read", "new", "capture"}), strict=True):
        while shedder.under_way < bounds(cell_limits.DOOR_COMMANDS_MAX)[work].within_share:
            assert shedder.enter(f"other{shedder.under_way}", Work.FOLLOW_UP)
        asked = {
            "read": await cell.ask(Method.GET_BALANCE, "acme"),
            "new": await cell.ask(Method.CREATE_PAYMENT, "acme", command_id=f"new-{work}"),
            "capture": await cell.write("acme", f"capture-{work}"),
        }
        found = {
            name
            for name, answer in asked.items()
            if isinstance(answer, Refused) and answer.refusal.code is shed and answer.refusal.retry_after_ms
        }
        assert found == refused
