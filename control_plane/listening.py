"""Where an installation's processes listen (TCP), and whether the settings say so. `beyond` decides, and is pure.

Third-party code may listen where nobody asked it to, and run code of its own before it knows who speaks to it.
"""

import ipaddress
import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from control_plane.process_table import names_of_marked
from control_plane.processes import ProcessSpec
from control_plane.settings import Settings

CONTROL_PLANE: Final = "control plane"
_PROC: Final = Path("/proc")
_LISTENS: Final = "0A"  # TCP_LISTEN
# Ray, its workers and its drivers have ports that the system chooses; they stay on loopback.
_CHOOSE_PORTS: Final = ("ray", "door")


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """One socket that listens, and whose it is."""

    process: str
    pid: int
    address: str
    port: int

    def __str__(self) -> str:
        """Name it for a person."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.process} (pid {self.pid}) listens on {host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Row:
    """An address and port on which the settings have a process listen; its host as they name it."""

    process: str
    addresses: frozenset[str]
    port: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found: sockets that listen, and processes that could not be looked at."""

    listeners: tuple[Listener, ...]
    processes: int
    unseen: tuple[str, ...]


def beyond(listeners: Iterable[Listener], rows: Iterable[Row]) -> list[Listener]:
    """Return what listens beyond what the settings say, in order."""
    allowed: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        allowed.setdefault((row.process, row.port), set()).update(row.addresses)
    return sorted(listener for listener in listeners if not _is_allowed(listener, allowed))


def _is_allowed(listener: Listener, allowed: Mapping[tuple[str, int], set[str]]) -> bool:
    address = _plain(listener.address)
    is_named = (listener.process, listener.port) in allowed
    if address.is_loopback and (is_named or listener.process.rpartition(".")[2] in _CHOOSE_PORTS):
        return True
    rows = {_plain(one) for one in allowed.get((listener.process, listener.port), ())}
    # A row for every address has each in it, the other family's too: `::` takes both.
    return address in rows or any(row.is_unspecified for row in rows)


def _plain(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def rows_of(settings: Settings, specs: Sequence[ProcessSpec]) -> list[Row]:
    """Return where the settings have these processes and the admin API listen. Asks the resolver for names of hosts."""
    rows = []
    for spec in specs:
        ports = {spec.port, *(port for name, port in spec.config.items() if name == "port" or name.endswith("_port"))}
        addresses = _addresses(spec.host)
        rows += [Row(spec.name, addresses, port) for port in ports if isinstance(port, int)]
    if settings.admin_port is not None:
        rows.append(Row(CONTROL_PLANE, _addresses(settings.admin_host), settings.admin_port))
    return rows


def read_listeners(instance_id: str, control_plane_pid: int | None) -> Seen:
    """Read where all processes of an installation listen; those of others are not looked at."""
    names = names_of_marked(instance_id)
    if control_plane_pid is not None:
        names[control_plane_pid] = CONTROL_PLANE
    found: set[Listener] = set()
    unseen: list[str] = []
    tables: dict[str, dict[str, tuple[str, int]]] = {}  # by network namespace, by inode
    for pid, name in names.items():
        process = _PROC / str(pid)
        try:
            space = str((process / "ns/net").readlink())
            if space not in tables:
                tables[space] = _read_table(process)
            inodes = _read_sockets(process)
        except PermissionError:
            unseen.append(f"{name} (pid {pid})")
        except OSError:
            continue  # it has ended
        else:
            found |= {Listener(name, pid, *tables[space][inode]) for inode in inodes & tables[space].keys()}
    return Seen(tuple(sorted(found)), len(names), tuple(sorted(unseen)))


def _read_table(process: Path) -> dict[str, tuple[str, int]]:
    """Read the sockets that listen in a process's network namespace, by their inodes (proc(5))."""
    table: dict[str, tuple[str, int]] = {}
    for name in ("tcp", "tcp6"):
        try:
            lines = (process / "net" / name).read_text(encoding="ascii").splitlines()
        except FileNotFoundError:
            continue  # a kernel without IPv6
        for line in lines[1:]:
            fields = line.split()
            if fields[3] == _LISTENS:
                table[fields[9]] = _parse_endpoint(fields[1])
    return table


def _parse_endpoint(text: str) -> tuple[str, int]:
    """Return the address and port of a field of /proc/net/tcp: words in the machine's byte order."""
    address, _, port = text.partition(":")
    words = [bytes.fromhex(address[start : start + 8]) for start in range(0, len(address), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed), int(port, 16)


def _read_sockets(process: Path) -> set[str]:
    inodes: set[str] = set()
    for descriptor in os.listdir(process / "fd"):  # noqa: PTH208 - there may be very many
        try:
            target = os.readlink(f"{process}/fd/{descriptor}")  # noqa: PTH115
        except FileNotFoundError:
            continue  # it was closed
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    return inodes


def _addresses(host: str) -> frozenset[str]:
    try:
        return frozenset(str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except OSError:
        return frozenset()  # nothing listens there either
