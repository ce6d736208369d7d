"""Which worker a partner belongs to: pure choices, so that they can be read and tried without a worker."""

from collections.abc import Iterable
from dataclasses import dataclass

from cells import limits


@dataclass(frozen=True, slots=True)
class Host:
    """A living worker that has partners, as far as placement looks at it."""

    name: str
    partners: int
    is_pool: bool


def choose_pool(hosts: Iterable[Host], *, but: str = "") -> str | None:
    """Give the pool with the fewest partners that has room; None: a new one is needed."""
    open_to_more = [
        host for host in hosts if host.is_pool and host.partners < limits.POOL_PARTNERS_MAX and host.name != but
    ]
    return min(open_to_more, key=lambda host: (host.partners, host.name)).name if open_to_more else None


def is_misplaced(host: Host, others: Iterable[Host], *, pooled: bool) -> bool:
    """Say whether a partner that is at `host` has to go elsewhere.

    A worker with one partner becomes a pool, or ends being one, without a move; where there is room in another pool,
    the partner goes there, so that pools fill.
    """
    if pooled:
        return not host.is_pool and choose_pool(others, but=host.name) is not None
    return host.is_pool and host.partners > 1


def groups(partner_ids: Iterable[str]) -> list[list[str]]:
    """Divide partners into as few pools as hold them, and those evenly."""
    all_ids = list(partner_ids)
    count = -(-len(all_ids) // limits.POOL_PARTNERS_MAX)
    return [all_ids[index::count] for index in range(count)]
