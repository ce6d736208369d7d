"""One whole gateway for all tests of bad input, and the question that each of them ends with: is it unharmed?"""

import contextlib
import json
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pytest

from cells.api import frames
from chaos.gateway import Gateway

# What a process may have grown by after any one of these tests. Buffers of connections that are gone are given back
# to the allocator, not to the system; what leaks a connection's worth each time is far above this.
GROWTH_BYTES_MAX: Final = 96_000_000
# A good payment beside or after bad input. Generous, for the machine may be busy with other things.
PAYMENT_S_MAX: Final = 5.0
OPEN_FILES_WANTED: Final = 16_384
_ROLES: Final = frozenset({"router", "door", "worker", "spare", "acquirer", "ray"})


class Site:
    """A running gateway with partners `alpha`, `beta`, and `gamma`, who takes USD only."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.keys = {
            name: gateway.create_partner(name, rate_per_second=5_000, rate_burst=5_000, **more)
            for name, more in {"alpha": {}, "beta": {}, "gamma": {"currencies": ["USD"]}}.items()
        }
        self._payments = 0
        self._client = httpx.Client(base_url=gateway.base_url, trust_env=False, timeout=PAYMENT_S_MAX)

    @property
    def address(self) -> tuple[str, int]:
        """Where the router listens."""
        return "127.0.0.1", self.gateway.ports.http

    @property
    def door(self) -> tuple[str, int]:
        """Where the cell's door listens."""
        return "127.0.0.1", self.gateway.ports.door

    @property
    def worker(self) -> tuple[str, int]:
        """Where alpha's worker listens."""
        (row,) = [row for row in self.processes("worker") if row["partner"] == "alpha"]
        host, _, port = row["endpoint"].rpartition(":")
        return host, int(port)

    def processes(self, *roles: str) -> list[dict[str, Any]]:
        """Give the rows of the status that have one of these roles."""
        return [row for row in self.gateway.status()["processes"] if row["role"] in roles]

    def role_key(self, role: str) -> bytes:
        """Give what proves a role to the cell."""
        return frames.role_key(self.gateway.folder.cell_secret_file("cell-0").read_bytes(), role)

    def request(self, method: str, path: str, partner: str = "alpha", **more: Any) -> httpx.Response:
        """Ask as a well-behaved client does."""
        return self._client.request(method, path, headers={"Authorization": f"Bearer {self.keys[partner]}"}, **more)

    def pay(self, partner: str = "alpha", **fields: Any) -> dict[str, Any]:
        """Make a good payment; it goes through, and soon."""
        self._payments += 1
        body = {"amount": 100 + self._payments, "currency": "EUR", "payment_method": "tok_approve"} | fields
        answer = self.request("POST", "/v1/payments", partner, json=body)
        assert answer.status_code == 201, answer.text
        payment: dict[str, Any] = answer.json()
        return payment

    def is_served(self, partner: str) -> bool:
        """Say whether a partner's requests are taken: all that it has sent before may still be under way."""
        return self.request("GET", "/v1/balance", partner).status_code == 200

    def settle(self) -> dict[int, tuple[str, int]]:
        """Give each process's role and memory by its pid, once all are there and a payment went through."""
        self.gateway.wait_ready()
        self.gateway.wait_spares()
        self.pay()
        found = {}
        for row in self.processes(*_ROLES):
            found[row["pid"]] = (row["role"], psutil.Process(row["pid"]).memory_info().rss)
        return found

    @contextlib.contextmanager
    def unharmed(self) -> Iterator[None]:
        """Whatever happens inside: the same processes live, none has grown, and good payments go through."""
        before = self.settle()
        yield
        until = time.monotonic() + 10
        while True:  # what was dropped is given back within moments
            after = self.settle()
            assert after.keys() == before.keys(), "a process died"
            grown = {
                f"{role} {pid}": after[pid][1] - bytes_before
                for pid, (role, bytes_before) in before.items()
                if after[pid][1] - bytes_before > GROWTH_BYTES_MAX
            }
            if not grown:
                return
            assert time.monotonic() < until, f"these have grown: {grown}"
            time.sleep(0.5)

    def log_lines(self, process: str) -> list[dict[str, Any]]:
        """Read a process's log."""
        return [json.loads(line) for line in self.gateway.folder.log_file(process).read_text().splitlines()]

    def close(self) -> None:
        """Give back what the site itself holds."""
        self._client.close()


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(OPEN_FILES_WANTED, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    gateway = Gateway(Path(tmp_path_factory.mktemp("bad")) / "gateway", cells=1)
    try:
        gateway.start()
        gateway.wait_ready()
        found = Site(gateway)
        found.settle()
        yield found
        found.close()
    finally:
        gateway.kill_everything()


def exchange(address: tuple[str, int], data: bytes, timeout_s: float = 15.0, *, is_all: bool = False) -> bytes:
    """Send the bytes as they are; give all that came until the connection ended or fell silent for a while.

    `is_all`: the peer is told that no more comes.
    """
    with socket.create_connection(address, timeout=timeout_s) as client:
        got = b""
        with contextlib.suppress(OSError):  # it may have ended the connection meanwhile
            client.sendall(data)
            if is_all:
                client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while chunk := client.recv(65_536):
                got += chunk
        return got
