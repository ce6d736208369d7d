"""Places that strangers take before anybody knows who they are, shared by the address that they come from. Pure."""

import ipaddress
from collections.abc import Collection
from functools import lru_cache
from types import TracebackType
from typing import Final

# One host has a whole network of this length to choose its IPv6 addresses from (RFC 4291, 2.5.4).
_HOST_PREFIX_BITS: Final = 64
_REMEMBERED_MAX: Final = 4_096


class Shares:
    """Counts the places of a pool that are taken: by all `places_max`, by one holder `each_max`.

    `unshared` holders may take all: proxies, whose connections are those of many.
    """

    def __init__(self, places_max: int, each_max: int, unshared: Collection[str] = ()) -> None:
        assert 1 <= each_max <= places_max
        self._places_max = places_max
        self._each_max = each_max
        self._unshared = frozenset(map(network_of, unshared))
        self._held: dict[str, int] = {}
        self.taken = 0

    def place(self, holder: str) -> "Place | None":
        """Return a place, to be given back once; None where none is left for this holder."""
        held = self._held.get(holder, 0)
        if self.taken >= self._places_max or (held >= self._each_max and holder not in self._unshared):
            return None
        self.taken += 1
        self._held[holder] = held + 1
        return Place(self, holder)

    def _give_back(self, holder: str) -> None:
        self.taken -= 1
        left = self._held[holder] - 1
        if left:
            self._held[holder] = left
        else:
            del self._held[holder]  # so that only what is taken needs memory


class Place:
    """One place that is held; the end of a `with` gives it back."""

    __slots__ = ("_holder", "_shares")

    def __init__(self, shares: Shares, holder: str) -> None:
        self._shares: Shares | None = shares
        self._holder = holder

    def give_back(self) -> None:
        """Give it back; once is enough."""
        if self._shares is not None:
            self._shares._give_back(self._holder)  # noqa: SLF001 - of one piece
            self._shares = None

    def __enter__(self) -> None:
        """Hold it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        self.give_back()


@lru_cache(maxsize=_REMEMBERED_MAX)
def network_of(address: str) -> str:
    """Return as whose an address counts: an IPv4 address itself, an IPv6 address' /64 network; other text as it is."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    if found.is_loopback:
        return str(found)
    return str(ipaddress.ip_network((int(found), _HOST_PREFIX_BITS), strict=False))
