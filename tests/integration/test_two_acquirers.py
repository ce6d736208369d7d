"""Two partners in one process over real sockets: an acquirer that hangs takes only its own partner's slots."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from actors import limits
from actors.answers import Answer
from actors.commands import CreatePayment, Envelope
from actors.mailbox import Result
from actors.partner import PartnerActor
from actors.profile import MAIN_ACQUIRER, Profile
from cells.audit import audit_cell
from cells.http_acquirer import HttpAcquirer
from cells.http_client import HttpClient
from stores.sqlite_shelf import SqliteShelf
from tests.acquirer_process import AcquirerProcess, start_acquirer
from tests.eventually import eventually

HANGING, WELL = "hanging", "well"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[dict[str, AcquirerProcess]]:
    with start_acquirer(tmp_path / "main") as main, start_acquirer(tmp_path / "second") as second:
        yield {MAIN_ACQUIRER: main, "second": second}


@contextlib.asynccontextmanager
async def partners(folder: Path, two: dict[str, AcquirerProcess]) -> AsyncIterator[dict[str, PartnerActor]]:
    """Both partners share one client, as in a worker that has several."""
    shelf = SqliteShelf(folder / "cell")
    await shelf.create("cell")
    actors = {}
    async with HttpClient() as client:
        for name in (HANGING, WELL):
            await shelf.create("partners", name)
            profile = Profile(
                name,
                1,
                rate_per_second=5_000,
                rate_burst=5_000,
                in_flight_max=2_000,
                acquirers=(MAIN_ACQUIRER, "second"),
            )
            ports = {acquirer: HttpAcquirer(client, process.url, name) for acquirer, process in two.items()}
            actors[name] = PartnerActor(profile, await shelf.open("partners", name), ports)
            await actors[name].start(1)
        yield actors
        for actor in actors.values():
            await actor.stop()


async def pay(actor: PartnerActor, number: int) -> Result:
    envelope = Envelope(f"cmd_{number}", "req", CreatePayment(1_000, "EUR", "tok_approve"))
    return await actor.ask("create_payment", envelope, limits.COMMAND_DEADLINE_MS)


def statuses(results: list[Result]) -> set[int]:
    return {result.status if isinstance(result, Answer) else 0 for result in results}


async def charged(two: dict[str, AcquirerProcess], partner: str) -> dict[str, set[str]]:
    found = {}
    async with httpx.AsyncClient(trust_env=False) as http:
        for name, process in two.items():
            page = orjson.loads((await http.get(f"{process.url}/operations?partner={partner}&limit=500")).content)
            found[name] = {row["key"] for row in page["operations"] if row["charged"]}
    return found


async def test_a_hanging_acquirer_takes_its_partner_s_slots_and_no_pool_mate_s(
    tmp_path: Path, two: dict[str, AcquirerProcess]
) -> None:
    async with partners(tmp_path, two) as actors, httpx.AsyncClient(trust_env=False) as http:
        fault = f"{two[MAIN_ACQUIRER].url}/faults/{HANGING}"
        (await http.put(fault, json={"mode": "hang"})).raise_for_status()
        # More than it has slots for: all of them are taken, and more wait.
        flood = [asyncio.create_task(pay(actors[HANGING], number)) for number in range(2 * limits.ACQUIRER_SLOTS)]
        await asyncio.sleep(0.5)
        assert actors[HANGING].acquirers.way(MAIN_ACQUIRER).slots.locked()
        began = time.monotonic()
        assert statuses([await pay(actors[WELL], number) for number in range(20)]) == {201}
        assert time.monotonic() - began < limits.ACQUIRER_TIMEOUT_MS / 1_000
        assert statuses(await asyncio.gather(*flood)) == {202}
        # The breaker is open: what is new goes on, and what hangs stays.
        assert statuses([await pay(actors[HANGING], 1_000 + number) for number in range(10)]) == {201}
        (await http.delete(fault)).raise_for_status()
        await eventually(lambda: not any(actor.opens for actor in actors.values()), 90)
    found = await charged(two, HANGING)
    assert len(found["second"]) == 10
    assert not found["second"] & found[MAIN_ACQUIRER]
    report = await audit_cell(SqliteShelf(tmp_path / "cell"), two[MAIN_ACQUIRER].url, {"second": two["second"].url})
    assert report["ok"], report
    # Without the second's record the audit says what it can't compare.
    assert not (await audit_cell(SqliteShelf(tmp_path / "cell"), two[MAIN_ACQUIRER].url))["ok"]


@pytest.mark.parametrize("wrong", ["killed", "stopped"])
async def test_a_first_acquirer_that_is_gone_settles_what_it_was_asked_when_it_is_back(
    tmp_path: Path, two: dict[str, AcquirerProcess], wrong: str
) -> None:
    main = two[MAIN_ACQUIRER]
    async with partners(tmp_path, two) as actors:
        assert statuses([await pay(actors[HANGING], 1)]) == {201}
        if wrong == "killed":
            main.kill()
        else:
            main.pause()
        flood = await asyncio.gather(*(pay(actors[HANGING], 10 + number) for number in range(20)))
        assert statuses(flood) <= {201, 202}
        assert statuses([await pay(actors[HANGING], 100 + number) for number in range(5)]) == {201}
        if wrong == "killed":
            main = start_acquirer(tmp_path / MAIN_ACQUIRER, port=main.port)
        else:
            main.resume()
        try:
            await eventually(lambda: not actors[HANGING].opens, 90)
            urls = {"second": two["second"].url}
            report = await audit_cell(SqliteShelf(tmp_path / "cell"), main.url, urls)
            assert report["ok"], report
        finally:
            main.kill()
