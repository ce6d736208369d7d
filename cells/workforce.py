"""The cell's workers, as its door sees them: started, spare, watched, killed. Which partner is whose is not here."""

import asyncio
import contextlib
import os
import secrets
import select
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from cells import limits as cell_limits
from cells.api import limits
from cells.api.bulkheads import ALL_ON, Bulkhead
from cells.api.connection import Connection, PeerUnavailableError
from cells.growth import accused
from cells.heartbeat import HeartbeatListener
from cells.poison import Mark, open_process, read_growth, read_mark, read_ports
from cells.remote import Cluster, ClusterError, Endpoint
from cells.worker import WorkerConfig

log = structlog.get_logger()

_STARTS_FAILED_MAX = 3


@dataclass(eq=False, slots=True)
class Link:
    """One living worker."""

    endpoint: Endpoint
    slot: int
    mark_file: Path
    connection: Connection
    heartbeat: HeartbeatListener
    pidfd: int
    partners: set[str] = field(default_factory=set)
    is_pool: bool = False

    @property
    def name(self) -> str:
        """Its name, on Ray too."""
        return self.endpoint.name

    @property
    def silent_ms(self) -> int:
        """How long its heartbeat has not been heard."""
        return int((time.monotonic() - self.heartbeat.heard) * 1_000)


class Workforce:
    """Starts, keeps and ends the workers of one cell."""

    def __init__(  # noqa: PLR0913 - one call, by name
        self,
        *,
        cell: str,
        host: str,
        folder: Path,
        logs_folder: Path,
        secret_file: Path,
        place: dict[str, Any],
        key: bytes,
        cluster: Cluster,
        spares: int,
        on_dead: Callable[[Link, str, Mark | None], None],
        on_late: Callable[[], None],
        on_broken: Callable[[str], None],
        fault_injection: bool = False,
        bulkheads_off: AbstractSet[Bulkhead] = ALL_ON,
    ) -> None:
        self._cell = cell
        self._host = host
        self._marks = folder / "marks"
        self._marks.mkdir(parents=True, exist_ok=True)
        self._logs_folder = logs_folder
        self._secret_file = secret_file
        self._place = place
        self._key = key
        self._cluster = cluster
        self._spares_wanted = spares
        self._on_dead = on_dead
        self._on_late = on_late
        self._on_broken = on_broken
        self._fault_injection = fault_injection
        self._bulkheads_off = bulkheads_off
        self._starts = asyncio.Semaphore(limits.WORKER_STARTS_AT_ONCE_MAX)
        self._starts_failed = 0
        self._slots: set[int] = set()
        self._spares: deque[Link] = deque()
        self._short = asyncio.Event()
        self._awaited = 0  # workers that partners wait for
        self._none_awaited = asyncio.Event()
        self._none_awaited.set()
        self._died_at = -float("inf")
        self._tasks: set[asyncio.Task[None]] = set()
        self._joining: asyncio.Task[None] | None = None
        self._all_found = asyncio.Event()
        self._all_found.set()
        self.links: dict[str, Link] = {}

    def start(self) -> None:
        """Begin to watch and to keep spares."""
        self._short.set()
        self._run(self._watch(), "watch-workers")
        self._run(self._watch_raylet(), "watch-raylet")
        self._run(self._keep_spares(), "keep-spares")

    async def _join(self) -> None:
        """Wait until this is a driver of the cell's cluster. Raises ClusterError.

        Only new workers need Ray. Those of before are found without it, because it takes a second or two to join.
        """
        if self._joining is None:
            self._joining = asyncio.create_task(self._join_cluster(), name="join-cluster")
        await asyncio.shield(self._joining)

    async def _join_cluster(self) -> None:
        await asyncio.to_thread(self._cluster.connect)
        await self._all_found.wait()
        for name in await asyncio.to_thread(self._cluster.existing):
            if name not in self.links:  # of before, and ended; or nobody knows it, for its door died as it started
                log.warning("worker_of_before_is_lost", worker=name)
                await asyncio.to_thread(self._cluster.kill_worker, name)

    async def stop(self) -> None:
        """Stop watching. The workers live on: they serve the next door."""
        tasks = [*self._tasks, *([self._joining] if self._joining is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Taken out first: a connection that ends of itself means a dead worker, and a dead worker is killed.
        links = list(self.links.values())
        self.links.clear()
        for link in links:
            await link.heartbeat.stop()
            link.connection.abort()
            if link.pidfd >= 0:
                os.close(link.pidfd)
                link.pidfd = -1

    def is_spare(self, link: Link) -> bool:
        """Say whether it waits for a partner."""
        return link in self._spares

    async def find_existing(self, found: Callable[[Link], Awaitable[None]]) -> None:
        """Connect to the workers that an earlier door left, and tell of each at once. What doesn't answer is ended.

        Their marks lead to them, so that this needs no Ray. To be called before anything else is.
        """
        assert self._joining is None, "workers of before would have been taken for lost ones"
        self._all_found.clear()

        async def find(name: str) -> None:
            link = await self._find(name)
            if link is not None:
                await found(link)

        await asyncio.gather(*(find(mark_file.name) for mark_file in list(self._marks.iterdir())))
        self._all_found.set()

    async def _find(self, name: str) -> Link | None:
        mark_file = self._mark_file(name)
        process, ports = open_process(mark_file), read_ports(mark_file)
        if process is None:
            mark_file.unlink(missing_ok=True)
            return None
        pid, pidfd = process
        why = "its door died before it listened"
        if ports is not None:
            slot = int(name.rsplit("-", 2)[1].removeprefix("w"))
            try:
                return await self._link(Endpoint(name, pid, self._host, *ports), slot, pidfd)
            except PeerUnavailableError as error:
                why = str(error)
        # Stopped, it could hold a book's write lock for ever.
        _kill(pidfd)
        dead = await _until(lambda: _is_dead(pidfd), limits.HEARTBEAT_TIMEOUT_MS)
        os.close(pidfd)
        log.warning("worker_of_before_killed", worker=name, dead=dead, why=why)
        mark_file.unlink(missing_ok=True)
        return None

    def give_back(self, link: Link) -> None:
        """Take a worker without partners among the spares."""
        assert not link.partners, f"{link.name} still has partners"
        link.is_pool = False
        if link.name in self.links and link not in self._spares:
            self._spares.append(link)

    @property
    def keeps_spares(self) -> bool:
        """Whether workers are kept ready, as the settings say."""
        return self._spares_wanted > 0

    def take_spare(self) -> Link | None:
        """Give a worker that is ready; None: there is none now."""
        while self._spares:
            link = self._spares.popleft()
            self._short.set()
            if link.connection.is_open:
                return link
        return None

    async def take(self) -> Link:
        """Give a worker without partners: a spare, or a new one. Raises ClusterError, PeerUnavailableError."""
        spare = self.take_spare()
        if spare is not None:
            return spare
        self._awaited += 1
        self._none_awaited.clear()
        try:
            return await self._start_worker()
        finally:
            self._awaited -= 1
            if not self._awaited:
                self._none_awaited.set()

    def bury(self, link: Link, cause: str) -> None:
        """End a worker for good, and tell. SIGKILL by pidfd: a stopped process could hold a book's lock for ever."""
        if self.links.pop(link.name, None) is None:
            return
        with contextlib.suppress(ValueError):
            self._spares.remove(link)
        self._short.set()
        self._died_at = time.monotonic()
        executing = read_mark(link.mark_file)
        if cause == "memory":
            executing = accused(executing, read_growth(link.mark_file))
        _kill(link.pidfd)
        link.connection.abort()
        log.warning(
            "worker_dead",
            worker=link.name,
            pid=link.endpoint.pid,
            cause=cause,
            partners=sorted(link.partners),
            executing="" if executing is None else executing.command_id,
        )
        self._run(self._clean_up(link), f"bury-{link.name}")
        self._on_dead(link, cause, executing)

    async def wait_dead(self, link: Link, timeout_ms: int) -> bool:
        """Wait until the worker's process is gone; say whether it is."""
        # Whoever sees it first gives the file descriptor back: then it is dead, too.
        return await _until(lambda: link.pidfd < 0 or _is_dead(link.pidfd), timeout_ms)

    async def _clean_up(self, link: Link) -> None:
        await link.heartbeat.stop()
        dead = await self.wait_dead(link, limits.HEARTBEAT_TIMEOUT_MS)
        if not dead:
            log.error("worker_does_not_die", worker=link.name, pid=link.endpoint.pid)
        os.close(link.pidfd)
        link.pidfd = -1
        link.mark_file.unlink(missing_ok=True)
        self._slots.discard(link.slot)
        await asyncio.to_thread(self._cluster.kill_worker, link.name)

    async def _start_worker(self) -> Link:
        await self._join()
        async with self._starts:
            slot = next(number for number in range(len(self._slots) + 1) if number not in self._slots)
            self._slots.add(slot)
            # The name is new each time, because Ray lets go of a dead actor's name only after a while.
            name = f"{self._cell}-w{slot}-{secrets.token_hex(3)}"
            config = WorkerConfig(
                name,
                self._cell,
                self._host,
                str(self._secret_file),
                str(self._mark_file(name)),
                str(self._logs_folder / f"{self._cell}.worker-{slot}.log"),
                self._place,
                self._fault_injection,
                tuple(sorted(self._bulkheads_off)),
            )
            try:
                endpoint = await asyncio.to_thread(self._cluster.start_worker, config)
                link = await self._link_started(endpoint, slot)
            except (ClusterError, PeerUnavailableError, ProcessLookupError) as error:
                self._slots.discard(slot)
                self._starts_failed += 1
                log.warning("worker_not_started", worker=name, error=str(error), failed=self._starts_failed)
                if self._starts_failed >= _STARTS_FAILED_MAX:
                    self._on_broken("Ray starts no workers; a new door joins it anew")
                else:
                    await asyncio.to_thread(self._cluster.kill_worker, name)  # or it comes later, and nobody knows it
                raise
            self._starts_failed = 0
            return link

    async def _link_started(self, endpoint: Endpoint, slot: int) -> Link:
        pidfd = os.pidfd_open(endpoint.pid)
        try:
            return await self._link(endpoint, slot, pidfd)
        except PeerUnavailableError:
            _kill(pidfd)
            os.close(pidfd)
            raise

    async def _link(self, endpoint: Endpoint, slot: int, pidfd: int) -> Link:
        lost: list[Link] = []
        connection = await Connection.open(
            endpoint.host,
            endpoint.port,
            "door",
            self._key,
            on_lost=lambda: self.bury(lost[0], "connection_lost") if lost else None,
        )
        heartbeat = HeartbeatListener()
        heartbeat.start(endpoint.host, endpoint.heartbeat_port, self._key)
        link = Link(endpoint, slot, self._mark_file(endpoint.name), connection, heartbeat, pidfd)
        lost.append(link)
        self._slots.add(slot)
        self.links[link.name] = link
        log.info("worker_linked", worker=link.name, pid=endpoint.pid)
        return link

    def _mark_file(self, name: str) -> Path:
        return self._marks / name

    async def _keep_spares(self) -> None:
        while True:
            await self._short.wait()
            self._short.clear()
            while len(self._spares) < self._spares_wanted:
                # A start takes most of a core for a second: those who take over just now need it more, and so do those
                # who wait for a worker of their own.
                settled_at = self._died_at + limits.SPARE_AFTER_DEATH_DELAY_MS / 1_000
                await asyncio.sleep(max(settled_at - time.monotonic(), 0))
                try:
                    await self._join()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(limits.WORKER_START_TIMEOUT_MS / 1_000):
                            await self._none_awaited.wait()
                    if len(self._spares) >= self._spares_wanted:
                        break  # one was given back meanwhile
                    self.give_back(await self._start_worker())
                except (ClusterError, PeerUnavailableError, ProcessLookupError):
                    await asyncio.sleep(1)

    async def _watch(self) -> None:
        interval = limits.HEARTBEAT_INTERVAL_MS / 1_000
        while True:
            before = time.monotonic()
            await asyncio.sleep(interval)
            late_ms = (time.monotonic() - before - interval) * 1_000
            if late_ms > limits.DOOR_LATE_MS:
                # It was the door that slept: nobody is accused of what the door did not hear.
                log.warning("door_late", late_ms=int(late_ms))
                for link in self.links.values():
                    link.heartbeat.heard = time.monotonic()
                self._on_late()
                continue
            self._bury_hogs()
            if Bulkhead.HEARTBEAT in self._bulkheads_off:
                continue
            for link in list(self.links.values()):
                if link.silent_ms > limits.HEARTBEAT_TIMEOUT_MS:
                    self.bury(link, "silent")
                elif link.heartbeat.loop_lag_ms > limits.WORKER_LOOP_LAG_MS_MAX:
                    self.bury(link, "loop_stuck")

    def _bury_hogs(self) -> None:
        for link in list(self.links.values()):
            is_fat = link.heartbeat.resident_bytes > cell_limits.WORKER_RESIDENT_BYTES_MAX
            if is_fat and Bulkhead.WORKER_MEMORY not in self._bulkheads_off:
                self.bury(link, "memory")
            elif link.heartbeat.threads > cell_limits.WORKER_THREADS_MAX:
                self.bury(link, "threads")
            elif link.heartbeat.is_out_of_files:
                self.bury(link, "files")

    async def _watch_raylet(self) -> None:
        """Watch the process whose children the workers are. A GCS that dies is another matter: Ray waits for the next.

        Ray itself notices after a while, and then ends the door's process from inside.
        """
        try:
            await self._join()
            raylet = await asyncio.to_thread(self._cluster.open_raylet)
        except ClusterError as error:
            self._on_broken(str(error))
            return
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        try:
            loop.add_reader(raylet, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(raylet)
        finally:
            os.close(raylet)
        self._on_broken("Ray's raylet is gone, and its workers with it")

    def _run(self, work: "asyncio._CoroutineLike[None]", name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # A door that no longer watches, or starts no spares, is worse than none.
            log.error("workforce_failed", task=task.get_name(), exc_info=task.exception())
            self._on_broken(f"{task.get_name()} failed: {task.exception()!r}")


async def _until(condition: Callable[[], bool], timeout_ms: int) -> bool:
    until = time.monotonic() + timeout_ms / 1_000
    while not condition():
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.002)
    return True


def _kill(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _is_dead(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
