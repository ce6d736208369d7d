"""What is no frame, no member or no command at a door's and at a worker's socket: dropped or refused, and few lines."""

import asyncio
import contextlib
import random
import secrets
import struct
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import msgpack
import pytest

from cells.api import frames, limits, messages
from cells.api.connection import Connection, PeerError
from cells.api.messages import Method, RefusalCode, Refused
from cells.api.sealing import VERSION, ClientHandshake
from tests import sealed_stream
from tests.acceptance.bad_input.conftest import Site
from tests.eventually import eventually_true
from tests.sealed_stream import SealedStream, encode

BUDGET_MS: Final = 3_000
STRANGERS: Final = 1_000
Address = tuple[str, int]


def seeded() -> random.Random:
    """Chance that a failure can be repeated with."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # noqa: T201
    return random.Random(seed)


def announce(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


@contextlib.asynccontextmanager
async def opened(address: Address) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, list[Any]]]:
    """Connect and take the challenge."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        async with asyncio.timeout(10):
            challenge = await sealed_stream.read_frame(reader)
        yield reader, writer, challenge
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def proven(address: Address, role: str, key: bytes) -> AsyncIterator[SealedStream]:
    """A connection whose other end takes us for a member."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        async with asyncio.timeout(10):
            member = await sealed_stream.prove(reader, writer, role, key)
        yield member
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def proof(role: str, key: bytes, challenge: list[Any]) -> bytes:
    return encode(ClientHandshake(role, key).prove(challenge))


async def is_dropped(reader: asyncio.StreamReader) -> bool:
    """Wait until the other end has ended the connection, without a word."""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(limits.HANDSHAKE_TIMEOUT_MS / 1_000 + 8):
            return await reader.read() == b""
    return True


BROKEN: Final = (
    struct.pack(">I", limits.FRAME_BYTES_MAX + 1),
    b"\xff\xff\xff\xff",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    announce(b""),
    announce(b"\xc1"),
    announce(msgpack.packb({"kind": 2})),
    announce(msgpack.packb([])),
    announce(msgpack.packb(["2"])),
    announce(msgpack.packb([True])),
    announce(msgpack.packb([99, 1, 2, 3, 4, 5])),
    announce(b"\x91" * 200),
    announce(b"\xdd\xff\xff\xff\xff\x02"),
    announce(b"\xdf\xff\xff\xff\xff\x02"),
    announce(b"\xc6\xff\xff\xff\xff\x02"),
    announce(msgpack.packb([2, msgpack.Timestamp(1, 1)])),
    announce(msgpack.packb([4, 1, "create_payment", 8_000, "alpha", b""])),
    announce(msgpack.packb([5, 1, b""])),
    announce(msgpack.packb([2, None, None, None, None, None])),
    announce(msgpack.packb([2, VERSION, "router", b"short", b"p" * 32, b"x" * 32])),
    announce(msgpack.packb([2, VERSION, "router", b"n" * 32, b"p" * 32, "text"])),
)


@pytest.mark.parametrize("where", ["door", "worker"])
async def test_who_is_no_member_is_dropped(site: Site, where: str) -> None:
    chance = seeded()
    role = "router" if where == "door" else "door"
    with site.unharmed():
        address: Address = getattr(site, where)
        key = site.role_key(role)
        async with opened(address) as (_, _, another_challenge):
            attempts = {
                **{f"broken {data[:20]!r}": data for data in BROKEN},
                "a nonce of another connection": proof(role, key, another_challenge),
            }
            for name, data in attempts.items():
                async with opened(address) as (reader, writer, _):
                    writer.write(data)
                    assert await is_dropped(reader), name
        proofs = {
            "another key": (role, secrets.token_bytes(32)),
            "the key of another role": (role, site.role_key("control")),
            "a role that is not let in here": ("door" if where == "door" else "router", site.role_key("door")),
            "no role": ("", b""),
        }
        for name, (claimed, with_key) in proofs.items():
            async with opened(address) as (reader, writer, challenge):
                writer.write(proof(claimed, with_key, challenge))
                assert await is_dropped(reader), name
        for _ in range(100):
            async with opened(address) as (reader, writer, _):
                writer.write(chance.randbytes(chance.choice([3, 30, 300, 3_000])) + b"\xff" * 4)
                assert await is_dropped(reader)
        async with opened(address) as (reader, _, _):
            began = time.monotonic()
            assert await is_dropped(reader), "no answer to the challenge"
            assert time.monotonic() - began < limits.HANDSHAKE_TIMEOUT_MS / 1_000 + 5


@pytest.mark.parametrize("where", ["door", "worker"])
async def test_a_thousand_strangers_lock_nobody_out(site: Site, where: str) -> None:
    with site.unharmed():
        address: Address = getattr(site, where)
        role = "router" if where == "door" else "door"
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(STRANGERS):
                reader, writer = await asyncio.open_connection(*address)
                stack.callback(writer.close)
            # They have not been dropped for being late yet, and one that knows the secret is let in all the same.
            member = await Connection.open(*address, role, site.role_key(role))
            stack.callback(member.abort)
            assert await member.request(Method.GET_BALANCE, "alpha", command({}), BUDGET_MS)
            await asyncio.to_thread(site.pay)
            await reader.readexactly(4)
    if where == "door":
        lines = [line for line in site.log_lines("cell-0.door") if line["event"].startswith("client_")]
        assert lines, "somebody reads it in the log"
        # Bounded: so many a second of each kind.
        seconds = {line["timestamp"][:19] for line in lines}
        assert len(lines) <= limits.LOG_LINES_PER_SECOND_MAX * 3 * len(seconds)


async def test_a_router_gone_mad_is_dropped_at_what_is_no_request(site: Site) -> None:
    chance = seeded()
    key = site.role_key("router")
    request = [frames.REQUEST, 1, "get_balance", BUDGET_MS, "alpha", b""]
    wrong = [
        *({position: value} for position in range(1, 6) for value in (None, [], 1.5, ...)),
        {0: frames.ANSWER},
        {0: frames.PROOF},
        {0: frames.CHALLENGE},
        {0: -1},
        {2: "x" * 65},
        {4: "x" * 100_000},
        {5: bytes(limits.ROUTER_FRAME_BYTES_MAX)},
    ]
    with site.unharmed():
        for changes in wrong:
            fields = [changes.get(n, value) for n, value in enumerate(request)]
            async with proven(site.door, "router", key) as member:
                member.writer.write(member.seal(msgpack.packb([field for field in fields if field is not ...])))
                assert await is_dropped(member.reader), changes
        sealed = (b"", b"\xc1", b"\x91" * 100_000, b"\xdd\x00\x01\x86\xa0" + b"\xc0" * 100_000)
        for data in (*BROKEN, *sealed):
            async with proven(site.door, "router", key) as member:
                member.writer.write(member.seal(data) if data in sealed else data)
                assert await is_dropped(member.reader), data[:30]
        for _ in range(100):
            good = bytearray(frames.pack(request))
            for _ in range(chance.randint(1, 3)):
                good[chance.randrange(len(good))] = chance.randrange(256)
            async with proven(site.door, "router", key) as member:
                member.writer.write(member.seal(bytes(good)) + b"\xff" * 4)
                with contextlib.suppress(EOFError, ConnectionError):
                    kind, *_ = await member.receive()
                    assert kind == frames.ANSWER, "an answer or the end"


def command(arguments: Any, **changes: Any) -> bytes:
    """A command's body with fields changed."""
    fields = {"version": 1, "command_id": f"mad{secrets.token_hex(8)}", "request_id": "r", "arguments": arguments}
    return bytes(msgpack.packb(list((fields | {"key": None, "fingerprint": b""} | changes).values())))


def deep(depth: int) -> Any:
    nested: Any = 1
    for _ in range(depth):
        nested = [nested]
    return nested


MAD: Final = (
    None,
    True,
    -1,
    0,
    1.5,
    10**18,
    2**63,
    "",
    "x",
    "x" * 5_000,
    "\u0000",
    b"",
    b"\xff",
    [],
    [1],
    {},
    {"a": 1},
    deep(200),
)
ARGUMENTS: Final[dict[str, dict[str, Any]]] = {
    Method.CREATE_PAYMENT: {
        "amount": 1,
        "currency": "EUR",
        "payment_method": "tok_approve",
        "capture_method": "automatic",
        "reference": None,
        "description": None,
        "metadata": None,
    },
    Method.CAPTURE_PAYMENT: {"payment_id": "pay_1", "amount": None},
    Method.VOID_PAYMENT: {"payment_id": "pay_1"},
    Method.REFUND_PAYMENT: {"payment_id": "pay_1", "amount": None, "reason": None},
    Method.GET_PAYMENT: {"payment_id": "pay_1"},
    Method.GET_REFUND: {"refund_id": "re_1"},
    Method.GET_BALANCE: {},
    Method.LIST_PAYMENTS: {
        "limit": 5,
        "starting_after": None,
        "status": None,
        "reference": None,
        "created_from_ms": None,
        "created_before_ms": None,
    },
    Method.LIST_EVENTS: {"limit": 5, "starting_after": None, "type": None},
}


async def test_a_command_that_is_none_is_answered_and_takes_nobody_along(site: Site) -> None:
    """What may be said: that it is wrong (our fault, so an internal error), or an answer where it means something."""
    refusals = {RefusalCode.INTERNAL_ERROR, RefusalCode.PAYMENT_NOT_FOUND, RefusalCode.REFUND_NOT_FOUND}
    refusals |= {RefusalCode.CURSOR_INVALID, RefusalCode.CURRENCY_UNKNOWN, RefusalCode.AMOUNT_INVALID}
    bodies: list[tuple[str, bytes]] = []
    for method, arguments in ARGUMENTS.items():
        bodies += [
            (method, body) for body in (b"", b"\xc1", msgpack.packb(1), msgpack.packb([1]), command(None), command([]))
        ]
        bodies += [(method, command(arguments, version=version)) for version in (0, 2, "1", None)]
        bodies += [(method, command(arguments, command_id=value)) for value in ("", 5, "x" * 100, None)]
        bodies += [(method, command(arguments, fingerprint="text")), (method, command(arguments, key=5))]
        bodies.append((method, command(arguments | {"colour": "blue"})))
        for name in arguments:
            bodies.append((method, command({n: v for n, v in arguments.items() if n != name})))
            bodies += [(method, command(arguments | {name: value})) for value in MAD]
    with site.unharmed():
        connection = await Connection.open(*site.door, "router", site.role_key("router"))
        try:
            for method, body in bodies:
                answer = messages.decode_answer(await connection.request(method, "alpha", body, BUDGET_MS))
                assert not isinstance(answer, Refused) or answer.refusal.code in refusals, (method, body[:80], answer)
            for method in (
                Method.ONBOARD,
                Method.CONFIGURE,
                Method.CELL_STATUS,
                Method.RESOLVE_OPERATION,
                Method.RECORD_CHANGE,
                "no_method",
                "",
            ):
                answer = messages.decode_answer(await connection.request(method, "alpha", b"\xc1", BUDGET_MS))
                assert isinstance(answer, Refused), method
            for partner in ("", "nobody", "../../etc", "x" * 64, "\u0000"):
                answer = messages.decode_answer(
                    await connection.request(Method.GET_BALANCE, partner, command({}), BUDGET_MS)
                )
                assert isinstance(answer, Refused)
                assert answer.refusal.code is RefusalCode.PARTNER_MOVED, partner
            for budget_ms in (-1, 0, 2**63):
                with contextlib.suppress(PeerError):
                    async with asyncio.timeout(5):
                        await connection.request(Method.GET_BALANCE, "alpha", command({}), budget_ms)
        finally:
            connection.abort()
        control = await Connection.open(*site.door, "control", site.role_key("control"))
        try:
            for body in (b"", b"\xc1", msgpack.packb(5), msgpack.packb({}), msgpack.packb({"profile": MAD[0]})):
                for method in (Method.ONBOARD, Method.CONFIGURE):
                    answer = messages.decode_answer(await control.request(method, "alpha", body, BUDGET_MS))
                    assert isinstance(answer, Refused), body
            for number in (0, -1, 10**12, True):
                profile = {"partner_id": "alpha", "version": 9_000, "rate_per_second": number}
                body = msgpack.packb({"profile": profile})
                answer = messages.decode_answer(await control.request(Method.CONFIGURE, "alpha", body, BUDGET_MS))
                assert isinstance(answer, Refused), number
            for name in ("../beta", "a/b", "", "A", "x" * 41, "a\n"):
                body = msgpack.packb({"profile": {"partner_id": name, "version": 1}})
                answer = messages.decode_answer(await control.request(Method.ONBOARD, name, body, BUDGET_MS))
                assert isinstance(answer, Refused), name
        finally:
            control.abort()


@pytest.mark.timeout(120)
async def test_a_flood_of_requests_is_answered_or_dropped(site: Site) -> None:
    """More at once than a connection may have, with and without reading the answers. Such a peer has the cell's secret:
    it may cost the door's time while it lasts, fills beta's share, and leaves nothing behind.
    """
    body = command({"limit": 100})
    frame = frames.pack([frames.REQUEST, 1, Method.LIST_EVENTS, BUDGET_MS, "beta", body])
    giant = frames.pack([frames.REQUEST, 1, Method.GET_BALANCE, BUDGET_MS, "beta", bytes(120_000)])
    with site.unharmed():
        for payload, count, reads in ((frame, 25_000, True), (frame, 25_000, False), (giant, 400, False)):
            async with proven(site.door, "router", site.role_key("router")) as member:
                reading = asyncio.create_task(member.reader.read()) if reads else None
                with contextlib.suppress(ConnectionError, TimeoutError):
                    async with asyncio.timeout(15):
                        for _ in range(count // 100):
                            member.writer.write(b"".join(member.seal(payload) for _ in range(100)))
                            await member.writer.drain()
                if reading is not None:
                    reading.cancel()
        # What was taken of it is served out first; then beta has its share back, as the tests after this one expect.
        await eventually_true(lambda: asyncio.to_thread(site.is_served, "beta"), within_s=20)
