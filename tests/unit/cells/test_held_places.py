"""A place in a ready worker is held for a partner on its way until it is there, whatever dies at the target."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from cells.api import messages
from cells.api.messages import Answer, Method
from cells.workforce import Link
from control_plane.partners import to_profile
from control_plane.registry_records import Partner
from tests.eventually import eventually
from tests.stand_in_cluster import StandInCluster
from tests.unit.cells.two_cells import PARTNER, Installed, installed_at


def held(installed: Installed) -> Link | None:
    return installed.target.door._ownership.held_place(PARTNER)


async def has_mate(installed: Installed) -> None:
    """Have a pool at the target, with another partner in it."""
    mate = Partner("beta", "p", "onboarding", "test", "cell-1", 1_000, 1_000, 256, "2026-11-22", 1, "")
    profile = messages.encode_profile(to_profile(replace(mate, isolation="pooled")))
    assert isinstance(await installed.target.control(Method.ONBOARD, {"profile": profile}), Answer)


@pytest.mark.parametrize("isolation", ["dedicated", "pooled"])
async def test_its_worker_dies_while_the_book_is_copied(installed: Installed, isolation: str) -> None:
    await installed.onboard(isolation=isolation)
    if isolation == "pooled":
        await has_mate(installed)
    await installed.write(installed.source, "c1")
    lost: list[Link] = []
    at_the_seal: list[Link | None] = []

    async def die() -> None:
        link = held(installed)
        assert link is not None
        assert link.partners == ({PARTNER, "beta"} if isolation == "pooled" else {PARTNER})
        lost.append(link)
        os.kill(link.endpoint.pid, signal.SIGKILL)
        await eventually(lambda: not link.connection.is_open)

    async def look() -> None:
        at_the_seal.append(held(installed))

    installed.doors.before[Method.COPY_ROWS] = die
    installed.doors.before[Method.QUIESCE] = look
    await installed.moves.move(PARTNER, "cell-1", "ann")
    (link,) = at_the_seal
    assert link is not None
    assert link is not lost[0]
    assert installed.target.link(PARTNER) is link
    assert len(await installed.payments(installed.target)) == 1
    if isolation == "pooled":
        await installed.target.serves("beta")


async def test_the_targets_door_dies_while_the_book_is_copied(installed: Installed) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")
    at_the_seal: list[Link | None] = []

    async def die() -> None:
        await installed.target.close()
        await installed.target.open(1)
        assert held(installed) is None

    async def look() -> None:
        at_the_seal.append(held(installed))

    installed.doors.after[Method.COPY_ROWS] = die
    installed.doors.before[Method.QUIESCE] = look
    await installed.moves.move(PARTNER, "cell-1", "ann")
    (link,) = at_the_seal
    assert link is not None
    assert installed.target.link(PARTNER) is link


async def test_nobody_is_quiesced_while_no_worker_is_ready(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installed.onboard()
    asked: list[int] = []
    ownership = installed.target.door._ownership
    make_place = ownership.make_place

    async def lose() -> None:
        """Lose the place, until it was asked for three times before the seal."""
        ownership.free_place(PARTNER)
        monkeypatch.setattr(ownership, "make_place", none_ready)

    async def none_ready(profile: messages.Profile) -> bool:
        asked.append(1)
        if len(asked) < 3:
            assert not {Method.QUIESCE, Method.SEAL} & set(installed.doors.asked)
            return False
        return await make_place(profile)

    installed.doors.before[Method.COPY_ROWS] = lose
    ended = await installed.moves.move(PARTNER, "cell-1", "ann")
    assert len(asked) >= 3
    assert ended.attempt == 1, "what was copied is not thrown away"
    assert isinstance(await installed.write(installed.target, "c1"), Answer)


async def test_a_place_is_held_in_the_pool_that_is_there(installed: Installed) -> None:
    await installed.onboard(isolation="pooled")
    await has_mate(installed)
    pool = installed.target.link("beta")

    async def look() -> None:
        assert held(installed) is pool
        assert pool.partners == {PARTNER, "beta"}

    installed.doors.before[Method.BEGIN_LEAVING] = look
    await installed.moves.move(PARTNER, "cell-1", "ann")
    assert installed.target.link(PARTNER) is pool
    assert pool.is_pool
    await installed.moves.move(PARTNER, "cell-0", "ann")
    assert pool.partners == {"beta"}


@pytest.mark.parametrize("isolation", ["dedicated", "pooled"])
async def test_without_spares_a_worker_is_started_for_who_comes_while_it_is_served(
    tmp_path: Path, clusters: list[StandInCluster], isolation: str
) -> None:
    async with installed_at(tmp_path, clusters, spares=0) as installed:
        await installed.onboard(isolation=isolation)
        await installed.write(installed.source, "c1")
        at_the_seal: list[Link | None] = []

        async def look() -> None:
            at_the_seal.append(held(installed))

        installed.doors.before[Method.QUIESCE] = look
        assert not installed.target.workforce.links
        await installed.moves.move(PARTNER, "cell-1", "ann")
        assert at_the_seal == [installed.target.link(PARTNER)]
        assert len(await installed.payments(installed.target)) == 1
        await installed.moves.move(PARTNER, "cell-0", "ann")
        assert isinstance(await installed.write(installed.source, "c2"), Answer)
