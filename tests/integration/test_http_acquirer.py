"""How the acquirer's port over HTTP names each way of not getting an answer, against raw sockets that misbehave."""

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from actors.acquirer import Approved, Instruction
from actors.errors import AcquirerUnknownError
from cells.api import limits
from cells.http_acquirer import HttpAcquirer
from cells.http_client import HttpClient

PATIENCE_MS = 5_000
SHORT_MS = 200
OPERATION = Instruction("op_1", "p", "purchase", 100, "EUR", "tok_approve", None)
APPROVED = b'{"key":"op_1","result":"approved","reference":"r","code":null,"retryable":false,"expires_at_ms":null}'

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawServer:
    """Reads a request, then does as it is told. `gone` is set when a client closed its connection."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self.connections = 0
        self.requests: list[bytes] = []
        self.asked = asyncio.Event()
        self.gone = asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._serving.add(asyncio.ensure_future(self._serve(reader, writer)))

    async def aclose(self) -> None:
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        finally:
            self.gone.set()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except asyncio.IncompleteReadError:
                    return
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                self.asked.set()
                await self._behaviour(reader, writer)


@contextlib.asynccontextmanager
async def serving(behaviour: Behaviour) -> AsyncIterator[tuple[RawServer, HttpAcquirer]]:
    raw = RawServer(behaviour)
    server = await asyncio.start_server(raw.accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with HttpClient() as client:
        yield raw, HttpAcquirer(client, f"http://{host}:{port}", "p")
    server.close()
    await raw.aclose()
    await server.wait_closed()


def sends(*pieces: bytes, then_close: bool = False) -> Behaviour:
    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.writelines(pieces)
        await writer.drain()
        if then_close:
            writer.close()

    return behaviour


def answers(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def never_ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"400\r\n" + b" " * 0x400 + b"\r\n")
        await writer.drain()


async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_one_connection_carries_many_calls() -> None:
    async with serving(sends(answers(APPROVED))) as (raw, acquirer):
        assert [await acquirer.perform(OPERATION, PATIENCE_MS) for _ in range(5)] == [Approved("r")] * 5
        assert await acquirer.close_key(OPERATION, PATIENCE_MS) == Approved("r")

        assert raw.connections == 1
        assert raw.requests[0].startswith(b"POST /operations HTTP/1.1\r\n")
        assert b"\r\nIdempotency-Key: op_1\r\n" in raw.requests[0]
        assert raw.requests[5].startswith(b"POST /operations/op_1/close HTTP/1.1\r\n")
        assert raw.requests[5].split(b"\r\n\r\n")[1] == raw.requests[0].split(b"\r\n\r\n")[1]


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (sends(b"\x16\x03\x01 garbage\r\n\r\n"), "malformed"),
        (sends(b"HTTP/1.1 OK\r\n\r\n"), "malformed"),
        (sends(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"), "malformed"),
        (sends(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n"), "malformed"),
        (sends(answers(b"")), "malformed"),
        (sends(answers(b"<html>")), "malformed"),
        (sends(answers(APPROVED.replace(b"op_1", b"op_2"))), "malformed"),
        (sends(answers(APPROVED, "201 Created")), "malformed"),
        (sends(b"HTTP/1.1 204 No Content\r\n\r\n"), "malformed"),
        (sends(b"HTTP/1.1 302 Found\r\nLocation: /operations\r\nContent-Length: 0\r\n\r\n"), "malformed"),
        (sends(answers(APPROVED, "400 Bad Request")), "malformed"),
        (sends(answers(APPROVED, "404 Not Found")), "malformed"),
        (sends(answers(APPROVED, "422 Unprocessable")), "malformed"),
        (sends(answers(APPROVED, "429 Too Many Requests")), "malformed"),
        (sends(answers(APPROVED, "500 Internal Server Error")), "server_error"),
        (sends(answers(APPROVED, "503 Service Unavailable")), "server_error"),
        (sends(answers(APPROVED + b" " * limits.ACQUIRER_ANSWER_BYTES_MAX)), "malformed"),
        (never_ends, "malformed"),
        (sends(then_close=True), "lost"),
        (resets, "lost"),
        (sends(b"HTTP/1.1 200 OK\r\nContent-Le", then_close=True), "lost"),
        (sends(answers(APPROVED)[:-1], then_close=True), "lost"),
        (says_nothing, "timeout"),
        (drips, "timeout"),
    ],
)
async def test_whatever_is_no_outcome_is_unknown(behaviour: Behaviour, kind: str) -> None:
    async with serving(behaviour) as (raw, acquirer):
        began = time.monotonic()
        with pytest.raises(AcquirerUnknownError) as caught:
            await acquirer.perform(OPERATION, SHORT_MS if kind == "timeout" else PATIENCE_MS)

        assert caught.value.kind == kind
        assert time.monotonic() - began < 2
        assert len(raw.requests) == 1  # nothing is sent again by itself


async def test_no_one_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    async with HttpClient() as client:
        with pytest.raises(AcquirerUnknownError) as caught:
            await HttpAcquirer(client, f"http://127.0.0.1:{port}", "p").perform(OPERATION, PATIENCE_MS)

    assert caught.value.kind == "refused"


@pytest.mark.parametrize("behaviour", [says_nothing, drips])
@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_a_call_that_ends_early_closes_its_connection(behaviour: Behaviour, how: str) -> None:
    async with serving(behaviour) as (raw, acquirer):
        call = asyncio.ensure_future(acquirer.perform(OPERATION, SHORT_MS if how == "timeout" else PATIENCE_MS))
        await raw.asked.wait()
        if how == "cancel":
            await asyncio.sleep(0.05)  # into the answer's body, where it drips
            call.cancel()
        with pytest.raises((AcquirerUnknownError, asyncio.CancelledError)):
            await call

        await asyncio.wait_for(raw.gone.wait(), PATIENCE_MS / 1000)


async def test_a_connection_that_went_stale_is_not_a_silent_second_send() -> None:
    closing = asyncio.Event()

    async def answers_then_closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if closing.is_set():
            writer.close()
            return
        writer.write(answers(APPROVED))
        closing.set()

    async with serving(answers_then_closes) as (raw, acquirer):
        await acquirer.perform(OPERATION, PATIENCE_MS)
        with pytest.raises(AcquirerUnknownError, match="lost"):
            await acquirer.perform(OPERATION, PATIENCE_MS)

        assert len(raw.requests) == 2


async def test_a_partners_connection_carries_its_operations_only() -> None:
    async with HttpClient() as client:
        with pytest.raises(AssertionError):
            await HttpAcquirer(client, "http://127.0.0.1:1", "someone_else").perform(OPERATION, PATIENCE_MS)


@pytest.mark.parametrize("address", ["", "127.0.0.1:80", "ftp://127.0.0.1", "http://"])
async def test_an_address_must_be_one(address: str) -> None:
    async with HttpClient() as client:
        with pytest.raises(ValueError, match=r"acquirer|URL|host"):
            HttpAcquirer(client, address, "p")


async def test_aclose_leaves_the_client_to_the_others() -> None:
    async with serving(sends(answers(APPROVED))) as (raw, acquirer):
        await acquirer.perform(OPERATION, PATIENCE_MS)
        await acquirer.aclose()
        await acquirer.aclose()
        await acquirer.perform(OPERATION, PATIENCE_MS)
        assert raw.connections == 1


async def test_an_interim_answer_is_not_the_answer() -> None:
    async with serving(sends(b"HTTP/1.1 100 Continue\r\n\r\n", answers(APPROVED))) as (raw, acquirer):
        assert [await acquirer.perform(OPERATION, PATIENCE_MS) for _ in range(2)] == [Approved("r")] * 2
        assert raw.connections == 1


async def test_a_connection_that_is_to_close_is_not_used_again() -> None:
    closing = answers(APPROVED).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with serving(sends(closing)) as (raw, acquirer):
        assert [await acquirer.perform(OPERATION, PATIENCE_MS) for _ in range(2)] == [Approved("r")] * 2
        assert raw.connections == 2


async def test_what_nobody_asked_for_ends_its_connection() -> None:
    """A second answer behind the first must never be taken for the answer to the next operation."""
    async with serving(sends(answers(APPROVED), answers(APPROVED.replace(b'"r"', b'"s"')))) as (raw, acquirer):
        assert await acquirer.perform(OPERATION, PATIENCE_MS) == Approved("r")
        await asyncio.sleep(0.05)
        with contextlib.suppress(AcquirerUnknownError):
            assert await acquirer.perform(OPERATION, PATIENCE_MS) == Approved("r")
        assert raw.connections == 2


async def test_calls_at_once_have_a_connection_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ACQUIRER_CONNECTIONS_MAX", 3)
    waiting, all_there = 0, asyncio.Event()

    async def answers_when_all_are_there(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        waiting += 1
        if waiting >= 3:
            all_there.set()
        await all_there.wait()
        writer.write(answers(APPROVED))

    async with serving(answers_when_all_are_there) as (raw, acquirer):
        outcomes = await asyncio.gather(*(acquirer.perform(OPERATION, PATIENCE_MS) for _ in range(10)))
        assert outcomes == [Approved("r")] * 10
        assert raw.connections == 3


async def test_an_acquirer_behind_tls_must_prove_who_it_is(tmp_path: Path) -> None:
    """A certificate that nobody vouches for is refused before anything is sent."""
    certificate, key = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    raw = RawServer(sends(answers(APPROVED)))
    server = await asyncio.start_server(raw.accept, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    async with HttpClient() as client:
        acquirer = HttpAcquirer(client, f"https://localhost:{port}", "p")
        with pytest.raises(AcquirerUnknownError) as caught:
            await acquirer.perform(OPERATION, PATIENCE_MS)
        assert caught.value.kind == "refused"
        client._tls = ssl.create_default_context(cafile=str(certificate))  # as if the authorities vouched for it
        assert await acquirer.perform(OPERATION, PATIENCE_MS) == Approved("r")
    server.close()
    await raw.aclose()
    await server.wait_closed()
    assert len(raw.requests) == 1


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for localhost."""
    private_key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private_key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return folder / "certificate.pem", folder / "key.pem"
