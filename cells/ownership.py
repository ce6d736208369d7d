"""Who owns which partner: activation, takeover after a death, handover, strikes and what they lead to.

Only the door assigns. Commands on their way are in door.py; which worker a partner belongs to is in placement.py.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgpack
import orjson
import structlog

from cells import door_metrics, escalation, limits, placement
from cells.api import limits as wire_limits
from cells.api import messages, moves
from cells.api.connection import PeerError, PeerTimeoutError
from cells.api.messages import Answer, Method, Profile, RefusalCode, Refused
from cells.api.moves import Receipt
from cells.cell_book import CellBook
from cells.escalation import Escalation, Strikes
from cells.placement import Host
from cells.poison import Mark
from cells.remote import ClusterError
from cells.seats import Seat
from cells.workforce import Link, Workforce

log = structlog.get_logger()

_KILL_WAIT_MS = 500
# Causes of a worker's end that the machine may have brought about, too.
_STALLS = frozenset({"silent", "loop_stuck", "unanswering", "activation_timeout"})


class Ownership:
    """Sees to it that each partner of a door has the worker that it should have."""

    def __init__(
        self, seats: dict[str, Seat], book: CellBook, acquirers: Mapping[str, str], confirm: Callable[[], None]
    ) -> None:
        self._seats = seats
        self._book = book
        self._acquirers = dict(acquirers)
        self._confirm = confirm
        self._strikes = Strikes()
        self._activations = asyncio.Semaphore(wire_limits.TAKEOVERS_AT_ONCE_MAX)
        self._pool_assigns = asyncio.Semaphore(limits.POOL_ASSIGNS_AT_ONCE_MAX)
        self._opening_pool = asyncio.Lock()
        self._held: dict[str, Link] = {}  # places of partners that are on the way here
        self._look = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.workforce: Workforce | None = None
        self.on_sealed: Callable[[Seat, Receipt], Awaitable[None]] | None = None

    # Start

    async def staff(self, workforce: Workforce) -> None:
        """Give each partner its worker: the one that has it from before, or a fresh one. Requests may come already."""
        self.workforce = workforce
        claimed: set[str] = set()
        await workforce.find_existing(lambda link: self._adopt(link, claimed))
        left = [seat for seat in self._seats.values() if seat.link is None and not seat.is_quarantined]
        self._activate_together([seat for seat in left if seat.wants_pool], "start", None)
        for seat in left:
            self.activate_soon(seat, "start")
        workforce.start()
        self._run(self._keep_placed(), "keep-placed")

    async def stop(self) -> None:
        """Begin nothing more. Workers live on: they serve the next door."""
        activations = [seat.activation for seat in self._seats.values() if seat.activation is not None]
        tasks = [*self._tasks, *activations]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _adopt(self, link: Link, claimed: set[str]) -> None:
        """Assign a worker of before the partners that it has; what another has already, it gives up."""
        assert self.workforce is not None
        mine, others = [], []
        for partner_id in await self._hosted(link):
            seat = self._seats.get(partner_id)
            if seat is not None and partner_id not in claimed and not seat.is_quarantined:
                claimed.add(partner_id)
                mine.append(seat)
            else:
                others.append(partner_id)
        link.is_pool = len(mine) > 1 or any(seat.wants_pool for seat in mine)
        link.partners.update(seat.partner_id for seat in mine)
        for partner_id in others:
            with contextlib.suppress(PeerError):  # its end, if it is one, is told by itself
                await link.connection.request(Method.RELEASE, partner_id, b"", wire_limits.ACTIVATION_TIMEOUT_MS)
        await asyncio.gather(*(self._assign(seat, link) for seat in mine))
        if not link.partners:
            self.workforce.give_back(link)

    # Loss

    def worker_died(self, link: Link, cause: str, mark: Mark | None) -> None:
        """Give a dead worker's partners to others: a pool's go together, those first for which commands wait."""
        accused = "" if mark is None else mark.partner_id
        if not accused and cause == "unanswering" and len(link.partners) == 1:
            (accused,) = link.partners
        if accused in self._seats and (mark is None or mark.command_id or self._shelters(self._seats[accused])):
            is_stall = cause in _STALLS
            under = "under its command" if mark is None or mark.command_id else "after it had grown with its commands"
            self.strike(self._seats[accused], f"its worker ended ({cause}) {under}", is_stall=is_stall)
        lost = []
        # One for whom it held a place may have left the cell meanwhile.
        seats = [self._seats[partner_id] for partner_id in sorted(link.partners) if partner_id in self._seats]
        link.partners.clear()
        for seat in sorted(seats, key=lambda one: -one.under_way):
            if seat.link is not None and seat.link is not link:
                continue  # it was about to come here, and is served where it is
            self._vacate(seat, link)
            seat.takeovers += 1
            door_metrics.TAKEOVERS.labels(cause).inc()
            lost.append(seat)
        self._activate_together([seat for seat in lost if seat.wants_pool], cause, link)
        for seat in lost:
            self.activate_soon(seat, cause, after=link)

    @staticmethod
    def _shelters(seat: Seat) -> bool:
        """Say whether a slow leak of the partner's is a strike: others can be kept from it. Alone it harms itself."""
        return seat.profile.isolation == "pooled" and seat.escalation is None

    def given_up(self, seat: Seat, link: Link) -> None:
        """Activate again a partner whose actor stopped by itself, in the same process or another."""
        if seat.link is not link or seat.is_handed_over:
            return
        self._vacate(seat, link)
        self._give_back_empty(link)
        door_metrics.TAKEOVERS.labels("given_up").inc()
        seat.takeovers += 1
        self.activate_soon(seat, "given_up")

    def unanswering(self, seat: Seat, link: Link) -> None:
        """End a worker that left too many of a partner's commands unanswered; from a pool only the partner goes."""
        assert self.workforce is not None
        if link.is_pool and len(link.partners) > 1:
            self.strike(seat, "its commands were not answered", is_stall=True)
            self._look.set()
        else:
            self.workforce.bury(link, "unanswering")

    def strike(self, seat: Seat, why: str, *, is_stall: bool) -> None:
        """Count against a partner that a worker was lost under its command, and draw the conclusion."""
        now = time.monotonic()
        count = self._strikes.add(seat.partner_id, int(now * 1_000), is_stall=is_stall)
        # From the first on: were it sent again into the pool, a second death would take its mates' last try.
        seat.apart_until = now + limits.STRIKES_WINDOW_MS / 1_000
        log.warning("partner_struck", partner=seat.partner_id, strikes=count, why=why)
        kind = escalation.verdict(count, seat.profile.isolation)
        if kind is None or (seat.escalation is not None and seat.escalation.kind in {kind, escalation.QUARANTINED}):
            return
        minutes = limits.STRIKES_WINDOW_MS // 60_000
        text = f"{count} workers were lost under its commands within {minutes} minutes; at last: {why}"
        log.error("partner_escalated", partner=seat.partner_id, to=kind, why=text)
        door_metrics.ESCALATIONS.labels(kind).inc()
        self._set_escalation(seat, Escalation(kind, int(time.time() * 1_000), text))
        self._run(self._keep_escalation(seat), f"keep-escalation-{seat.partner_id}")

    async def release(self, seat: Seat, *, to_pool: bool) -> str:
        """Take back what was decided about a partner, as an operator wants it; give why it could not be kept."""
        found = escalation.after_release(seat.escalation, isolation=seat.profile.isolation, to_pool=to_pool)
        error = await self._book.put_escalation(seat.partner_id, found)
        if error is not None:
            return f"{type(error).__name__}: {error}"
        was_quarantined = seat.is_quarantined
        self._set_escalation(seat, found)
        if not seat.is_quarantined:
            self._strikes.forget(seat.partner_id)
            seat.apart_until = 0.0
        if was_quarantined and not seat.is_quarantined:
            self.activate_soon(seat, "released")
        self._look.set()
        return ""

    def _set_escalation(self, seat: Seat, found: Escalation | None) -> None:
        was_quarantined = seat.is_quarantined
        seat.escalation = found
        if seat.is_quarantined:
            seat.state, seat.why = escalation.QUARANTINED, "" if found is None else found.why
            seat.changed.set()
        elif was_quarantined:
            seat.state, seat.why = "activating", ""
            seat.changed.clear()
        self.count_quarantined()

    def count_quarantined(self) -> None:
        """Bring the gauge up to date."""
        door_metrics.QUARANTINED.set(sum(seat.is_quarantined for seat in self._seats.values()))

    async def _keep_escalation(self, seat: Seat) -> None:
        delay_ms = wire_limits.RECONNECT_DELAY_MS_MIN
        while await self._book.put_escalation(seat.partner_id, seat.escalation) is not None:
            await asyncio.sleep(delay_ms / 1_000)
            delay_ms = min(delay_ms * 2, wire_limits.ACTIVATION_RETRY_DELAY_MS_MAX)

    # Activation

    def activate_soon(self, seat: Seat, cause: str, after: Link | None = None) -> None:
        """Give a partner without a worker one, unless that is under way."""
        self._begin(seat, cause, after, None)

    def _activate_together(self, seats: Iterable[Seat], cause: str, after: Link | None) -> None:
        """Give pooled partners new pools, as few as hold them."""
        by_id = {seat.partner_id: seat for seat in seats}
        for group in placement.groups(by_id):
            if len(group) < 2:
                continue  # it may go to any pool
            shelter = asyncio.create_task(self._open_pool(group, after), name=f"open-pool-{group[0]}")
            for partner_id in group:
                self._begin(by_id[partner_id], cause, after, shelter)

    def _begin(self, seat: Seat, cause: str, after: Link | None, shelter: "asyncio.Task[Link] | None") -> None:
        if seat.receipt is None and not seat.is_quarantined and (seat.activation is None or seat.activation.done()):
            seat.activation = asyncio.create_task(
                self._activate(seat, cause, after, shelter), name=f"activate-{seat.partner_id}"
            )

    async def _open_pool(self, group: list[str], after: Link | None) -> Link:
        assert self.workforce is not None
        if after is not None:
            await self.workforce.wait_dead(after, _KILL_WAIT_MS)
        link = await self.workforce.take()
        link.is_pool = True
        link.partners.update(group)
        return link

    async def _activate(self, seat: Seat, cause: str, after: Link | None, shelter: "asyncio.Task[Link] | None") -> None:
        assert self.workforce is not None
        began = time.monotonic()
        if after is not None and shelter is None:
            # A stopped process could hold the book's write lock: it is gone before the next one opens the book.
            await self.workforce.wait_dead(after, _KILL_WAIT_MS)
        delay_ms = wire_limits.RECONNECT_DELAY_MS_MIN
        while seat.link is None and seat.receipt is None and not seat.is_quarantined:
            try:
                if shelter is not None:
                    link, shelter = await asyncio.shield(shelter), None
                    async with self._pool_assigns:
                        await self._assign_to(seat, link)
                elif seat.wants_pool:
                    link = await self._take_place(seat)
                    async with self._pool_assigns:
                        await self._assign_to(seat, link)
                else:
                    async with self._activations:
                        await self._assign_to(seat, await self._take_place(seat))
            except (ClusterError, PeerError, ProcessLookupError) as error:
                shelter, seat.why = None, str(error)
            except Exception as error:
                # A bug costs this try; without a next one the partner would be gone until the door ends.
                log.exception("activation_failed", partner=seat.partner_id)
                shelter, seat.why = None, repr(error)
            if seat.link is not None or seat.receipt is not None or seat.is_quarantined:
                break  # looked at, not told: it may have been lost again since
            await asyncio.sleep(delay_ms / 1_000)
            delay_ms = min(delay_ms * 2, wire_limits.ACTIVATION_RETRY_DELAY_MS_MAX)
        if seat.is_quarantined:
            self._look.set()  # where it was assigned all the same, it is released
        log.info(
            "partner_activated" if seat.link else "partner_not_activated",
            partner=seat.partner_id,
            cause=cause,
            epoch=seat.epoch,
            worker=seat.link.name if seat.link else None,
            took_ms=int((time.monotonic() - began) * 1_000),
        )
        door_metrics.ACTIVATION_SECONDS.observe(time.monotonic() - began)

    async def _take_place(self, seat: Seat) -> Link:
        """Find the worker that a partner belongs to, and hold a place in it. Raises as Workforce.take()."""
        assert self.workforce is not None
        held = self.held_place(seat.partner_id)
        self._held.pop(seat.partner_id, None)
        if held is not None:
            return held
        if not seat.wants_pool:
            link = await self.workforce.take()
            link.partners.add(seat.partner_id)
            return link
        async with self._opening_pool:  # of several that need a new one, one opens it
            name = placement.choose_pool(self._hosts())
            link = await self.workforce.take() if name is None else self.workforce.links[name]
            link.is_pool = True
            link.partners.add(seat.partner_id)
            return link

    def _hosts(self) -> list[Host]:
        assert self.workforce is not None
        return [_host(link) for link in self.workforce.links.values() if link.partners]

    async def _assign_to(self, seat: Seat, link: Link) -> None:
        try:
            await self._assign(seat, link)
        finally:
            self._give_back_empty(link)

    def _give_back_empty(self, link: Link) -> None:
        assert self.workforce is not None
        if not link.partners and link.connection.is_open:
            self.workforce.give_back(link)

    async def _assign(self, seat: Seat, link: Link) -> None:
        """Have the worker own the partner; `seat.link` says whether it does."""
        partner_id, profile = seat.partner_id, seat.profile
        body = msgpack.packb(
            {
                "profile": messages.encode_profile(profile),
                # All that the settings name, not only the profile's: its payments of before may be at another.
                "acquirers": self._acquirers,
                "door_epoch": self._book.door_epoch,
            }
        )
        link.partners.add(partner_id)
        try:
            answer = messages.decode_answer(
                await link.connection.request(Method.ASSIGN, partner_id, body, wire_limits.ACTIVATION_TIMEOUT_MS)
            )
        except PeerTimeoutError:
            self._not_taken_in_time(seat, link)
            return
        except PeerError as error:
            seat.why = str(error)
            return
        finally:
            link.partners.discard(partner_id)
        if isinstance(answer, Refused) and answer.refusal.code is RefusalCode.PARTNER_MOVED:
            assert self.on_sealed is not None
            await self.on_sealed(seat, moves.decode_receipt(bytes.fromhex(str(answer.refusal.context["receipt"]))))
            return
        if isinstance(answer, Refused):
            seat.state, seat.why = "unavailable", answer.refusal.detail
            log.error("partner_unavailable", partner=partner_id, why=seat.why)
            seat.changed.set()
            self._confirm()
            return
        if not link.connection.is_open:
            seat.why = "its worker died as it took it over"
            return
        link.partners.add(partner_id)
        seat.link = link
        seat.epoch = int(orjson.loads(answer.body)["epoch"])
        if seat.is_quarantined:
            return
        seat.state, seat.why = "active", ""
        seat.changed.set()
        if seat.profile.version > profile.version:
            await self.configure(seat)

    def _not_taken_in_time(self, seat: Seat, link: Link) -> None:
        assert self.workforce is not None
        seat.why = "its worker did not take it over in time"
        if link.partners - {seat.partner_id}:
            # It may be its book alone: its mates keep their worker, and it tries elsewhere.
            seat.apart_until = time.monotonic() + limits.STRIKES_WINDOW_MS / 1_000
            self._run(self._request_release(seat.partner_id, link), f"release-{seat.partner_id}")
        else:
            self.workforce.bury(link, "activation_timeout")

    async def configure(self, seat: Seat) -> None:
        """Hand the profile to the partner's worker, and see whether it is the right one."""
        self._look.set()
        link = seat.link
        if link is None:
            return  # the next activation carries the profile
        body = msgpack.packb({"profile": messages.encode_profile(seat.profile)})
        try:
            await link.connection.request(Method.CONFIGURE, seat.partner_id, body, wire_limits.ACTIVATION_TIMEOUT_MS)
        except PeerError as error:
            log.warning("profile_not_taken", partner=seat.partner_id, error=str(error))

    async def _hosted(self, link: Link) -> list[str]:
        try:
            answer = messages.decode_answer(
                await link.connection.request(Method.WORKER_STATUS, "", b"", wire_limits.ACTIVATION_TIMEOUT_MS)
            )
        except PeerError:
            return []
        assert isinstance(answer, Answer)
        return list(orjson.loads(answer.body)["partners"])

    def _vacate(self, seat: Seat, link: Link) -> None:
        link.partners.discard(seat.partner_id)
        if seat.link is link:
            seat.link = None
            seat.epoch = None
            if not seat.is_quarantined:
                seat.state = "activating"
                seat.changed.clear()

    # Moves to other cells (departures.py, arrivals.py)

    def any_worker(self) -> Link | None:
        """Give a worker to read or write a book that is nobody's now: a spare, else one with few partners."""
        assert self.workforce is not None
        links = [link for link in self.workforce.links.values() if link.connection.is_open]
        return min(links, key=lambda link: (len(link.partners), link.name), default=None)

    def hold_place(self, profile: Profile) -> bool:
        """Hold a place for a partner that comes, in a worker that is ready; say whether there is one.

        It would wait for a new worker's start otherwise, once it has left the cell that served it.
        """
        assert self.workforce is not None
        if self.held_place(profile.partner_id) is not None:
            return True
        name = placement.choose_pool(self._hosts()) if profile.isolation == "pooled" else None
        link = self.workforce.take_spare() if name is None else self.workforce.links[name]
        if link is not None:
            self._hold_in(link, profile)
        return link is not None

    async def make_place(self, profile: Profile) -> bool:
        """Hold a place, and start a worker for it where the cell keeps none ready; say whether there is one."""
        assert self.workforce is not None
        if self.hold_place(profile) or self.workforce.keeps_spares:
            return self.held_place(profile.partner_id) is not None
        # Of several that need a new pool, one opens it; who gets a worker of its own holds up nobody.
        async with self._opening_pool if profile.isolation == "pooled" else contextlib.nullcontext():
            if self.hold_place(profile):
                return True
            try:
                self._hold_in(await self.workforce.take(), profile)
            except (ClusterError, PeerError, ProcessLookupError) as error:
                log.warning("no_place_made", partner=profile.partner_id, error=str(error))
                return False
        return True

    def _hold_in(self, link: Link, profile: Profile) -> None:
        link.is_pool = profile.isolation == "pooled"
        link.partners.add(profile.partner_id)
        self._held[profile.partner_id] = link

    def free_place(self, partner_id: str) -> None:
        """Hold no place for a partner any more that does not come."""
        link = self._held.pop(partner_id, None)
        if link is not None:
            self.leave(partner_id, link)

    def held_place(self, partner_id: str) -> Link | None:
        """Give the worker in which a place is held for a partner; None where it has none, or that worker is dead."""
        link = self._held.get(partner_id)
        return link if link is not None and link.connection.is_open and partner_id in link.partners else None

    def leave(self, partner_id: str, link: Link) -> None:
        """Take note that a partner is no longer of a worker, for it is gone."""
        link.partners.discard(partner_id)
        self._give_back_empty(link)

    async def let_go(self, partner_id: str, link: Link) -> None:
        """Have a worker stop a partner's actor whose book is another cell's."""
        await self._request_release(partner_id, link)

    async def serve_again(self, seat: Seat, link: Link) -> None:
        """Serve a partner again that was quiesced and did not leave, by the same worker where that lives."""
        self._vacate(seat, link)
        if link.connection.is_open:
            await self._assign_to(seat, link)
        if seat.link is None:
            await self._activate(seat, "not moved", None, None)
        self._look.set()

    async def wait_settled(self, seat: Seat, timeout_ms: int) -> bool:
        """Wait until a partner is served, or known not to be; say whether it is so."""
        until = time.monotonic() + timeout_ms / 1_000
        while time.monotonic() < until:
            if seat.is_ready or seat.receipt is not None or seat.is_quarantined:
                return True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until - time.monotonic()):
                    await seat.changed.wait()
            await asyncio.sleep(0.01)
        return False

    async def dismiss(self, seat: Seat) -> None:
        """Let go of a partner that is deleted: what waits for it is answered, and no worker has it any more."""
        while seat.activation is not None and not seat.activation.done():
            seat.activation.cancel()
            await asyncio.wait([seat.activation])
        del self._seats[seat.partner_id]
        link, seat.link = seat.link, None
        seat.is_handed_over = False
        seat.state, seat.why = "unavailable", "It is deleted."
        seat.changed.set()
        self.count_quarantined()
        if self.workforce is not None:
            for other in self.workforce.links.values():
                other.partners.discard(seat.partner_id)
        if link is not None:
            await self._let_go(seat, link)

    # Handover

    async def _keep_placed(self) -> None:
        """Hand over, one after the other, the partners whose worker is not the one that they should have.

        It looks at how things are, not at what was asked for: what a dead door left in the middle is gone on with.
        """
        while True:
            self._look.clear()
            for seat in list(self._seats.values()):
                try:
                    await self._place_rightly(seat)
                except (ClusterError, PeerError, ProcessLookupError) as error:
                    log.warning("partner_not_handed_over", partner=seat.partner_id, error=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.PLACEMENT_LOOK_INTERVAL_MS / 1_000):
                    await self._look.wait()

    async def _place_rightly(self, seat: Seat) -> None:
        link = seat.link
        if link is None or (seat.activation is not None and not seat.activation.done()):
            return
        if seat.is_quarantined:
            await self._move(seat, link, None)
            return
        if not placement.is_misplaced(_host(link), self._hosts(), pooled=seat.wants_pool):
            link.is_pool = seat.wants_pool if len(link.partners) == 1 else link.is_pool
            return
        target = await self._take_place(seat)
        if seat.link is not link or target is link or seat.is_quarantined:
            if seat.link is not target:  # it died meanwhile, and is seen to
                target.partners.discard(seat.partner_id)
                self._give_back_empty(target)
            return
        seat.activation = asyncio.create_task(self._move(seat, link, target), name=f"move-{seat.partner_id}")
        await asyncio.wait([seat.activation])

    async def _move(self, seat: Seat, link: Link, target: Link | None) -> None:
        """Hand a partner from its worker to another that holds a place for it; what comes meanwhile waits."""
        began = time.monotonic()
        seat.is_handed_over = True
        seat.changed.clear()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.HANDOVER_DRAIN_MS_MAX / 1_000):
                    while seat.under_way:
                        await seat.quiet.wait()
            if seat.link is link:
                # Told before: what is sent back by the stopping actor is nobody's fault.
                seat.handovers += 1
                self._vacate(seat, link)
                await self._let_go(seat, link)
            if target is not None and seat.link is None:
                await self._assign_to(seat, target)
        finally:
            seat.is_handed_over = False
            if seat.link is not None or seat.is_quarantined:
                seat.changed.set()
        if seat.link is None and not seat.is_quarantined:
            await self._activate(seat, "handover", None, None)
        door_metrics.HANDOVERS.inc()
        worker = None if seat.link is None else seat.link.name
        took_ms = int((time.monotonic() - began) * 1_000)
        log.info("partner_handed_over", partner=seat.partner_id, worker=worker, took_ms=took_ms)

    async def _let_go(self, seat: Seat, link: Link) -> None:
        assert self.workforce is not None
        if await self._request_release(seat.partner_id, link):
            self._give_back_empty(link)
        elif link.connection.is_open:
            # It may hold the book's lock for ever; its other partners are taken over, which costs them a delay.
            self.workforce.bury(link, "release_timeout")
            await self.workforce.wait_dead(link, _KILL_WAIT_MS)

    async def _request_release(self, partner_id: str, link: Link) -> bool:
        try:
            await link.connection.request(Method.RELEASE, partner_id, b"", limits.HANDOVER_RELEASE_MS_MAX)
        except PeerError as error:
            log.warning("partner_not_released", partner=partner_id, worker=link.name, error=str(error))
            return False
        return True

    def _run(self, work: "asyncio._CoroutineLike[None] | asyncio._CoroutineLike[bool]", name: str) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("ownership_failed", task=task.get_name(), exc_info=task.exception())


def _host(link: Link) -> Host:
    return Host(link.name, len(link.partners), link.is_pool)
