"""Free ports for what an experiment starts."""

import random
import socket
from typing import Final

from chaos import limits

HOST: Final = "127.0.0.1"


class NoPortsError(Exception):
    """No free ports were found."""


def free_block(count: int) -> int:
    """Find so many free ports in a row; give the first. Another process may still take one. Raises NoPortsError."""
    for _ in range(limits.PORT_BLOCKS_TRIED_MAX):
        first = random.SystemRandom().randrange(limits.PORT_FIRST_MIN, limits.PORT_FIRST_MAX)
        if all(is_free(port) for port in range(first, first + count)):
            return first
    raise NoPortsError(f"no {count} free ports in a row found")


def is_free(port: int) -> bool:
    """Say whether a server could listen on this port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
