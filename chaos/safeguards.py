"""When an experiment has to end at once: its damage left the target. Pure; looks at the load's figures."""

from collections.abc import Mapping

from chaos import limits

Counts = Mapping[str, Mapping[str, float]]


class Safeguards:
    """Watches partners that may not be hurt. `protected`: partner -> cell, of those whom the fault may cost nothing."""

    def __init__(self, protected: Mapping[str, str]) -> None:
        self._protected = protected
        self._answered: dict[str, float] = {}
        self._answered_s: dict[str, float] = {}
        self.errors = 0

    def look(self, counts: Counts, now_s: float) -> str | None:
        """Take the figures so far; say why the experiment has to end, None while it may go on."""
        theirs = {partner: row for partner, row in counts.items() if partner in self._protected}
        # A bystander did nothing for which a 429 is due.
        errors = {partner: int(row["errors"] + row["refused_429"]) for partner, row in theirs.items()}
        self.errors = sum(errors.values())
        if self.errors > limits.CHAOS_ERRORS_OUTSIDE_MAX:
            hit = ", ".join(f"{partner} ({count})" for partner, count in sorted(errors.items()) if count)
            return f"{self.errors} errors of partners outside the target: {hit}"
        for cell in self.silent_cells(theirs, now_s):
            return f"{cell} is outside the target, and gave no answer for {limits.CHAOS_CELL_SILENT_MS_MAX / 1_000:g} s"
        return None

    def silent_cells(self, counts: Counts, now_s: float) -> list[str]:
        """Name the cells of protected partners that gave nobody an answer for too long."""
        answered: dict[str, float] = {}
        for partner, row in counts.items():
            if partner in self._protected:
                cell = self._protected[partner]
                answered[cell] = answered.get(cell, 0) + row["answered"]
        for cell, count in answered.items():
            if count != self._answered.get(cell) or cell not in self._answered_s:
                self._answered[cell], self._answered_s[cell] = count, now_s
        longest_s = limits.CHAOS_CELL_SILENT_MS_MAX / 1_000
        return sorted(cell for cell, since_s in self._answered_s.items() if now_s - since_s > longest_s)
