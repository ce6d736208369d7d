"""One end of a connection of frames over plain streams, for tests that send what no end of ours would send."""

import asyncio
import struct
from collections import deque
from collections.abc import Mapping
from typing import Any

from cells.api import frames, limits
from cells.api.sealing import ClientHandshake, SealedFrames, ServerHandshake


class SealedStream:
    """A connection whose other end takes this one for a member."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sealed: SealedFrames) -> None:
        self.reader = reader
        self.writer = writer
        self._sealed = sealed
        self._came: deque[list[Any]] = deque()

    def seal(self, payload: bytes) -> bytes:
        """Return a payload as the next frame that is sent."""
        return self._sealed.seal(payload)

    def send(self, fields: list[Any]) -> None:
        self.writer.write(self.seal(frames.pack(fields)))

    async def receive(self) -> list[Any]:
        while not self._came:
            data = await self.reader.read(65_536)
            if not data:
                raise EOFError
            self._came += self._sealed.feed(data)
        return self._came.popleft()


async def read_frame(reader: asyncio.StreamReader) -> list[Any]:
    """Read a frame of the handshake."""
    (length,) = struct.unpack(">I", await reader.readexactly(4))
    (frame,) = frames.Decoder().feed(frames.announce(await reader.readexactly(length)))
    return frame


async def prove(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, role: str, key: bytes) -> SealedStream:
    """Prove a role to a server."""
    handshake = ClientHandshake(role, key)
    writer.write(encode(handshake.prove(await read_frame(reader))))
    return SealedStream(reader, writer, handshake.finish(await read_frame(reader), limits.FRAME_BYTES_MAX))


async def welcome(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keys: Mapping[str, bytes]
) -> SealedStream:
    """Welcome a client as a server does."""
    handshake = ServerHandshake()
    writer.write(encode(handshake.challenge()))
    role = handshake.check(await read_frame(reader), keys)
    fields, sealed = handshake.welcome(keys[role], limits.FRAME_BYTES_MAX)
    writer.write(encode(fields))
    return SealedStream(reader, writer, sealed)


def encode(fields: list[Any]) -> bytes:
    """Return a frame of the handshake, which is not sealed."""
    return frames.announce(frames.pack(fields))
