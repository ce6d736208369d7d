"""Every bound of an HTTP listener, named with its unit, and how the bounds relate."""

from typing import Final

# What a peer may begin and not finish.
HEAD_BYTES_MAX: Final = 16_384
HEAD_LINES_MAX: Final = 256
HEAD_TIMEOUT_MS: Final = 10_000
# What was read at once is parsed in parts of so many bytes, and each bound is looked at after each part.
PARSED_BYTES_MAX: Final = 16_384
# Requests that wait behind one that is under way on their connection, and requests that come in one read.
PIPELINED_REQUESTS_MAX: Final = 32
# How long a peer may leave an answer unread, once buffers are full.
ANSWER_TIMEOUT_MS: Final = 20_000
# Of a body that nobody wants any more so much is thrown away, for at most DISCARD_TIMEOUT_MS: closing at once would
# reset the connection, and its sender would never see the answer (RFC 9112, 9.6).
DISCARDED_BYTES_MAX: Final = 4 * 1_048_576
DISCARD_TIMEOUT_MS: Final = 10_000
# For how long at most an application may have a connection left unread.
HOLD_MS_MAX: Final = 2_000

# Connections. Each listener's owner says how many; these are for listeners that few need.
CONNECTIONS_FEW_MAX: Final = 256
# It takes at least so many addresses to use all connections of a listener up, but for proxies' on the same machine.
ADDRESSES_MIN: Final = 8
PROXIES: Final = ("127.0.0.1", "::1")
KEEP_ALIVE_S: Final = 75
# libuv accepts one connection a socket and turn of the event loop; a turn takes long where the process is busy.
ACCEPTS_PER_TURN_MAX: Final = 16
# Connections that wait in the kernel's queue.
BACKLOG: Final = 2_048
SHUTDOWN_S: Final = 1

assert PARSED_BYTES_MAX <= HEAD_BYTES_MAX, "a head is not much longer than its bound when it is noticed"
