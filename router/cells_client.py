"""The way to the cells: one connection each, and a command sent again under its own id when a connection breaks."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

import msgpack
import structlog

from cells.api import limits as wire
from cells.api.connection import Peer, PeerError, PeerLostError, PeerTimeoutError, PeerUnavailableError
from cells.api.messages import (
    UNTOUCHED,
    Answer,
    Command,
    MessageError,
    Method,
    Refusal,
    RefusalCode,
    Refused,
    decode_answer,
    encode_command,
)
from router import limits
from router.directory import Cell
from router.moved import Following, MovedPartners
from router.settings import SettingsError

log = structlog.get_logger()

ROLE: Final = "router"
# What a tombstone tells routers, and partners never see.
_PROOF: Final = frozenset({"to", "epoch", "receipt", "tried"})
_DEADLINE_MS: Final = limits.actor_limits.COMMAND_DEADLINE_MS


@dataclass(slots=True)
class _Link:
    peer: Peer
    cell: Cell
    absent_since: float | None  # monotonic; None: connected


class CellsClient:
    """One Peer per cell of the directory. `key_of` gives a cell's key and raises SettingsError where there is none.

    `wait_directory` returns when the directory of that version (0: any newer one) is in use, or after so many ms.
    """

    def __init__(
        self,
        key_of: Callable[[str], bytes],
        wait_directory: Callable[[int, int], Awaitable[None]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key_of = key_of
        self._wait_directory = wait_directory
        self._now = now
        self._links: dict[str, _Link] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._moved = MovedPartners()
        self._in_vain: dict[str, float] = {}  # cells that no directory named in time: until then nobody waits again
        self.resent = 0

    async def use(self, cells: Iterable[Cell]) -> None:
        """Connect to these cells. A connection that is no longer named serves out what it carries."""
        self._in_vain.clear()
        wanted = {cell.name: cell for cell in cells}
        for name, link in list(self._links.items()):
            cell = wanted.get(name)
            if cell is None or (cell.host, cell.port) != (link.cell.host, link.cell.port):
                del self._links[name]
                self._retire(link)
        for name, cell in wanted.items():
            if name in self._links:
                continue
            try:
                key = self._key_of(name)
            except SettingsError as error:
                log.error("cell_key_missing", cell=name, error=str(error))  # noqa: TRY400 - the trace tells no more
                continue
            peer = Peer(cell.host, cell.port, ROLE, key, functools.partial(self._changed, cell))
            self._links[name] = _Link(peer, cell, self._now())
            await peer.start()

    def follow_directory(self, home_of: Callable[[str], Cell | None]) -> None:
        """Forget of partners that moved what the directory says otherwise."""

        def name_of(partner_id: str) -> str | None:
            cell = home_of(partner_id)
            return None if cell is None else cell.name

        self._moved.follow_directory(name_of)

    def connected(self) -> dict[str, bool]:
        """Say of each cell whether it can be asked now."""
        return {name: link.peer.connected for name, link in self._links.items()}

    async def ask(self, cell: str, partner_id: str, method: str, command: Command, *, writes: bool) -> Answer | Refused:
        """Send the command and give what the cell says; never raises for what a cell or connection does.

        `cell` is where the directory says that the partner is. A cell that it left tells where it went, with proof; the
        same command then goes there, and so do all until a newer directory says so, too. Where that cell is not known
        here, the directory is behind: the newer one is waited for first.
        """
        deadline = self._now() + _DEADLINE_MS / 1000
        at = self._moved.whereabouts(partner_id, cell)
        if at != cell:
            await self._is_known(at, partner_id, deadline)
        answer = await self._ask_cell(at, partner_id, method, command, deadline, writes=writes)
        is_tried = False
        for _ in range(limits.MOVES_FOLLOWED_MAX):
            if not isinstance(answer, Refused) or answer.refusal.code is not RefusalCode.PARTNER_MOVED:
                break
            is_tried = is_tried or bool(answer.refusal.context.get("tried"))
            following = self._moved.follow(partner_id, cell, at, answer.refusal.context)
            if following is None or not await self._is_known(following.cell, partner_id, deadline):
                break
            if following.is_to_be_opened:
                await self._open(partner_id, following, deadline)
            at = following.cell
            answer = await self._ask_cell(at, partner_id, method, command, deadline, writes=writes)
        if not isinstance(answer, Refused):
            return answer
        if answer.refusal.code in UNTOUCHED | {RefusalCode.PARTNER_MOVED}:
            log.warning(
                "moved_partner_not_served",
                partner=partner_id,
                cell=at,
                command_id=command.command_id,
                code=answer.refusal.code.value,
                detail=answer.refusal.detail,
                tried=is_tried,
            )
        if is_tried and writes and answer.refusal.code in UNTOUCHED | {RefusalCode.PARTNER_MOVED}:
            return _unanswered(sent=True, writes=True)
        return _without_proof(answer)

    async def _is_known(self, cell: str, partner_id: str, deadline: float) -> bool:
        """Say whether a cell to which a partner moved is known here, once the directory is there that names it.

        Where it did not come in time, the next requests are refused at once, so that not all of them wait for it.
        """
        if cell not in self._links and self._now() >= self._in_vain.get(cell, 0.0):
            left_ms = int((deadline - self._now()) * 1000)
            version = self._moved.version_needed(partner_id)
            await self._wait_directory(version, max(min(left_ms, limits.DIRECTORY_WAIT_MS_MAX), 0))
            if cell not in self._links and left_ms >= limits.DIRECTORY_WAIT_MS_MAX:
                self._in_vain[cell] = self._now() + limits.DIRECTORY_WAIT_MS_MAX / 1000
        return cell in self._links

    async def _open(self, partner_id: str, following: Following, deadline: float) -> None:
        """Bring the proof of the seal to the partner's new cell, which may wait for it."""
        link = self._links[following.cell]
        body = msgpack.packb({"receipt": following.receipt})
        try:
            await link.peer.request(Method.OPEN_ARRIVAL, partner_id, body, max(int((deadline - self._now()) * 1000), 0))
        except PeerError as error:
            log.warning("arrival_not_opened", partner=partner_id, cell=following.cell, error=str(error))

    async def _ask_cell(
        self, cell: str, partner_id: str, method: str, command: Command, deadline: float, *, writes: bool
    ) -> Answer | Refused:
        """Ask one cell.

        A command that was sent and not answered is sent again under the same command id, at most COMMAND_SENDS_MAX
        times in all, until its deadline and a little longer: its answer may have been written since. After that the
        outcome of a write is unknown (DESIGN 4.1).
        """
        body = encode_command(command)
        sends = 0
        while sends < wire.COMMAND_SENDS_MAX:
            left_ms = int((deadline - self._now()) * 1000) + (limits.ASK_AGAIN_MS if sends else 0)
            link = self._links.get(cell)
            if link is None or left_ms <= 0 or self._is_long_gone(link):
                break
            if not link.peer.connected:
                if not await link.peer.wait_connected(min(left_ms, limits.CELL_WAIT_MS)):
                    await asyncio.sleep(limits.CELL_WAIT_PAUSE_MS / 1000)
                continue
            budget_ms = max(left_ms - limits.ASK_AGAIN_MS, limits.ASK_AGAIN_BUDGET_MS) if sends else left_ms
            sends += 1
            if sends > 1:
                self.resent += 1
            try:
                answer = decode_answer(await link.peer.request(method, partner_id, body, budget_ms))
                if sends > 1 and isinstance(answer, Refused) and answer.refusal.code in UNTOUCHED:
                    break  # nothing was done this time; the time before, nobody knows
                return answer  # noqa: TRY300 - all that may fail is in the line above
            except PeerLostError:
                continue
            except PeerUnavailableError:
                # Connected and yet not sent: the connection carries all it may. Waiting would make it worse.
                sends -= 1
                break
            except PeerTimeoutError:
                break
            except MessageError as error:
                log.error(  # noqa: TRY400 - the trace tells no more
                    "cell_answer_unreadable", cell=cell, error=str(error), command_id=command.command_id
                )
                break
        return _unanswered(sent=sends > 0, writes=writes)

    async def aclose(self) -> None:
        """End all connections."""
        for task in self._closing:
            task.cancel()
        links, self._links = list(self._links.values()), {}
        await asyncio.gather(*self._closing, *(link.peer.aclose() for link in links), return_exceptions=True)

    def _is_long_gone(self, link: _Link) -> bool:
        return (
            link.absent_since is not None
            and not link.peer.connected
            and (self._now() - link.absent_since) * 1000 > limits.CELL_ABSENT_MS_MAX
        )

    def _changed(self, cell: Cell, up: bool) -> None:
        link = self._links.get(cell.name)
        if link is None or link.cell is not cell:
            return  # a connection that is being retired
        link.absent_since = None if up else self._now()
        log.info("cell_connected" if up else "cell_lost", cell=cell.name, host=cell.host, port=cell.port)

    def _retire(self, link: _Link) -> None:
        async def close_later() -> None:
            try:
                await asyncio.sleep(_DEADLINE_MS / 1000)  # nothing that it carries is older
            finally:
                await link.peer.aclose()

        task = asyncio.create_task(close_later())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _without_proof(answer: Refused) -> Refused:
    """Leave out what is between routers and cells: whoever holds the receipt could open a book."""
    context = {name: value for name, value in answer.refusal.context.items() if name not in _PROOF}
    return replace(answer, refusal=replace(answer.refusal, context=context))


def _unanswered(*, sent: bool, writes: bool) -> Refused:
    if writes and sent:
        code = RefusalCode.OUTCOME_UNKNOWN
        detail = (
            "The request was sent to the partner's cell and no answer came. It may have been carried out: "
            "send it again with the same Idempotency-Key, or look for it with GET /v1/payments."
        )
    else:
        code = RefusalCode.PARTNER_UNAVAILABLE
        detail = "The partner's cell gives no answer now. Nothing was changed."
    return Refused(Refusal(code, detail, retry_after_ms=limits.RETRY_AFTER_DEFAULT_MS))
