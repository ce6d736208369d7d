"""Remembered 429s over a real Redis: told, heard, held for no longer than they may be; and Redis in every trouble."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from redis.asyncio import Redis

from cells.api.messages import Answer, RateState, Refusal, RefusalCode, Refused, encode_answer
from control_plane.data_folder import DataFolder
from control_plane.directory_spreading import spread_by
from control_plane.settings import Settings
from router import directory, directory_file, directory_signature, limits
from router.directory_file import DirectoryWatcher
from router.remembered import RememberedRefusals
from router.signing import Signer
from router.spreading import CHANNEL, DIRECTORY_CHANNEL, DIRECTORY_KEY, News, NewsError, Spreading, decode, encode

PASSWORD = "a-password"
SIGNER = Signer(b"p" * 32)
KEY = Ed25519PrivateKey.generate()
pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server here")


class Server:
    """A redis-server of this test's own."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def url(self, password: str = PASSWORD) -> str:
        return f"redis://:{password}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--save", ""]
        self.process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def send(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    made.start()
    yield made
    made.kill()


class Router:
    def __init__(self, url: str) -> None:
        self.remembered = RememberedRefusals()
        self.spreading = Spreading(url, self.remembered, SIGNER, lambda partner: partner == "acme")

    def learn(self, wait_ms: int = 5_000) -> None:
        self.spreading.tell("acme", 1, refused(wait_ms))

    def knows(self) -> bool:
        return self.remembered.recall("acme", 1) is not None


@contextlib.asynccontextmanager
async def routers(*urls: str) -> AsyncIterator[list[Router]]:
    made = [Router(url) for url in urls]
    tasks = [asyncio.create_task(router.spreading.run()) for router in made]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(ended, asyncio.CancelledError), f"it ended by itself: {ended!r}"


def refused(wait_ms: int) -> Refused:
    return Refused(Refusal(RefusalCode.RATE_LIMITED, "Slower.", retry_after_ms=wait_ms), RateState(50, 100, 0, wait_ms))


async def until(condition: Callable[[], bool], seconds: float = 8) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come to pass"
        await asyncio.sleep(0.02)


async def spread(one: Router, other: Router) -> None:
    await until(lambda: one.spreading.connected and other.spreading.connected)
    one.learn()
    await until(other.knows)


async def test_what_one_router_learns_the_other_holds_for_a_capped_time(server: Server) -> None:
    async with routers(server.url(), server.url()) as (one, other):
        await spread(one, other)
        assert one.spreading.heard == 0, "one's own news are not heard"
        assert other.remembered.recall("acme", 2) is None, "it ends with a newer profile"
        await spread(one, other)
        began = time.monotonic()
        await until(lambda: not other.knows(), 2)
        assert time.monotonic() - began < 1.2


async def test_a_killed_redis_costs_nothing_and_is_found_again(server: Server) -> None:
    async with routers(server.url(), server.url()) as (one, other):
        await spread(one, other)
        server.kill()
        await until(lambda: not one.spreading.connected and not other.spreading.connected)
        one.learn()
        await asyncio.sleep(0.3)
        server.start()
        await spread(one, other)


async def test_a_stopped_redis_is_noticed_and_telling_never_waits(server: Server) -> None:
    async with routers(server.url(), server.url()) as (one, other):
        await spread(one, other)
        server.send(signal.SIGSTOP)
        began = time.perf_counter()
        for _ in range(10 * limits.NEWS_WAITING_MAX):
            one.learn()
        assert time.perf_counter() - began < 1, "a call, not a wait"
        assert one.spreading.left_out == 9 * limits.NEWS_WAITING_MAX
        await until(lambda: not one.spreading.connected and not other.spreading.connected)
        server.send(signal.SIGCONT)
        await spread(one, other)


async def test_with_a_wrong_password_or_no_redis_each_learns_by_itself(server: Server) -> None:
    async with routers(server.url("wrong"), "redis://127.0.0.1:1/0") as made:
        await asyncio.sleep(1)
        for router in made:
            assert not router.spreading.connected
            router.learn()
            router.remembered.remember("acme", 1, refused(500))
            assert router.knows()


async def test_garbage_is_counted_and_harms_nothing(server: Server) -> None:
    refusal = encode_answer(refused(100))
    garbage = [
        b"", b"\xc1", b"x" * 100_000, msgpack.packb([2, "o", "acme", 1, refusal]),
        msgpack.packb([1, "o", "acme", True, refusal]),
        msgpack.packb([1, "o", "acme", 1, encode_answer(Answer(200, b"{}"))]), msgpack.packb({"a": 1}), b"\x91" * 1_500,
        encode(News("o", "nobody", 1, refused(100))),
    ]  # fmt: skip
    # Those with a signature are a router's that lost its mind; the others are a stranger's.
    told = [*garbage, *(SIGNER.sign(CHANNEL, raw) for raw in garbage), encode(News("o", "acme", 1, refused(100)))]
    async with routers(server.url(), server.url()) as (one, other), Redis.from_url(server.url()) as stranger:
        await until(lambda: other.spreading.connected)
        for raw in told:
            await stranger.publish(CHANNEL, raw)
        await until(lambda: other.spreading.garbage == len(told))
        assert not other.knows()
        await spread(one, other)


async def test_a_new_directory_is_taken_within_100_ms_and_never_an_older_or_corrupt_one(
    server: Server, tmp_path: Path
) -> None:
    async def changed(_: directory.Directory) -> None:
        """Nothing is to be done here."""

    watcher = DirectoryWatcher(tmp_path / "published.json", tmp_path, KEY.public_key(), changed)
    tell = spread_by(Settings(redis_url=server.url()), DataFolder(tmp_path))
    spreading = Spreading(server.url(), RememberedRefusals(), SIGNER, lambda _: True, offer=watcher.offer)
    task = asyncio.create_task(spreading.run())
    try:
        await until(lambda: spreading.connected)
        took_ms = []
        for version in range(1, 21):
            began = time.monotonic()
            await tell(version, signed(version))
            await until(lambda v=version: watcher.current is not None and watcher.current.version == v)  # type: ignore[misc]
            took_ms.append((time.monotonic() - began) * 1_000)
        print(f"a new directory was taken after {min(took_ms):.0f} to {max(took_ms):.0f} ms")  # noqa: T201 - to be read
        assert min(took_ms) < 100
        assert directory_file.read(tmp_path / "directory.json", KEY.public_key())[1].version >= 19, (
            "it is kept for the next start"
        )
        await tell(3, signed(3))
        await tell(99, b"?")
        await until(lambda: watcher.rejected >= 1)  # at either word, if both came before it looked
        assert watcher.current is not None
        assert watcher.current.version == 20
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_full_redis_takes_no_directory_still_spreads_429s_and_takes_the_next_one_when_it_has_room(
    server: Server, tmp_path: Path
) -> None:
    tell = spread_by(Settings(redis_url=server.url()), DataFolder(tmp_path))
    async with routers(server.url(), server.url()) as (one, other), Redis.from_url(server.url()) as redis:
        await until(lambda: one.spreading.connected and other.spreading.connected)
        await tell(1, signed(1))
        held = await redis.get(DIRECTORY_KEY)
        assert held is not None
        await redis.config_set("maxmemory", 1)
        await tell(2, signed(2))
        assert await redis.get(DIRECTORY_KEY) == held, "routers never take an older one, and see the newer in its file"
        await spread(one, other)
        await redis.config_set("maxmemory", 0)
        await tell(3, signed(3))
        assert await redis.get(DIRECTORY_KEY) == signed(3)


async def test_a_directory_that_a_stranger_publishes_is_refused_and_counted(server: Server, tmp_path: Path) -> None:
    async def changed(_: directory.Directory) -> None:
        """Nothing is to be done here."""

    watcher = DirectoryWatcher(tmp_path / "published.json", tmp_path, KEY.public_key(), changed)
    tell = spread_by(Settings(redis_url=server.url()), DataFolder(tmp_path))
    spreading = Spreading(server.url(), RememberedRefusals(), SIGNER, lambda _: True, offer=watcher.offer)
    task = asyncio.create_task(spreading.run())
    try:
        await until(lambda: spreading.connected)
        await tell(1, signed(1))
        await until(lambda: watcher.current is not None)
        newer = signed(2)
        body = newer.partition(b"\n")[2]
        # The last but one: of a router, which knows the pepper.
        forged = [body, directory_signature.sign(Ed25519PrivateKey.generate(), body), SIGNER.sign("", body), b"?"]
        async with Redis.from_url(server.url()) as stranger:
            for count, raw in enumerate(forged, start=1):
                await stranger.set(DIRECTORY_KEY, raw)
                await stranger.publish(DIRECTORY_CHANNEL, "2")
                await until(lambda c=count: watcher.rejected == c)  # type: ignore[misc]
        assert watcher.current is not None
        assert watcher.current.version == 1
        await tell(2, newer)
        await until(lambda: watcher.current is not None and watcher.current.version == 2)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def signed(version: int) -> bytes:
    return directory_signature.sign(KEY, directory.encode(version, directory.Payload()))


def test_news_come_back_as_they_went() -> None:
    news = News("o", "acme", 3, refused(70))
    assert decode(encode(news)) == news
    with pytest.raises(NewsError):
        decode(b"text")
