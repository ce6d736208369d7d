"""Spreads remembered 429s by Redis, and hears there of a new directory. Never on a request's path, and never needed.

Told is the time that is left, not a moment of any clock. What arrives is read as a stranger's would be: without the
signature of somebody who has the pepper it is counted, and left.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

import msgpack
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from cells.api.messages import MessageError, RefusalCode, Refused, decode_answer, encode_answer
from router import limits
from router.remembered import RememberedRefusals
from router.signing import SIGNATURE_BYTES, Signer, UnsignedError

log = structlog.get_logger()

CHANNEL: Final = "bulkhead:remembered-429s:2"
# The newest directory, as its file has it; and where its version is told when it changes.
DIRECTORY_KEY: Final = "bulkhead:directory:3"
DIRECTORY_CHANNEL: Final = "bulkhead:directory-versions:1"
_VERSION: Final = 1


class NewsError(ValueError):
    """What came over the channel is not news of a 429."""


@dataclass(frozen=True, slots=True)
class News:
    """A 429 that another router, `origin`, was given by a cell."""

    origin: str
    partner_id: str
    profile_version: int
    refused: Refused


def encode(news: News) -> bytes:
    """Give its bytes."""
    fields = [_VERSION, news.origin, news.partner_id, news.profile_version, encode_answer(news.refused)]
    return bytes(msgpack.packb(fields))


def decode(raw: bytes) -> News:
    """Read news. Raises NewsError."""
    try:
        version, origin, partner_id, profile_version, answer = msgpack.unpackb(raw)
        refused = decode_answer(answer)
    except (MessageError, TypeError, ValueError, RecursionError) as error:
        raise NewsError("it can't be read") from error
    if (version, type(origin), type(partner_id), type(profile_version)) != (_VERSION, str, str, int):
        raise NewsError(f"it does not have the types of version {_VERSION}")
    if not isinstance(refused, Refused) or refused.refusal.code is not RefusalCode.RATE_LIMITED:
        raise NewsError("it tells of no 429")
    return News(origin, partner_id, profile_version, refused)


class Spreading:
    """One router's connection to Redis, made again whenever it ends, and what waits to be told."""

    def __init__(
        self,
        url: str,
        remembered: RememberedRefusals,
        signer: Signer,
        is_partner: Callable[[str], bool],
        now: Callable[[], float] = time.monotonic,
        password: str | None = None,
        offer: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> None:
        self._offer = offer
        self._url = url
        self._password = password
        self._remembered = remembered
        self._signer = signer
        self._is_partner = is_partner
        self._now = now
        self._origin = secrets.token_hex(8)
        self._waiting: deque[tuple[float, News]] = deque(maxlen=limits.NEWS_WAITING_MAX)
        self._any_waiting = asyncio.Event()
        self.connected = False
        self.told = 0
        self.heard = 0
        self.left_out = 0
        self.garbage = 0

    def tell(self, partner_id: str, profile_version: int, refused: Refused) -> None:
        """Have the other routers told, some time soon or never; costs the caller no waiting."""
        if not self.connected or refused.refusal.code is not RefusalCode.RATE_LIMITED:
            return
        if len(self._waiting) == limits.NEWS_WAITING_MAX:
            self.left_out += 1  # the oldest gives its place
        self._waiting.append((self._now(), News(self._origin, partner_id, profile_version, refused)))
        self._any_waiting.set()

    async def run(self) -> None:
        """Connect, tell and hear, for ever."""
        delay_ms = limits.REDIS_RETRY_DELAY_MS_MIN
        was_said = False
        while True:
            try:
                async with self._client() as redis:
                    await redis.ping()  # type: ignore[misc]  # it is typed for both kinds of client
                    log.info("redis_connected")
                    delay_ms, was_said = limits.REDIS_RETRY_DELAY_MS_MIN, False
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(self._hear(redis))
                        tasks.create_task(self._tell_all(redis))
            except* (RedisError, OSError, TimeoutError, ValueError) as errors:
                if not was_said:  # once, until it is back
                    log.warning("redis_lost", error=type(errors.exceptions[0]).__name__)
                    was_said = True
            finally:
                self.connected = False
                self._waiting.clear()
            await asyncio.sleep(delay_ms / 1_000)
            delay_ms = min(2 * delay_ms, limits.REDIS_RETRY_DELAY_MS_MAX)

    def _client(self) -> Redis:
        timeout_s = limits.REDIS_TIMEOUT_MS / 1_000
        return Redis.from_url(
            self._url,
            password=self._password,  # one in the URL goes before it
            socket_connect_timeout=timeout_s,
            socket_timeout=timeout_s,
            retry=None,
            max_connections=3,
        )

    async def _hear(self, redis: Redis) -> None:
        async with redis.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(CHANNEL, DIRECTORY_CHANNEL)
            self.connected = True
            await self._look_at_directory(redis)  # it may have changed meanwhile
            while True:
                message = await channel.get_message(timeout=limits.REDIS_LOOK_MS / 1_000)
                if message is not None and message["channel"] == DIRECTORY_CHANNEL.encode():
                    await self._look_at_directory(redis)
                elif message is not None:
                    self.take(message["data"])

    async def _look_at_directory(self, redis: Redis) -> None:
        if self._offer is None:
            return
        # One byte more than a directory may have, so that one too large is seen to be that.
        raw = await redis.getrange(DIRECTORY_KEY, 0, limits.DIRECTORY_BYTES_MAX)
        if raw:
            await self._offer(raw)

    async def _tell_all(self, redis: Redis) -> None:
        while True:
            try:
                async with asyncio.timeout(limits.REDIS_LOOK_MS / 1_000):
                    await self._any_waiting.wait()
            except TimeoutError:
                # A stopped Redis is noticed also where there is nothing to tell.
                await redis.ping()  # type: ignore[misc]  # it is typed for both kinds of client
            while self._waiting:
                since, news = self._waiting.popleft()
                left_ms = (news.refused.refusal.retry_after_ms or 0) - round((self._now() - since) * 1_000)
                if left_ms > 0:
                    refusal = replace(news.refused.refusal, retry_after_ms=left_ms)
                    raw = encode(replace(news, refused=replace(news.refused, refusal=refusal)))
                    await redis.publish(CHANNEL, self._signer.sign(CHANNEL, raw))
                    self.told += 1
            self._any_waiting.clear()

    def take(self, raw: object) -> None:
        """Remember what another router tells; count what nobody of ours told, and what can't be read."""
        if not isinstance(raw, bytes) or len(raw) > SIGNATURE_BYTES + limits.NEWS_BYTES_MAX:
            self.garbage += 1
            return
        try:
            news = decode(self._signer.open(CHANNEL, raw))
        except (NewsError, UnsignedError):
            self.garbage += 1
            return
        if news.origin == self._origin:
            return
        if not self._is_partner(news.partner_id):
            self.garbage += 1
            return
        self.heard += 1
        self._remembered.remember(news.partner_id, news.profile_version, news.refused)
