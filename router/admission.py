"""How much may run at once: of the whole router, of one partner, of one cell. Past it the caller hears so at once."""

from collections.abc import Set as AbstractSet
from types import TracebackType

from cells.api.bulkheads import ALL_ON, Bulkhead
from cells.api.messages import RefusalCode
from router import limits, problems
from router.problems import EdgeCode


class Admission:
    """Counts what runs. A cell that hangs fills its own share only: all shares together are REQUESTS_MAX."""

    def __init__(self, bulkheads_off: AbstractSet[Bulkhead] = ALL_ON) -> None:
        self._bulkheads_off = bulkheads_off
        self.running = 0
        self._partners: dict[str, int] = {}
        self._cells: dict[str, int] = {}

    def partner(self, partner_id: str) -> "_Place":
        """Take a place of the router and of the partner, to be held by `with`. Raises ProblemError (429, 503)."""
        held = self._partners.get(partner_id, 0)
        if held >= limits.PARTNER_REQUESTS_MAX and Bulkhead.PARTNER_SHARE not in self._bulkheads_off:
            raise problems.fail(
                RefusalCode.TOO_MANY_IN_FLIGHT,
                f"{limits.PARTNER_REQUESTS_MAX} requests of this partner are running here.",
            )
        if self.running >= limits.REQUESTS_MAX:
            raise problems.fail(EdgeCode.OVERLOADED, "As many requests run as this gateway lets in. Try again.")
        self.running += 1
        self._partners[partner_id] = held + 1
        return _Place(self, self._partners, partner_id)

    def cell(self, name: str, cells: int) -> "_Place":
        """Take a place of the cell's share, of `cells` in all, to be held by `with`. Raises ProblemError (503)."""
        held = self._cells.get(name, 0)
        if held >= limits.REQUESTS_MAX // max(1, cells) and Bulkhead.CELL_SHARE not in self._bulkheads_off:
            raise problems.fail(EdgeCode.OVERLOADED, "As many requests run as the partner's cell is given. Try again.")
        self._cells[name] = held + 1
        return _Place(None, self._cells, name)

    def running_of_cell(self, name: str) -> int:
        """Give how many places of the cell's share are taken."""
        return self._cells.get(name, 0)


class _Place:
    """One place that is held; its end gives it back."""

    __slots__ = ("_admission", "_counts", "_name")

    def __init__(self, admission: Admission | None, counts: dict[str, int], name: str) -> None:
        self._admission = admission
        self._counts = counts
        self._name = name

    def __enter__(self) -> None:
        """Hold it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        if self._admission is not None:
            self._admission.running -= 1
        left = self._counts[self._name] - 1
        assert left >= 0, "given back more often than taken"
        if left:
            self._counts[self._name] = left
        else:
            del self._counts[self._name]  # so that only what runs takes memory
