"""What an experiment needs: of this machine, and of the gateway that it strikes; and what is told where it lacks.

All of it is looked at before anything begins. A fault that could not strike would show nothing.
"""

import shutil
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any, Final

from chaos import clocks, fdb_server


class Need(StrEnum):
    """One thing that not every gateway, or not every machine, has. The value is how a listing names it."""

    FAULT_INJECTION = "--fault-injection"
    SQLITE = "SQLite books"
    STRACE = "strace"
    FAULT_PROXIES = "fault proxies"
    FDB_SERVER = "fdbserver"
    CLOCK = "cc"


Needs = frozenset[Need]
# What only a gateway of the experiment's own can have, and why.
_OF_ITS_OWN: Final = {
    Need.FAULT_PROXIES: "fault proxies before the gateway's doors",
    Need.FDB_SERVER: "a FoundationDB server of the experiment's own",
    Need.CLOCK: "a gateway whose clock can be moved",
}
# What makes a gateway another one: experiments that need one of these share it with no others.
UNSHARED: Final[Needs] = frozenset({Need.FDB_SERVER, Need.CLOCK})


def is_shared(needs: Needs) -> bool:
    """Say whether its gateway may be one that several experiments share."""
    return UNSHARED.isdisjoint(needs)


def needs_own(needs: Needs) -> bool:
    """Say whether only a gateway of the experiment's own has it all."""
    return not needs.isdisjoint(_OF_ITS_OWN)


def in_words(needs: Needs) -> list[str]:
    """Name them for a listing, in the order of the table."""
    own = ["--own"] if needs_own(needs) else []
    return [*own, *(need.value for need in Need if need in needs)]


def missing_here(needs: Needs, *, own: bool) -> str | None:
    """Say what is missing before a gateway is looked at; None: nothing. `own`: it is to be one of its own."""
    for need, what in _OF_ITS_OWN.items():
        if need in needs and not own:
            return f"it needs {what}: run it with --own"
    if Need.FDB_SERVER in needs and (missing := fdb_server.missing_programs()) is not None:
        return missing
    if Need.STRACE in needs and (missing := _missing_programs(("strace", "timeout"))) is not None:
        return f"{missing}; tools/setup-tests installs strace on Debian and Ubuntu"
    if Need.CLOCK in needs and (missing := _missing_programs((clocks.COMPILER,))) is not None:
        return f"{missing}: a C compiler makes the clock that is moved"
    return None


def missing_there(needs: Needs, status: Mapping[str, Any], store: str) -> str | None:
    """Say what the gateway lacks, by its status and the kind of its store; None: nothing."""
    if Need.FAULT_INJECTION in needs and not status["control_plane"]["fault_injection"]:
        return "this gateway obeys no commands that order faults: start it with --fault-injection, or say --own"
    if Need.SQLITE in needs and store != "sqlite":
        return "its partners' books are no SQLite files, which this experiment strikes: say --own"
    return None


def _missing_programs(names: Collection[str]) -> str | None:
    missing = [name for name in names if shutil.which(name) is None]
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not on PATH" if missing else None
