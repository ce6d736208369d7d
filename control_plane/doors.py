"""The way to the cells' doors, in the role "control": profiles out, status and open questions back.

What a door answers is read into types here; no decision is made here.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import msgpack
import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from cells.api.connection import Peer, PeerError, PeerUnavailableError
from cells.api.frames import role_key
from cells.api.ids import new_ulid
from cells.api.messages import (
    Answer,
    Command,
    MessageError,
    Method,
    Profile,
    Refused,
    decode_answer,
    encode_command,
    encode_profile,
)
from control_plane import limits
from control_plane.data_folder import DataFolder, read_secret
from control_plane.errors import DoorError, RefusedError
from control_plane.notices import Notice
from control_plane.registry_records import Cell

ROLE: Final = "control"
_T = TypeVar("_T", bound=BaseModel)


class _Read(BaseModel):
    # Doors of a newer version may say more.
    model_config = ConfigDict(extra="ignore", frozen=True)


class WorkerStatus(_Read):
    """One worker as its door sees it."""

    worker: str
    pid: int | None = None
    endpoint: str | None = None
    partners: list[str] = []
    spare: bool = False
    pool: bool = False
    healthy: bool = False
    heartbeat_age_ms: int | None = None


class Escalation(_Read):
    """What a door decided about a partner of which workers died, until an operator says otherwise."""

    kind: str
    since_ms: int
    why: str


class PartnerStatus(_Read):
    """One partner as its door sees it. State: active, activating, unavailable, quarantined."""

    partner: str
    profile_version: int = 0
    status: str = ""
    state: str = ""
    why: str = ""
    breaker: str = ""
    breakers: dict[str, str] = {}
    epoch: int | None = None
    worker: str | None = None
    in_flight: int = 0
    commands: int = 0
    unknowns: int = 0
    takeovers: int = 0
    isolation: str = ""
    escalation: Escalation | None = None


class CellStatus(_Read):
    """One cell as its door tells it."""

    cell: str
    door_epoch: int | None = None
    started_at_ms: int | None = None
    workers: list[WorkerStatus] = []
    partners: list[PartnerStatus] = []


class UnknownOperation(_Read):
    """One operation whose outcome is not known."""

    operation_id: str
    payment_id: str
    kind: str
    amount: int
    currency: str
    age_ms: int = 0
    attempts: int = 0
    needs_person: bool = False
    acquirer: str = ""


class OpenPayments(_Read):
    """What keeps a partner from being deleted, as its actor counts it under the profile of that version."""

    profile_version: int
    under_way: int
    unknown: int
    held: int
    disputed: int

    @property
    def any(self) -> bool:
        """Whether there is anything."""
        return bool(self.under_way or self.held or self.disputed)

    def described(self) -> str:
        """Say it in words."""
        return (
            f"{self.under_way} operations under way ({self.unknown} of unknown outcome), {self.held} payments that are "
            f"authorized and not captured or wait for a customer, {self.disputed} with an open dispute"
        )


class _UnknownList(_Read):
    data: list[UnknownOperation]


class SettlementFinding(_Read):
    """One row of a settlement file that is not matched, as the partner's actor sees it. Amounts in minor units."""

    key: str
    verdict: Literal["differing", "extra"]
    reasons: list[str]
    posted: bool
    payment_id: str | None = None
    state: str | None = None
    owed: int | None = None
    fee_agreed: int | None = None


class SettlementBatch(_Read):
    """What became of some rows. `repeated`: how many of them were posted before."""

    matched: int
    repeated: int
    findings: list[SettlementFinding]


class UnreconciledOperation(_Read):
    """One money movement that stands in no settlement file."""

    operation_id: str
    payment_id: str
    kind: str
    amount: int
    currency: str
    succeeded_at: str
    reference: str | None = None


class UnreconciledPage(_Read):
    """Some of them; `next` is where to go on, None at the end."""

    operations: list[UnreconciledOperation]
    next: int | None


@dataclass(frozen=True, slots=True)
class CellAddress:
    """Where a cell's door listens."""

    name: str
    host: str
    port: int


class Doors:
    """One connection to each cell's door, kept up in the background."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._peers: dict[str, Peer] = {}

    @classmethod
    async def connect(cls, addresses: Iterable[CellAddress], folder: DataFolder) -> "Doors":
        """Begin to connect to every door."""
        doors = cls(folder)
        await doors.use(addresses)
        return doors

    async def use(self, addresses: Iterable[CellAddress]) -> None:
        """Connect to these doors and no others from now on."""
        wanted = {address.name: address for address in addresses}
        for name, peer in list(self._peers.items()):
            address = wanted.get(name)
            if address is None or (address.host, address.port) != (peer.host, peer.port):
                await self._peers.pop(name).aclose()
        for name, address in wanted.items():
            if name not in self._peers:
                key = role_key(read_secret(self._folder.cell_secret_file(name)), ROLE)
                peer = self._peers[name] = Peer(address.host, address.port, ROLE, key)
                await peer.start()

    async def aclose(self) -> None:
        """End all connections."""
        for peer in self._peers.values():
            await peer.aclose()

    async def wait_connected(self) -> None:
        """Give all doors a moment to be connected; those that are not then answer with DoorError."""
        await asyncio.gather(*(peer.wait_connected(limits.CELL_STATUS_TIMEOUT_MS) for peer in self._peers.values()))

    async def cell_status(self, cell: str) -> CellStatus:
        """Ask a door for everything it knows. Raises DoorError."""
        answer = await self._ask(cell, Method.CELL_STATUS, "", msgpack.packb({}), limits.CELL_STATUS_TIMEOUT_MS)
        return _read(CellStatus, cell, _unrefused(cell, answer))

    async def onboard(self, cell: str, profile: Profile) -> None:
        """Make the partner's book where there is none yet, and serve it. Raises DoorError, RefusedError."""
        body = msgpack.packb({"profile": encode_profile(profile)})
        await self._wait(cell)
        _unrefused(cell, await self._ask(cell, Method.ONBOARD, profile.partner_id, body, limits.ONBOARD_TIMEOUT_MS))

    async def configure(self, cell: str, profile: Profile) -> None:
        """Hand a profile to the door; never makes a book. Raises DoorError, RefusedError."""
        body = msgpack.packb({"profile": encode_profile(profile)})
        _unrefused(cell, await self._ask(cell, Method.CONFIGURE, profile.partner_id, body, limits.CONFIGURE_TIMEOUT_MS))

    async def release(self, cell: str, partner_id: str, *, to_pool: bool) -> None:
        """Take back what its workers' deaths led to for a partner. Raises DoorError, RefusedError."""
        body = msgpack.packb({"to_pool": to_pool})
        await self._wait(cell)
        answer = await self._ask(cell, Method.RELEASE_PARTNER, partner_id, body, limits.CONFIGURE_TIMEOUT_MS)
        _unrefused(cell, answer)

    async def list_unknown(self, cell: str, partner_id: str) -> list[UnknownOperation]:
        """Ask for a partner's operations without a known outcome. Raises DoorError, RefusedError."""
        command = Command(command_id=new_ulid(), request_id=f"req_{new_ulid()}", arguments={})
        body = encode_command(command)
        await self._wait(cell)
        answer = await self._ask(cell, Method.LIST_UNKNOWN, partner_id, body, limits.LIST_UNKNOWN_TIMEOUT_MS)
        return _read(_UnknownList, cell, _unrefused(cell, answer)).data

    async def count_open(self, cell: str, partner_id: str) -> OpenPayments:
        """Ask a partner's actor for what is open. Raises DoorError, RefusedError."""
        return await self._ask_partner(OpenPayments, cell, partner_id, Method.COUNT_OPEN, {}, new_ulid())

    async def erase_partner(self, cell: str, partner_id: str, profile_version: int) -> None:
        """Erase a partner's book, once and for all; done again, it is done already. Raises DoorError, RefusedError."""
        body = msgpack.packb({"profile_version": profile_version})
        await self._wait(cell)
        _unrefused(cell, await self._ask(cell, Method.ERASE_PARTNER, partner_id, body, limits.ERASE_TIMEOUT_MS))

    async def resolve_operation(
        self, cell: str, partner_id: str, operation_id: str, *, outcome: str, operator: str, note: str, command_id: str
    ) -> dict[str, Any]:
        """Let a person decide what an operation became. Raises DoorError, RefusedError.

        The same `command_id` again gets the answer of the first time, for as long as answers are kept.
        """
        arguments = {"operation_id": operation_id, "outcome": outcome, "operator": operator, "note": note}
        command = Command(command_id=command_id, request_id=f"req_{new_ulid()}", arguments=arguments)
        body = encode_command(command)
        await self._wait(cell)
        answer = await self._ask(cell, Method.RESOLVE_OPERATION, partner_id, body, limits.COMMAND_TIMEOUT_MS)
        fields = orjson.loads(_unrefused(cell, answer).body)
        return fields if isinstance(fields, dict) else {}

    async def record_change(self, cell: str, notice: Notice) -> None:
        """Write into a partner's journal what an operator changed, once. Raises DoorError, RefusedError."""
        arguments = {
            "change_id": notice.change_id,
            "what": notice.what,
            "at_ms": notice.at_ms,
            "detail": notice.detail,
        }
        await self._ask_partner(_Read, cell, notice.partner_id, Method.RECORD_CHANGE, arguments, new_ulid())

    async def reconcile(
        self, cell: str, partner_id: str, command_id: str, arguments: dict[str, Any], *, post: bool
    ) -> SettlementBatch:
        """Have rows of a settlement file compared, and posted where `post`. Raises DoorError, RefusedError."""
        method = Method.RECONCILE_OPERATIONS if post else Method.COMPARE_SETTLEMENT
        return await self._ask_partner(SettlementBatch, cell, partner_id, method, arguments, command_id)

    async def list_unreconciled(
        self, cell: str, partner_id: str, span_ms: tuple[int, int], after: int | None, acquirer: str
    ) -> UnreconciledPage:
        """Ask for money movements at an acquirer that stand in no settlement file. Raises DoorError, RefusedError."""
        from_ms, before_ms = span_ms
        arguments = {"from_ms": from_ms, "before_ms": before_ms, "after": after, "acquirer": acquirer}
        return await self._ask_partner(
            UnreconciledPage, cell, partner_id, Method.LIST_UNRECONCILED, arguments, new_ulid()
        )

    async def _ask_partner(
        self,
        kind: type[_T],
        cell: str,
        partner_id: str,
        method: str,
        arguments: dict[str, Any],
        command_id: str,
    ) -> _T:
        body = encode_command(Command(command_id=command_id, request_id=f"req_{new_ulid()}", arguments=arguments))
        await self._wait(cell)
        answer = await self._ask(cell, method, partner_id, body, limits.COMMAND_TIMEOUT_MS)
        return _read(kind, cell, _unrefused(cell, answer))

    async def ask(self, cell: str, method: str, partner_id: str, body: bytes, budget_ms: int) -> Answer | Refused:
        """Ask a door anything; a refusal is an answer. Raises DoorError."""
        await self._wait(cell)
        return await self._ask(cell, method, partner_id, body, budget_ms)

    async def _wait(self, cell: str) -> None:
        """Give a door that is just starting a moment."""
        await self._peer(cell).wait_connected(limits.DOOR_CONNECT_TIMEOUT_MS)

    def _peer(self, cell: str) -> Peer:
        peer = self._peers.get(cell)
        if peer is None:
            raise DoorError(f"there is no cell {cell!r} (any more)", where=cell, hint="see them: bulkhead cell list")
        return peer

    async def _ask(self, cell: str, method: str, partner_id: str, body: bytes, budget_ms: int) -> Answer | Refused:
        peer = self._peer(cell)
        where = f"{cell}'s door at {peer.host}:{peer.port}"
        try:
            return decode_answer(await peer.request(method, partner_id, body, budget_ms))
        except PeerUnavailableError as error:
            raise DoorError(
                f"{cell}'s door can't be reached: {error}", where=where, hint="see its state: bulkhead status"
            ) from error
        except (PeerError, MessageError) as error:
            raise DoorError(
                f"{cell}'s door gave no answer to {method}: {error}. It may have done it",
                where=where,
                hint="see its state with `bulkhead status` and its log, then ask again: nothing is done twice",
            ) from error


def cell_addresses(cells: Iterable[Cell]) -> list[CellAddress]:
    """Give where the door of each cell that is to run listens."""
    return [CellAddress(cell.name, cell.host, cell.door_port) for cell in cells if cell.is_running]


def _unrefused(cell: str, answer: Answer | Refused) -> Answer:
    if isinstance(answer, Refused):
        refusal = answer.refusal
        error = RefusedError(f"{refusal.detail} ({refusal.code.value})", where=f"{cell}'s door")
        error.code = refusal.code.value
        raise error
    if answer.status >= 400:
        raise DoorError(f"{cell}'s door answered with status {answer.status}", where=f"{cell}'s door")
    return answer


def _read(kind: type[_T], cell: str, answer: Answer) -> _T:
    try:
        return kind.model_validate_json(answer.body)
    except ValidationError as error:
        raise DoorError(
            f"{cell}'s door answered what can't be read: {error.errors()[0]['msg']}",
            where=f"{cell}'s door",
            hint="run the same version of Bulkhead everywhere",
        ) from error
