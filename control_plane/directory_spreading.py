"""Tells routers of a new directory by Redis, beside the file: they take it at once, a file at their next look.

The file comes first and is what counts. A Redis that is away costs a change a bounded wait, and nothing else. What is
told are the file's bytes, its signature included: whoever writes to that Redis can't give routers another directory.
"""

from collections.abc import Awaitable, Callable

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from control_plane import limits
from control_plane.data_folder import DataFolder, read_secret
from control_plane.settings import LOOPBACK, Settings
from router.spreading import DIRECTORY_CHANNEL, DIRECTORY_KEY

log = structlog.get_logger()

# Version and the directory's bytes, as its file has them.
Spread = Callable[[int, bytes], Awaitable[None]]


async def by_file_only(_version: int, _raw: bytes) -> None:
    """Tell nobody: there is no Redis."""


def spread_by(settings: Settings, folder: DataFolder) -> Spread:
    """Give what tells routers by the Redis of the settings."""
    if settings.redis_url == "none":
        return by_file_only
    url, password = settings.redis_url, None
    if settings.starts_redis:
        url = f"redis://{LOOPBACK}:{settings.redis_port}/0"
        password = read_secret(folder.redis_secret_file).hex()
    timeout_s = limits.REDIS_TIMEOUT_MS / 1_000

    async def tell(version: int, raw: bytes) -> None:
        try:
            async with (
                Redis.from_url(
                    url, password=password, socket_connect_timeout=timeout_s, socket_timeout=timeout_s, retry=None
                ) as redis,
                redis.pipeline(transaction=True) as both,
            ):
                both.set(DIRECTORY_KEY, raw)
                both.publish(DIRECTORY_CHANNEL, str(version))
                await both.execute()
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("directory_not_spread", version=version, error=type(error).__name__)

    return tell
