"""The door over real worker processes, without Ray: shares, sending again, quarantine, ownership."""

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from actors.errors import StoreMissingError
from cells import door as door_module
from cells.api import limits, messages
from cells.api.connection import Connection, PeerLostError, Request
from cells.api.messages import Answer, Method, RefusalCode, Refused
from cells.cell_book import open_book
from cells.workforce import Link
from stores.sqlite_shelf import SqliteShelf
from tests.eventually import eventually, eventually_true
from tests.stand_in_cluster import StandInCluster
from tests.unit.cells.open_cell import BUDGET_MS, NEWS, OpenCell, code, opened
from tests.worker_process import GIVE_UP, POISON, STALL

# Commands


async def test_a_command_reaches_its_partner_and_its_answer_comes_back_unread(cell: OpenCell) -> None:
    await cell.onboard("alpha")
    balance = await cell.ask(Method.GET_BALANCE, "alpha")
    assert isinstance(balance, Answer)
    assert code(await cell.write("alpha", "c1")) is RefusalCode.PAYMENT_NOT_FOUND


async def test_a_partner_that_is_not_here(cell: OpenCell) -> None:
    assert code(await cell.ask(Method.GET_BALANCE, "nobody")) is RefusalCode.PARTNER_MOVED


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


async def test_a_read_that_is_not_answered_has_no_outcome_to_be_unknown(cell: OpenCell) -> None:
    await cell.onboard("alpha")
    await eventually(lambda: any(cell.workforce.is_spare(link) for link in cell.workforce.links.values()))
    pid = cell.link("alpha").endpoint.pid
    os.kill(pid, signal.SIGSTOP)
    assert code(await cell.ask(Method.GET_BALANCE, "alpha", budget_ms=300)) is RefusalCode.PARTNER_UNAVAILABLE
    reading = asyncio.create_task(cell.ask(Method.GET_BALANCE, "alpha", budget_ms=3_000))
    await asyncio.sleep(0.1)  # it is sent
    shutil.move(cell.book("alpha"), cell.folder / "away")
    os.kill(pid, signal.SIGKILL)
    assert code(await reading) is RefusalCode.PARTNER_UNAVAILABLE


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
