"""The workforce over real worker processes: who is killed and who is not, spares, slots, and what a door inherits."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest

from cells.api import frames, limits
from cells.api.bulkheads import ALL_ON, Bulkhead
from cells.poison import Mark
from cells.remote import ClusterError, Endpoint
from cells.worker import WorkerConfig
from cells.workforce import Link, Workforce
from tests.eventually import eventually
from tests.stand_in_cluster import StandInCluster

SECRET = b"s" * 32
KEY = frames.role_key(SECRET, "door")


class Watch:
    """What a workforce told its door."""

    def __init__(self) -> None:
        self.dead: list[tuple[str, str, Mark | None]] = []
        self.late = 0
        self.broken: list[str] = []

    def on_dead(self, link: Link, cause: str, executing: Mark | None) -> None:
        self.dead.append((link.name, cause, executing))

    def on_late(self) -> None:
        self.late += 1


@contextlib.asynccontextmanager
async def employing(
    folder: Path,
    cluster: StandInCluster,
    spares: int = 0,
    cell: str = "cell-0",
    bulkheads_off: AbstractSet[Bulkhead] = ALL_ON,
) -> AsyncIterator[tuple[Workforce, Watch]]:
    watch = Watch()
    secret_file = folder / "secret"
    secret_file.write_bytes(SECRET)
    made = Workforce(
        cell=cell,
        host="127.0.0.1",
        folder=folder,
        logs_folder=folder,
        secret_file=secret_file,
        place={"store": "sqlite", "folder": str(folder)},
        key=KEY,
        cluster=cluster,
        spares=spares,
        on_dead=watch.on_dead,
        on_late=watch.on_late,
        on_broken=watch.broken.append,
        bulkheads_off=bulkheads_off,
    )
    try:
        yield made, watch
    finally:
        await made.stop()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def found_by(employer: Workforce) -> list[Link]:
    found: list[Link] = []

    async def take_note(link: Link) -> None:
        found.append(link)

    await employer.find_existing(take_note)
    return found


def spares_of(employer: Workforce) -> list[Link]:
    return [link for link in employer.links.values() if employer.is_spare(link)]


async def test_a_spare_is_started_after_what_partners_wait_for(
    tmp_path: Path, cluster: StandInCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    go_on = threading.Event()
    start_worker = cluster.start_worker

    def start_slowly(config: WorkerConfig) -> Endpoint:
        begun.append(config.name)
        assert go_on.wait(20)
        return start_worker(config)

    monkeypatch.setattr(cluster, "start_worker", start_slowly)
    async with employing(tmp_path, cluster, spares=1) as (employer, _):
        waiting = [asyncio.create_task(employer.take()) for _ in range(2)]
        await asyncio.sleep(0)
        employer.start()
        await eventually(lambda: len(begun) == 2)
        await asyncio.sleep(0.3)
        assert len(begun) == 2, "no spare yet"
        go_on.set()
        taken = await asyncio.gather(*waiting)
        assert {link.name for link in taken} == set(begun[:2])
        await eventually(lambda: len(spares_of(employer)) == 1)
        assert spares_of(employer)[0].name == begun[2]


async def test_a_killed_worker_is_told_at_once_and_cleaned_up(tmp_path: Path, cluster: StandInCluster) -> None:
    async with employing(tmp_path, cluster) as (employer, watch):
        employer.start()
        link = await employer.take()
        assert link.mark_file.exists()
        os.kill(link.endpoint.pid, signal.SIGKILL)
        await eventually(lambda: watch.dead == [(link.name, "connection_lost", None)])
        assert await employer.wait_dead(link, 2_000)
        await eventually(lambda: cluster.killed == [link.name])
        assert not link.mark_file.exists()
        assert link.name not in employer.links
        # Who still waits for this death is not held up by the cleaning.
        assert await employer.wait_dead(link, 2_000)


@pytest.mark.parametrize("waiters", [1, 4])
async def test_many_may_wait_for_one_death(tmp_path: Path, cluster: StandInCluster, waiters: int) -> None:
    """As many as there are partners on the worker; the cleaning gives the file descriptor back in between."""
    async with employing(tmp_path, cluster) as (employer, _):
        for _ in range(5):
            link = await employer.take()
            waiting = [asyncio.create_task(employer.wait_dead(link, 5_000)) for _ in range(waiters)]
            await asyncio.sleep(0.001)
            employer.bury(link, "as the test ordered")
            assert await asyncio.gather(*waiting) == [True] * waiters
            assert await employer.wait_dead(link, 5_000)


async def test_a_silent_worker_is_killed_though_it_is_stopped(
    tmp_path: Path, cluster: StandInCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_TIMEOUT_MS", 700)
    async with employing(tmp_path, cluster) as (employer, watch):
        employer.start()
        stopped, living = await employer.take(), await employer.take()
        os.kill(stopped.endpoint.pid, signal.SIGSTOP)
        await eventually(lambda: watch.dead == [(stopped.name, "silent", None)])
        assert await employer.wait_dead(stopped, 2_000)
        await eventually(lambda: not is_alive(stopped.endpoint.pid))
        assert living.connection.is_open
        assert is_alive(living.endpoint.pid)


async def test_a_worker_whose_loop_hangs_is_killed(
    tmp_path: Path, cluster: StandInCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with employing(tmp_path, cluster) as (employer, watch):
        employer.start()
        link = await employer.take()
        monkeypatch.setattr(limits, "WORKER_LOOP_LAG_MS_MAX", -1)
        await eventually(lambda: watch.dead == [(link.name, "loop_stuck", None)])


async def test_a_late_door_accuses_nobody(
    tmp_path: Path, cluster: StandInCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The door sleeps longer than a worker may be silent: nobody is killed for it, and the door asks about itself."""
    monkeypatch.setattr(limits, "HEARTBEAT_TIMEOUT_MS", 700)
    async with employing(tmp_path, cluster) as (employer, watch):
        employer.start()
        link = await employer.take()
        moved = time.monotonic
        await asyncio.sleep(0.25)
        monkeypatch.setattr(time, "monotonic", lambda: moved() + 60)
        await eventually(lambda: watch.late == 1)
        assert link.silent_ms < 700
        monkeypatch.setattr(limits, "HEARTBEAT_TIMEOUT_MS", 60_700)  # the listener's clock is the moved one, too
        await asyncio.sleep(0.5)
        assert watch.dead == []
        assert watch.late == 1
        assert is_alive(link.endpoint.pid)


async def test_spares_are_kept_and_the_first_to_come_is_the_first_to_go(
    tmp_path: Path, cluster: StandInCluster
) -> None:
    async with employing(tmp_path, cluster, spares=2) as (employer, watch):
        employer.start()
        await eventually(lambda: len(spares_of(employer)) == 2)
        first = spares_of(employer)[0]
        assert await employer.take() is first
        assert not employer.is_spare(first)
        await eventually(lambda: len(spares_of(employer)) == 2)
        assert len(cluster.started) == 3
        os.kill(spares_of(employer)[0].endpoint.pid, signal.SIGKILL)
        await eventually(lambda: len(watch.dead) == 1 and len(spares_of(employer)) == 2)
        assert len(cluster.started) == 4


async def test_a_dead_spare_is_not_handed_out(tmp_path: Path, cluster: StandInCluster) -> None:
    async with employing(tmp_path, cluster, spares=1) as (employer, _):
        employer.start()
        await eventually(lambda: len(spares_of(employer)) == 1)
        (spare,) = spares_of(employer)
        spare.connection.abort()
        taken = await employer.take()
        assert taken is not spare
        assert taken.connection.is_open


async def test_a_worker_given_back_is_taken_again(tmp_path: Path, cluster: StandInCluster) -> None:
    async with employing(tmp_path, cluster) as (employer, _):
        link = await employer.take()
        employer.give_back(link)
        employer.give_back(link)
        assert await employer.take() is link
        assert not employer.is_spare(link)


async def test_slots_are_taken_again_and_names_are_not(tmp_path: Path, cluster: StandInCluster) -> None:
    async with employing(tmp_path, cluster) as (employer, _):
        zero, one = await employer.take(), await employer.take()
        assert [zero.slot, one.slot] == [0, 1]
        employer.bury(zero, "as the test ordered")
        await eventually(lambda: cluster.killed == [zero.name])
        again = await employer.take()
        assert again.slot == 0
        assert again.name != zero.name


async def test_starts_that_fail_end_the_door_after_a_while(tmp_path: Path, cluster: StandInCluster) -> None:
    async with employing(tmp_path, cluster) as (employer, watch):
        cluster.starts_fail = True
        for _ in range(2):
            with pytest.raises(ClusterError):
                await employer.take()
        assert watch.broken == []
        # What failed to start may come later, when nobody knows it: it is ended by its name.
        assert len(cluster.killed) == 2
        with pytest.raises(ClusterError):
            await employer.take()
        assert len(watch.broken) == 1
        cluster.starts_fail = False
        assert (await employer.take()).slot == 0


async def test_starts_at_once_are_bounded(tmp_path: Path, cluster: StandInCluster) -> None:
    async with employing(tmp_path, cluster, spares=5) as (employer, _):
        at_once = 0
        most = 0
        start = cluster.start_worker

        def counting(config: object) -> Endpoint:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            try:
                return start(config)  # type: ignore[arg-type]
            finally:
                at_once -= 1

        cluster.start_worker = counting  # type: ignore[method-assign]
        taken = await asyncio.gather(*(employer.take() for _ in range(5)))
        assert most == limits.WORKER_STARTS_AT_ONCE_MAX
        assert sorted(link.slot for link in taken) == [0, 1, 2, 3, 4]


async def test_the_end_of_a_door_is_not_the_end_of_its_workers(tmp_path: Path, cluster: StandInCluster) -> None:
    async with employing(tmp_path, cluster) as (employer, watch):
        employer.start()
        links = [await employer.take() for _ in range(3)]
        await employer.stop()
        await asyncio.sleep(0.05)
        assert watch.dead == []
        assert all(is_alive(link.endpoint.pid) for link in links)
    async with employing(tmp_path, cluster) as (next_employer, _):
        found = await found_by(next_employer)
        assert {(link.name, link.slot) for link in found} == {(link.name, link.slot) for link in links}
        fresh = await next_employer.take()
        assert fresh.slot == 3


async def test_a_cell_s_name_may_hold_what_a_worker_s_does(tmp_path: Path, cluster: StandInCluster) -> None:
    async with employing(tmp_path, cluster, cell="east-west-w7") as (employer, _):
        link = await employer.take()
    async with employing(tmp_path, cluster, cell="east-west-w7") as (employer, _):
        assert [found.slot for found in await found_by(employer)] == [link.slot]


async def test_a_worker_of_before_that_does_not_answer_is_killed(
    tmp_path: Path, cluster: StandInCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is stopped, one that is and that Ray forgot, one that did not come to listen: all could hold a lock."""
    monkeypatch.setattr(limits, "CONNECT_TIMEOUT_MS", 100)
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_MS", 200)
    async with employing(tmp_path, cluster) as (employer, _):
        silent, forgotten, unready, well = [await employer.take() for _ in range(4)]
    for link in (silent, forgotten):
        os.kill(link.endpoint.pid, signal.SIGSTOP)
    del cluster.endpoints[forgotten.name]
    mark = unready.mark_file.read_bytes()
    unready.mark_file.write_bytes(mark[:-16] + bytes(16))
    async with employing(tmp_path, cluster) as (next_employer, _):
        assert [link.name for link in await found_by(next_employer)] == [well.name]
        for link in (silent, forgotten, unready):
            await eventually(lambda pid=link.endpoint.pid: not is_alive(pid))  # type: ignore[misc]
        assert [path.name for path in (tmp_path / "marks").iterdir()] == [well.name]
        next_employer.start()
        await eventually(lambda: sorted(cluster.killed) == sorted([silent.name, unready.name]))


async def test_workers_of_before_are_found_without_ray(tmp_path: Path, cluster: StandInCluster) -> None:
    """It takes a second or two to join Ray. Nobody waits for that but who needs a new worker."""
    async with employing(tmp_path, cluster) as (employer, _):
        before = await employer.take()
    cluster.connected.clear()
    async with employing(tmp_path, cluster, spares=1) as (employer, watch):
        (found,) = await found_by(employer)
        employer.start()
        assert found.name == before.name
        assert found.connection.is_open
        starting = asyncio.create_task(employer.take())
        await asyncio.sleep(0.1)
        assert not starting.done()
        assert cluster.started == [before.name]
        cluster.connected.set()
        assert (await starting).name != before.name
        assert watch.broken == []
        assert cluster.killed == []


async def test_a_worker_that_only_ray_knows_is_ended(tmp_path: Path, cluster: StandInCluster) -> None:
    """Its door died while Ray was starting it, so that it left no mark."""
    async with employing(tmp_path, cluster) as (employer, _):
        unknown = await employer.take()
    unknown.mark_file.unlink()
    async with employing(tmp_path, cluster) as (employer, _):
        assert await found_by(employer) == []
        fresh = await employer.take()
        assert cluster.killed == [unknown.name]
        assert fresh.connection.is_open


async def test_a_cluster_that_cannot_be_joined_ends_the_door(
    tmp_path: Path, cluster: StandInCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise ClusterError("as the test ordered")

    monkeypatch.setattr(cluster, "connect", refuse)
    async with employing(tmp_path, cluster) as (employer, watch):
        employer.start()
        await eventually(lambda: watch.broken == ["as the test ordered"])
        with pytest.raises(ClusterError):
            await employer.take()


async def test_a_cluster_whose_raylet_is_gone_is_told_at_once(tmp_path: Path, cluster: StandInCluster) -> None:
    async with employing(tmp_path, cluster) as (employer, watch):
        employer.start()
        await employer.take()
        assert watch.broken == []
        cluster.raylet.kill()
        await eventually(lambda: len(watch.broken) == 1)
        assert "raylet is gone" in watch.broken[0]


async def test_a_watch_that_fails_ends_the_door(
    tmp_path: Path, cluster: StandInCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with employing(tmp_path, cluster) as (employer, watch):
        employer.start()
        await employer.take()
        monkeypatch.setattr(Link, "silent_ms", property(lambda _: 1 // 0))
        await eventually(lambda: len(watch.broken) == 1)
        assert "watch-workers" in watch.broken[0]


@pytest.mark.parametrize("off", [ALL_ON, {Bulkhead.HEARTBEAT}])
async def test_without_its_bulkhead_a_silent_worker_is_left_alone(
    tmp_path: Path, cluster: StandInCluster, monkeypatch: pytest.MonkeyPatch, off: AbstractSet[Bulkhead]
) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_TIMEOUT_MS", 700)
    async with employing(tmp_path, cluster, bulkheads_off=off) as (employer, watch):
        employer.start()
        link = await employer.take()
        os.kill(link.endpoint.pid, signal.SIGSTOP)
        if off:
            await asyncio.sleep(2)
            assert watch.dead == []
        else:
            await eventually(lambda: watch.dead == [(link.name, "silent", None)])
