"""Keeps an installation's processes running: adopts, sweeps, starts, watches, starts again, stops. Knows no payments.

A process that an earlier supervisor started goes on while no supervisor runs. A later one adopts it where its record,
start time, marker, arguments and configuration are the same; all else that carries the installation's marker is killed.
"""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import structlog

from control_plane import handing_over, landlock, launching, limits
from control_plane.data_folder import DataFolder, timestamp
from control_plane.errors import FolderError
from control_plane.process_table import ProcessHandle, RunRecord, boot_id, find_marked, find_recorded, kill_all
from control_plane.processes import ProcessSpec
from router.directory_file import write_atomically

log = structlog.get_logger()

State = Literal["waiting", "starting", "ready", "silent", "restarting", "stopped"]
Probe = Callable[[ProcessSpec], Awaitable[bool]]
# (process, what happened, in words), for a person to read.
Listener = Callable[[ProcessSpec, str], None]
RECORD_SUFFIX: Final = ".json"


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process as the supervisor sees it."""

    spec: ProcessSpec
    state: State
    pid: int | None
    adopted: bool
    restarts: int
    started_at: str | None
    last_end: str | None


class _Keeper:
    """One process, kept running."""

    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.state: State = "waiting"
        self.handle: ProcessHandle | None = None
        self.started_at: str | None = None
        self.restarts = 0
        self.failures_in_row = 0
        self.last_end: str | None = None
        self.ready = asyncio.Event()  # answers, as far as is known
        self.begun = asyncio.Event()  # is there; it may not answer yet
        self.ended_for: str | None = None  # the process without which this one was of no use
        self.stopping = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class _StoppedFor:
    """For how long something has been seen to be stopped (SIGSTOP)."""

    def __init__(self) -> None:
        self._since: float | None = None

    def ms(self, now: float, *, stopped: bool, late: bool) -> float:
        """Return it as of this look; whoever stopped one that looks late may have stopped the one that looks, too."""
        if not stopped:
            self._since = None
            return 0
        if self._since is None or late:
            self._since = now
        return (now - self._since) * 1000


@dataclass(frozen=True, slots=True)
class _Part:
    """A child of a process that is watched beside it."""

    name: str
    handle: ProcessHandle
    started_again: bool  # by the process itself
    stopped: _StoppedFor


class Supervisor:
    """All processes of one installation. `probe` says whether a process answers; it may raise nothing."""

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        folder: DataFolder,
        instance_id: str,
        probe: Probe,
        listener: Listener = lambda _spec, _what: None,
    ) -> None:
        self._folder = folder
        self._instance_id = instance_id
        self._probe = probe
        self._listener = listener
        self._has_landlock = landlock.version() > 0
        self._keepers = [_Keeper(spec) for spec in specs]
        self._stopping = False

    @property
    def states(self) -> list[ProcessState]:
        """Every process, in the order of its start."""
        return [
            ProcessState(
                spec=keeper.spec,
                state=keeper.state,
                pid=keeper.handle.pid if keeper.handle is not None else None,
                adopted=keeper.handle is not None and keeper.handle.adopted,
                restarts=keeper.restarts,
                started_at=keeper.started_at,
                last_end=keeper.last_end,
            )
            for keeper in self._keepers
        ]

    async def take_over(self) -> list[ProcessSpec]:
        """Adopt what runs as it should and kill every other leftover; give what is still to be started."""
        for keeper in self._keepers:
            record = self._read_record(keeper.spec)
            if record is None or record.fingerprint != keeper.spec.fingerprint:
                continue
            keeper.handle = find_recorded(record, keeper.spec.marker)
            if keeper.handle is not None:
                keeper.started_at = record.started_at
                log.info("process_adopted", child=keeper.spec.name, pid=record.pid)
        for keeper in self._keepers:
            needed = [other for other in self._keepers if other.spec.name in keeper.spec.needs]
            if keeper.handle is not None and any(other.handle is None for other in needed):
                keeper.handle.close()  # what it needs is gone, so it is swept and started after that
                keeper.handle = None
        adopted = frozenset(keeper.spec.name for keeper in self._keepers if keeper.handle is not None)
        swept = await kill_all(self._instance_id, except_names=adopted)
        if swept:
            log.warning("leftovers_killed", count=swept)
        return [keeper.spec for keeper in self._keepers if keeper.handle is None]

    def start(self) -> None:
        """Begin to keep all processes running; `take_over` first."""
        for keeper in self._keepers:
            self._start_keeper(keeper)

    def add(self, specs: Sequence[ProcessSpec]) -> None:
        """Keep these processes running, too; those that are kept already are left alone."""
        kept = {keeper.spec.name for keeper in self._keepers}
        for spec in specs:
            if spec.name not in kept and not self._stopping:
                self._keepers.append(_Keeper(spec))
                self._start_keeper(self._keepers[-1])

    async def remove(self, cell: str) -> None:
        """Stop a cell's processes, who asks before who is asked, and keep them no longer."""
        leaving = [keeper for keeper in self._keepers if keeper.spec.cell == cell]
        for keeper in leaving:
            keeper.stopping.set()
        for stage in sorted({keeper.spec.stage for keeper in leaving}, reverse=True):
            await self._stop_stage([keeper for keeper in leaving if keeper.spec.stage == stage], None)
        for keeper in leaving:
            await kill_all(self._instance_id, name=keeper.spec.name)
        await self._end_keepers(leaving)
        self._keepers = [keeper for keeper in self._keepers if keeper not in leaving]

    async def wait_ready(self, timeout_ms: int) -> list[str]:
        """Wait until all processes answer but the optional ones; give the names of those that don't in time."""
        awaited = [keeper for keeper in self._keepers if not keeper.spec.optional]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000):
                await asyncio.gather(*(keeper.ready.wait() for keeper in awaited))
        return [keeper.spec.name for keeper in awaited if not keeper.ready.is_set()]

    def failed(self) -> BaseException | None:
        """Give the error of a keeper that ended by a bug; None where there is none."""
        for task in self._tasks():
            if task.done() and not task.cancelled() and task.exception() is not None:
                return task.exception()
        return None

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """Stop all, who asks before who is asked; none stays behind. With `hurry` set, at once by SIGKILL."""
        self._stopping = True
        for keeper in self._keepers:
            keeper.stopping.set()
        # Known now by their parents too: what hides its marker is an orphan once these have ended.
        known = await asyncio.to_thread(find_marked, self._instance_id)
        for stage in sorted({keeper.spec.stage for keeper in self._keepers}, reverse=True):
            await self._stop_stage([keeper for keeper in self._keepers if keeper.spec.stage == stage], hurry)
        killed = await kill_all(self._instance_id)
        for descendant in known:
            if not descendant.has_ended():
                descendant.signal(signal.SIGKILL)
                killed += await descendant.ended_within(limits.KILL_TIMEOUT_MS)
            descendant.close()
        if killed:
            log.info("descendants_killed", count=killed)
        await self._end_keepers(self._keepers)

    async def _stop_stage(self, keepers: Sequence[_Keeper], hurry: asyncio.Event | None) -> None:
        alive = [
            (keeper, keeper.handle) for keeper in keepers if keeper.handle is not None and not keeper.handle.has_ended()
        ]
        for _, handle in alive:
            handle.signal(signal.SIGTERM)
        ended = asyncio.gather(*(handle.ended_within(limits.STOP_TIMEOUT_MS) for _, handle in alive))
        await _first_of(ended, hurry)
        for keeper, handle in alive:
            if not handle.has_ended():
                log.warning("process_killed", child=keeper.spec.name, pid=handle.pid, after_ms=limits.STOP_TIMEOUT_MS)
                handle.signal(signal.SIGKILL)

    async def _end_keepers(self, keepers: Sequence[_Keeper]) -> None:
        """Wait until each keeper has seen its process's end and that it is to stop; nothing of them is left then."""
        tasks = [keeper.task for keeper in keepers if keeper.task is not None]
        _, hanging = await asyncio.wait(tasks, timeout=limits.KILL_TIMEOUT_MS / 1000) if tasks else ((), ())
        for task in hanging:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for keeper in keepers:
            keeper.state = "stopped"
            self._record_file(keeper.spec).unlink(missing_ok=True)
            if keeper.spec.scratch is not None:
                await asyncio.to_thread(remove_scratch, keeper.spec.scratch)

    async def trim_outputs(self) -> None:
        """Empty what processes printed past the bound; they append, so that they go on at the beginning."""
        for keeper in self._keepers:
            path = self._output_file(keeper.spec)
            if path.exists() and path.stat().st_size > limits.OUTPUT_FILE_BYTES_MAX:
                os.truncate(path, 0)
                log.warning("output_emptied", child=keeper.spec.name, file=str(path))

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [keeper.task for keeper in self._keepers if keeper.task is not None]

    # One process.

    def _start_keeper(self, keeper: _Keeper) -> None:
        keeper.task = asyncio.create_task(self._keep(keeper), name=f"keep {keeper.spec.name}")

    async def _keep(self, keeper: _Keeper) -> None:
        while not keeper.stopping.is_set():
            error = None
            if keeper.handle is None:
                await self._wait_for_needs(keeper)
                await kill_all(self._instance_id, name=keeper.spec.name)  # what an earlier life of it left
                if keeper.stopping.is_set():
                    return
                error = await self._hand_over(keeper.spec) or self._spawn(keeper)
            began = time.monotonic()
            if error is None:
                keeper.begun.set()
            end = error if error is not None else await self._watch(keeper)
            lived_ms = (time.monotonic() - began) * 1000
            if keeper.stopping.is_set():
                return
            keeper.begun.clear()
            keeper.ready.clear()
            keeper.restarts += 1
            keeper.last_end = end
            keeper.state = "restarting"
            self._end_dependents(keeper)
            if keeper.ended_for is not None:
                keeper.last_end, keeper.ended_for = f"{keeper.ended_for} ended", None
                continue
            keeper.failures_in_row = 1 if lived_ms >= limits.HEALTHY_MS_TO_RESET_DELAY else keeper.failures_in_row + 1
            delay_ms = restart_delay_ms(keeper.failures_in_row)
            log.warning("process_ended", child=keeper.spec.name, end=end, restart_in_ms=delay_ms)
            where = f" (its words: {self._output_file(keeper.spec)})" if "exit code" in end else ""
            self._listener(keeper.spec, f"{end}; starting it again in {delay_ms / 1000:g} s{where}")
            await _first_of(asyncio.ensure_future(asyncio.sleep(delay_ms / 1000)), keeper.stopping)

    async def _wait_for_needs(self, keeper: _Keeper) -> None:
        """Wait until what the process needs was started. It does not wait for its answers: that it does by itself."""
        needed = [other.begun.wait() for other in self._keepers if other.spec.name in keeper.spec.needs]
        if needed:
            timeout = asyncio.wait_for(asyncio.gather(*needed), limits.NEEDS_TIMEOUT_MS / 1000)
            with contextlib.suppress(TimeoutError):  # it is started all the same and may find what it needs later
                await _first_of(asyncio.ensure_future(timeout), keeper.stopping)

    def _end_dependents(self, keeper: _Keeper) -> None:
        """End what is of no use without a process that ended: it would only find that out later by itself."""
        for other in self._keepers:
            if keeper.spec.name in other.spec.needs and other.handle is not None:
                other.ended_for = keeper.spec.name
                other.handle.signal(signal.SIGKILL)
                self._listener(other.spec, f"ended, for {keeper.spec.name} ended; it is started after that")

    async def _hand_over(self, spec: ProcessSpec) -> str | None:
        """Give the process's user what is to be its own; give what went wrong in words, None where nothing did."""
        planned = [keeper.spec for keeper in self._keepers]
        try:
            await asyncio.to_thread(handing_over.hand_over, self._folder, spec, planned)
        except FolderError as error:
            log.error("not_handed_over", child=spec.name, error=error.what)  # noqa: TRY400 - the trace tells no more
            return f"it can't be started: {error}"
        return None

    def _spawn(self, keeper: _Keeper) -> str | None:
        """Start the process; give what went wrong in words, None where nothing did."""
        spec = keeper.spec
        keeper.state = "starting"
        try:
            write_atomically(spec.config_file, json.dumps(spec.config, indent=2).encode())
            handing_over.let_read_alone(spec.config_file, spec.uid)
            if spec.scratch is not None:
                remove_scratch(spec.scratch)
                make_scratch(spec.scratch, spec.uid)
            output = os.open(self._output_file(spec), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                child = subprocess.Popen(  # noqa: S603 - our own module, its arguments made by processes.py
                    launching.command(spec, landlock=self._has_landlock),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=launching.environment(spec, os.environ),
                    cwd=self._folder.run,
                    start_new_session=True,  # a Ctrl-C in the terminal is for the supervisor alone
                )
            finally:
                os.close(output)
            handle = ProcessHandle.of_child(child)
            keeper.started_at = timestamp()
            record = RunRecord(
                pid=handle.pid,
                start_time=handle.start_ticks,
                boot_id=boot_id(),
                fingerprint=spec.fingerprint,
                argv=list(spec.argv),
                started_at=keeper.started_at,
            )
            keeper.handle = handle
            write_atomically(self._record_file(spec), json.dumps(asdict(record), indent=2).encode())
        except (OSError, FolderError) as error:
            if keeper.handle is None:
                return f"it can't be started: {error}"
            log.warning("record_not_written", child=spec.name, error=str(error))  # swept, not adopted, later
        log.info("process_started", child=spec.name, pid=keeper.handle.pid)
        return None

    async def _watch(self, keeper: _Keeper) -> str:
        """Watch until the process has ended, killing it where it falls silent; give how it ended, in words."""
        handle = keeper.handle
        assert handle is not None
        answered = handle.adopted  # an adopted process was ready in its day
        silent_since: float | None = None
        wanted_ms = 0.0  # CPU time that it wanted by then
        why = ""
        ended = asyncio.ensure_future(handle.wait_ended())
        standing = asyncio.create_task(self._kill_where_it_stands(keeper.spec, handle))
        try:
            while not ended.done():
                asked, wanted_by_then_ms = time.monotonic(), handle.wanted_cpu_ms()
                if await self._probe_in_time(keeper.spec):
                    silent_since = None
                    answered = True
                    if keeper.state != "ready" and not why:
                        self._say_ready(keeper)
                else:
                    if silent_since is None:
                        silent_since, wanted_ms = asked, wanted_by_then_ms
                    if keeper.state == "ready":
                        keeper.state = "silent"
                well = silent_since is None
                pause_ms = limits.PROBE_INTERVAL_MS if well else limits.PROBE_INTERVAL_WAITING_MS
                await asyncio.wait({ended}, timeout=pause_ms / 1000)
                now = time.monotonic()
                if silent_since is None or why or ended.done() or standing.done():
                    continue
                if (now - asked) * 1000 > limits.PROBE_TIMEOUT_MS + pause_ms + limits.SUPERVISOR_LATE_MS:
                    silent_since, wanted_ms = now, handle.wanted_cpu_ms()  # who is late oneself accuses nobody
                    continue
                silent_ms = (now - silent_since) * 1000
                wanted = (handle.wanted_cpu_ms() - wanted_ms) / silent_ms
                allowed_ms = silence_ms_max(keeper.spec.silent_ms_max, answered=answered, wanted=wanted)
                if silent_ms >= allowed_ms:
                    why = f"it did not answer for {allowed_ms / 1000:g} s and was killed"
                    handle.signal(signal.SIGKILL)
            code = await ended
            if standing.done():
                why = why or standing.result()
        finally:
            for task in (ended, standing):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        handle.close()
        keeper.handle = None
        return why or _describe_end(code)

    async def _kill_where_it_stands(self, spec: ProcessSpec, handle: ProcessHandle) -> str:
        """End a process that was stopped (SIGSTOP), or lost a part of its own; give why, in words.

        A part that it starts again by itself is only ended where it was stopped.

        That is what the kernel says of it, so no load of the machine can be mistaken for it.
        """
        interval_s = limits.STATE_LOOK_INTERVAL_MS / 1000
        parts: dict[int, _Part] = {}
        whole = _StoppedFor()
        try:
            for look in itertools.count():
                before = time.monotonic()
                await asyncio.sleep(interval_s)
                now = time.monotonic()
                late = (now - before - interval_s) * 1000 > limits.SUPERVISOR_LATE_MS
                if look % limits.STATE_LOOKS_PER_SEARCH == 0:
                    _find_parts(spec, handle, parts)
                its_own = [part for part in parts.values() if not part.started_again]
                if any(part.handle.has_ended() for part in its_own):
                    why = "a process of its own ended, so it was killed"
                    break
                stopped = any(one.is_stopped() for one in (handle, *(part.handle for part in its_own)))
                if whole.ms(now, stopped=stopped, late=late) >= spec.stopped_ms_max:
                    why = f"it was stopped for {spec.stopped_ms_max / 1000:g} s and was killed"
                    break
                for part in [part for part in parts.values() if part.started_again]:
                    if part.handle.has_ended():
                        self._say_part_ended(spec, parts.pop(part.handle.pid))
                    elif part.stopped.ms(now, stopped=part.handle.is_stopped(), late=late) >= spec.stopped_ms_max:
                        part.handle.signal(signal.SIGKILL)
        finally:
            for part in parts.values():
                part.handle.close()
        handle.signal(signal.SIGKILL)
        return why

    def _say_part_ended(self, spec: ProcessSpec, part: "_Part") -> None:
        part.handle.close()
        output = self._output_file(spec)
        log.warning("part_ended", child=spec.name, part=part.name, pid=part.handle.pid, output=str(output))
        self._listener(spec, f"its {part.name} ended and is started again by it (its words: {output})")

    async def _probe_in_time(self, spec: ProcessSpec) -> bool:
        try:
            async with asyncio.timeout(limits.PROBE_TIMEOUT_MS / 1000):
                return await self._probe(spec)
        except TimeoutError:
            return False

    def _say_ready(self, keeper: _Keeper) -> None:
        keeper.state = "ready"
        keeper.ready.set()
        assert keeper.handle is not None
        log.info("process_ready", child=keeper.spec.name, pid=keeper.handle.pid)
        self._listener(keeper.spec, "ready")

    def _record_file(self, spec: ProcessSpec) -> Path:
        return self._folder.run / f"{spec.name}{RECORD_SUFFIX}"

    def _output_file(self, spec: ProcessSpec) -> Path:
        return self._folder.logs / f"{spec.name}.out"

    def _read_record(self, spec: ProcessSpec) -> RunRecord | None:
        try:
            return RunRecord.from_json(json.loads(self._record_file(spec).read_bytes()))
        except (OSError, ValueError):
            return None


def silence_ms_max(idle_ms_max: int, *, answered: bool, wanted: float) -> int:
    """Return how long a process may not answer.

    `idle_ms_max`: where it has nothing to do. `answered`: whether it ever did. `wanted`: for which share of that time
    its event loop ran or waited for a core.
    """
    if not answered:
        return limits.START_TIMEOUT_MS
    is_busy = wanted * 100 >= limits.BUSY_PERCENT_MIN
    return max(limits.BUSY_SILENT_MS_MAX, idle_ms_max) if is_busy else idle_ms_max


def restart_delay_ms(failures_in_row: int) -> int:
    """Give the wait before the next start: doubling, bounded."""
    assert failures_in_row >= 1
    doublings = min(failures_in_row - 1, 16)
    return min(limits.RESTART_DELAY_MS_MIN << doublings, limits.RESTART_DELAY_MS_MAX)


def make_scratch(path: Path, uid: int | None) -> None:
    """Make a folder below a public one, for one user only. Raises FolderError where somebody else was there first."""
    for folder in (path.parent, path):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o066:
            raise FolderError(
                "the folder for Ray's sockets belongs to somebody else or is open to others",
                where=str(folder),
                hint="look whose it is, then remove it",
            )
    if uid is not None:
        path.parent.chmod(0o711)  # it is ours, and others may not list it
        os.chown(path, uid, uid)


def remove_scratch(path: Path) -> None:
    """Remove such a folder, if it is this user's own."""
    with contextlib.suppress(FileNotFoundError):
        if path.parent.lstat().st_uid == os.geteuid() and not path.parent.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):  # other cells' folders are still in it
                path.parent.rmdir()


def _find_parts(spec: ProcessSpec, handle: ProcessHandle, parts: dict[int, _Part]) -> None:
    """Add the parts of a process that are not known yet, by their pids."""
    for name in (*spec.parts, *spec.parts_started_again):
        for child in handle.children((name,)):
            if child.pid in parts:
                child.close()
            else:
                parts[child.pid] = _Part(name, child, name in spec.parts_started_again, _StoppedFor())


async def _first_of(work: "asyncio.Future[Any]", event: asyncio.Event | None) -> None:
    """Await the work, or give it up when the event is set."""
    if event is None:
        await work
        return
    told = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([work, told], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            await work
    finally:
        for future in (work, told):
            if not future.done():
                future.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await future


def _describe_end(code: int | None) -> str:
    if code is None:
        return "it ended"  # adopted: its exit code went to another parent
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"it was ended by {names.get(-code, f'signal {-code}')}"
    return f"it ended with exit code {code}"
