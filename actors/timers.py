"""What an actor does by itself, also for an idle partner: authorizations that end, records past their retention."""

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from actors import codec, keyspace, limits
from actors.errors import StoreError
from actors.mailbox import Expire, Sweep
from actors.store import Key, Range

if TYPE_CHECKING:
    from actors.partner import PartnerActor

log = structlog.get_logger()

_PAUSE_MS = 200


class Timers:
    """One task that sleeps until the next authorization is due, or WAKE_MS_MAX."""

    def __init__(self, actor: "PartnerActor") -> None:
        self._actor = actor
        self._task: asyncio.Task[None] | None = None
        self._sooner = asyncio.Event()
        self._planned_ms = 0

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name=f"timers-{self._actor.profile.partner_id}")

    def look(self, due_ms: int | None) -> None:
        """Take note of an authorization due at `due_ms`, which may be sooner than what was planned."""
        if due_ms is not None and due_ms < self._planned_ms:
            self._sooner.set()

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._sooner.clear()
            self._planned_ms = keyspace.LAST_NUMBER  # what is committed while this looks is looked at next
            try:
                wait_ms = min(await self._expire(), await self._sweep())
            except StoreError as error:
                log.warning("timers_cannot_read", partner=self._actor.profile.partner_id, error=str(error))
                wait_ms = limits.EXPIRY_RETRY_DELAY_MS
            wait_ms = min(max(wait_ms, _PAUSE_MS), limits.WAKE_MS_MAX)
            self._planned_ms = self._actor.now_ms() + wait_ms
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_ms / 1_000):
                    await self._sooner.wait()

    async def _expire(self) -> int:
        """Tell of what is due; give the milliseconds until the next."""
        rows = (
            await self._actor.store.read(
                (), [Range(("due",), ("due", keyspace.LAST_NUMBER), limits.EXPIRIES_PER_WAKE_MAX)]
            )
        ).ranges[0]
        now_ms = self._actor.now_ms()
        for row in rows:
            _, at_ms, payment_id = row.key
            if int(at_ms) > now_ms:
                return int(at_ms) - now_ms
            self._actor.tell(Expire(str(payment_id)))
        return _PAUSE_MS if rows else limits.WAKE_MS_MAX

    async def _sweep(self) -> int:
        swept = self._actor.standing.swept_sequence
        page = Range(
            keyspace.journal(swept + 1),
            keyspace.journal(swept + 1 + limits.IDEMPOTENCY_ROWS_SWEPT_MAX),
            limits.IDEMPOTENCY_ROWS_SWEPT_MAX,
        )
        rows = (await self._actor.store.read((), [page])).ranges[0]
        before_ms = self._actor.now_ms() - limits.IDEMPOTENCY_KEPT_MS
        keys: list[Key] = []
        last = swept
        for row in rows:
            entry = codec.decode_entry(row.value)
            if entry.at_ms >= before_ms:
                break
            last = entry.sequence
            if entry.once_key is not None:
                keys.append(entry.once_key)
        if last == swept:
            return limits.WAKE_MS_MAX
        self._actor.tell(Sweep(swept, tuple(keys), last))
        return _PAUSE_MS if len(rows) == limits.IDEMPOTENCY_ROWS_SWEPT_MAX else limits.WAKE_MS_MAX
