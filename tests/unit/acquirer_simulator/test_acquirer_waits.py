"""Requests that wait on purpose: bounded in number and time, ended by their client or by the end of the process."""

import asyncio

import pytest
from starlette.types import Message

from acquirer_simulator import limits
from acquirer_simulator.app import Waits, _EndedError


class Client:
    """The receiving side of one request whose body was read: next it says that the client has gone."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}


async def test_a_hang_ends_when_its_client_goes_and_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WAITING_REQUESTS_MAX", 1)
    waits = Waits()
    client = Client()
    hanging = asyncio.ensure_future(waits.hang(client.receive))
    await asyncio.sleep(0)

    assert (await waits.hang(Client().receive)).code == "overloaded"
    with pytest.raises(_EndedError, match="too many"):
        await waits.pause(1)
    assert not hanging.done()
    client.gone.set()

    assert (await hanging).code == "hung"
    await waits.pause(0)


async def test_a_hang_has_a_longest_time_and_leaves_no_task_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANG_MS_MAX", 1)

    assert (await Waits().hang(Client().receive)).code == "hung"
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_end_of_the_process_ends_every_wait_and_lets_none_begin() -> None:
    waits = Waits()
    hanging = asyncio.ensure_future(waits.hang(Client().receive))
    pausing = asyncio.ensure_future(waits.pause(limits.DELAY_MS_MAX))
    await asyncio.sleep(0)

    waits.stop()

    assert (await hanging).code == "stopping"
    with pytest.raises(_EndedError, match="stopping"):
        await pausing
    assert (await waits.hang(Client().receive)).status == 503
