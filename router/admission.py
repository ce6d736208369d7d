"""How much may run at once: of the whole router, of one partner, of one cell. Past it the caller hears so at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from cells.api.messages import RefusalCode
from router import limits, problems
from router.problems import EdgeCode


class Admission:
    """Counts what runs. A cell that hangs fills its own share only: all shares together are REQUESTS_MAX."""

    def __init__(self) -> None:
        self.running = 0
        self._partners: dict[str, int] = {}
        self._cells: dict[str, int] = {}

    @contextmanager
    def partner(self, partner_id: str) -> Iterator[None]:
        """Hold a place of the router and of the partner. Raises ProblemError (429, 503)."""
        held = self._partners.get(partner_id, 0)
        if held >= limits.PARTNER_REQUESTS_MAX:
            raise problems.fail(
                RefusalCode.TOO_MANY_IN_FLIGHT,
                f"{limits.PARTNER_REQUESTS_MAX} requests of this partner are running here.",
            )
        if self.running >= limits.REQUESTS_MAX:
            raise problems.fail(EdgeCode.OVERLOADED, "As many requests run as this gateway lets in. Try again.")
        self.running += 1
        self._partners[partner_id] = held + 1
        try:
            yield
        finally:
            self.running -= 1
            _give_back(self._partners, partner_id)

    @contextmanager
    def cell(self, name: str, cells: int) -> Iterator[None]:
        """Hold a place of the cell's share, of `cells` in all. Raises ProblemError (503)."""
        held = self._cells.get(name, 0)
        if held >= limits.REQUESTS_MAX // max(1, cells):
            raise problems.fail(EdgeCode.OVERLOADED, "As many requests run as the partner's cell is given. Try again.")
        self._cells[name] = held + 1
        try:
            yield
        finally:
            _give_back(self._cells, name)


def _give_back(counts: dict[str, int], name: str) -> None:
    left = counts[name] - 1
    assert left >= 0, "given back more often than taken"
    if left:
        counts[name] = left
    else:
        del counts[name]  # so that only what runs takes memory
