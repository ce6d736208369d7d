"""Onboards many partners at once, in the steps of partners.py, and tells of each as soon as it can be used.

    begun       all in few commits of the registry; a crash from here on leaves them to the reconciler
    books       each cell's door makes and opens several at a time
    admitted    those whose books are made: one commit makes them active and keeps their keys
    published   one directory for all of them; a router that holds it lets their keys in

What becomes ready while a directory is on its way is in the next one, so a file of many costs few.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import structlog

from control_plane import api_keys, limits
from control_plane.api_keys import ApiKey
from control_plane.errors import ControlPlaneError
from control_plane.registry import Registry
from control_plane.registry_records import Partner

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A partner to be onboarded: its row, the line it came from, and the status that it gets."""

    line: int
    partner: Partner
    status: str = "active"


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a row. Without a key and a `why`: it was there before, with its key."""

    line: int
    partner: Partner
    key: ApiKey | None = None
    routers_behind: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Ready:
    """A partner whose book is made, until it is admitted and published."""

    candidate: Candidate
    admitted: "asyncio.Future[None]"


class Importer:
    """The way of many partners into one installation. One file at a time."""

    def __init__(
        self,
        registry: Registry,
        pepper: bytes,
        onboard: Callable[[Partner], Awaitable[None]],
        publish: Callable[[], Awaitable[tuple[str, ...]]],
        alone: Callable[[str], AbstractAsyncContextManager[None]],
    ) -> None:
        self._registry = registry
        self._pepper = pepper
        self._onboard = onboard
        self._publish = publish
        self._alone = alone
        self._turn = asyncio.Lock()
        # Of these the reconciler keeps its hands off.
        self.under_way: set[str] = set()

    async def run(self, candidates: Sequence[Candidate], who: str) -> AsyncGenerator[Imported, None]:
        """Onboard them; give each once its key opens the door. Those that are not begun yet are begun first.

        Closing the iterator stops it: what was begun is finished by the reconciler, and asking again gives its keys.
        """
        async with self._turn:
            self.under_way = {candidate.partner.id for candidate in candidates}
            work: asyncio.Task[None] | None = None
            try:
                await self._registry.begin_onboardings([candidate.partner for candidate in candidates], who)
                told: asyncio.Queue[Imported | None] = asyncio.Queue()
                work = asyncio.create_task(self._work(candidates, who, told), name="import-partners")
                while (imported := await told.get()) is not None:
                    yield imported
                await work
            finally:
                self.under_way = set()
                if work is not None and not work.done():
                    work.cancel()
                    await asyncio.gather(work, return_exceptions=True)

    async def _work(self, candidates: Sequence[Candidate], who: str, told: "asyncio.Queue[Imported | None]") -> None:
        ready: asyncio.Queue[_Ready | None] = asyncio.Queue()
        slots = {
            candidate.partner.cell: asyncio.Semaphore(limits.IMPORT_ONBOARDS_AT_ONCE_MAX) for candidate in candidates
        }
        try:
            async with asyncio.TaskGroup() as tasks:
                admitting = tasks.create_task(self._admit(ready, who, told))
                async with asyncio.TaskGroup() as books:
                    for candidate in candidates:
                        books.create_task(self._one(candidate, slots[candidate.partner.cell], ready, told))
                ready.put_nowait(None)
                await admitting
        finally:
            told.put_nowait(None)

    async def _one(
        self,
        candidate: Candidate,
        slots: asyncio.Semaphore,
        ready: "asyncio.Queue[_Ready | None]",
        told: "asyncio.Queue[Imported | None]",
    ) -> None:
        partner_id = candidate.partner.id
        async with self._alone(partner_id):
            found = self._registry.partner(partner_id)
            if self._registry.keys(partner_id):
                told.put_nowait(Imported(candidate.line, found))
                return
            try:
                if found.status == "onboarding":
                    async with slots:
                        await self._onboard(found)
            except ControlPlaneError as error:
                log.warning("partner_not_imported", partner=partner_id, error=error.what)
                told.put_nowait(Imported(candidate.line, found, why=error.what))
                return
            waiting = _Ready(candidate, asyncio.get_running_loop().create_future())
            ready.put_nowait(waiting)
            await waiting.admitted

    async def _admit(
        self, ready: "asyncio.Queue[_Ready | None]", who: str, told: "asyncio.Queue[Imported | None]"
    ) -> None:
        """Admit and publish what is ready, again and again: what queues up meanwhile is the next batch."""
        ended = False
        while not ended:
            batch = [await ready.get()]
            if batch[0] is not None:
                await asyncio.sleep(limits.IMPORT_GATHER_MS / 1_000)
            while not ready.empty() and len(batch) < limits.IMPORT_BATCH_PARTNERS_MAX:
                batch.append(ready.get_nowait())
            ended = None in batch
            here = [waiting for waiting in batch if waiting is not None]
            if here:
                await self._admit_batch(here, who, told)

    async def _admit_batch(self, batch: Sequence[_Ready], who: str, told: "asyncio.Queue[Imported | None]") -> None:
        rows = [self._registry.partner(waiting.candidate.partner.id) for waiting in batch]
        keys = [api_keys.make(self._pepper, row.mode, row.id) for row in rows]
        statuses = [waiting.candidate.status for waiting in batch]
        why = ""
        behind: tuple[str, ...] = ()
        try:
            await self._registry.admit(
                [(row.id, key, to) for row, key, to in zip(rows, keys, statuses, strict=True)], who
            )
        except ControlPlaneError as error:
            why = error.what
        for waiting in batch:
            waiting.admitted.set_result(None)
        if not why:
            try:
                behind = await self._publish()
            except ControlPlaneError as error:
                log.warning("import_not_published", error=error.what)
                behind = ("every router",)  # the keys are good all the same, once it is published
        for waiting, key in zip(batch, keys, strict=True):
            row = self._registry.partner(waiting.candidate.partner.id)
            told.put_nowait(Imported(waiting.candidate.line, row, None if why else key, behind, why))
        log.info("partners_imported", partners=len(batch), failed=bool(why))
