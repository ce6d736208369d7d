"""A partner's ways to its acquirers, one for each by name, and which of them a new payment goes to.

Each way has its own port, slots and breaker, so that a slow acquirer takes only the slots that are its own. What an
operation is asked for is fixed with its intent: nothing here moves an operation from one acquirer to another.
"""

import asyncio
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass

from actors import limits
from actors.acquirer import Acquirer, Approved, Declined, Instruction, NeverPerformed
from actors.breaker import Breaker
from actors.bulkheads import ALL_ON, Bulkhead
from actors.errors import AcquirerUnknownError


@dataclass(slots=True)
class Way:
    """One partner's way to one acquirer. `pursued` counts the operations that are being asked for there.

    Before `probe_due_ms` (monotonic) no further new payment tries whether it is well again.
    """

    port: Acquirer
    breaker: Breaker
    slots: AbstractAsyncContextManager[None]
    pursued: int = 0
    probe_due_ms: int = 0


class UnnamedAcquirer:
    """Stands for an acquirer that the settings name no more: what was asked there stays unknown until they do."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def perform(self, instruction: Instruction, timeout_ms: int) -> Approved:  # noqa: ARG002 - as the port
        """Ask nobody. Raises AcquirerUnknownError."""
        raise self._unknown()

    async def confirm(self, instruction: Instruction, timeout_ms: int) -> Approved:  # noqa: ARG002 - as the port
        """Ask nobody. Raises AcquirerUnknownError."""
        raise self._unknown()

    async def close_key(
        self,
        instruction: Instruction,  # noqa: ARG002 - as the port
        timeout_ms: int,  # noqa: ARG002
    ) -> Approved | Declined | NeverPerformed:
        """Ask nobody. Raises AcquirerUnknownError."""
        raise self._unknown()

    async def aclose(self) -> None:
        """Give back nothing."""

    def _unknown(self) -> AcquirerUnknownError:
        return AcquirerUnknownError("not_in_settings", f"the settings name no acquirer {self._name!r}")


class Acquirers:
    """All ways of one partner."""

    def __init__(self, ports: Mapping[str, Acquirer], bulkheads_off: AbstractSet[Bulkhead] = ALL_ON) -> None:
        self._bulkheads_off = bulkheads_off
        self._ways = {name: self._make_way(port) for name, port in ports.items()}

    def way(self, name: str) -> Way:
        """Give the way to an acquirer, also to one that nobody knows any more."""
        found = self._ways.get(name)
        if found is None:
            found = self._ways[name] = self._make_way(UnnamedAcquirer(name))
        return found

    def _make_way(self, port: Acquirer) -> Way:
        is_off = Bulkhead.BREAKER in self._bulkheads_off
        return Way(
            port, Breaker(self._bulkheads_off), nullcontext() if is_off else asyncio.Semaphore(limits.ACQUIRER_SLOTS)
        )

    def allows(self, name: str, now_ms: int) -> bool:
        """Say whether an operation may begin at this acquirer now."""
        return self.way(name).breaker.allows(now_ms)

    def choose(self, names: Sequence[str], now_ms: int) -> str | None:
        """Give the acquirer for a new payment, None where none answers. `names`: the first choice first.

        One that may be well again is tried by what is open there, not by a customer whom another would serve. Only
        where nothing is being asked there is a new payment the probe, one at a time, or that acquirer would never be
        used again.
        """
        allowing = [name for name in names if self.allows(name, now_ms)]
        for name in allowing:
            way = self.way(name)
            if way.breaker.state(now_ms) == "closed":
                return name
            if not way.pursued and now_ms >= way.probe_due_ms:
                way.probe_due_ms = now_ms + limits.BREAKER_OPEN_MS
                return name
        return allowing[0] if allowing else None

    def states(self, now_ms: int) -> dict[str, str]:
        """Give each breaker's state by its acquirer's name."""
        return {name: way.breaker.state(now_ms) for name, way in self._ways.items()}

    async def aclose(self) -> None:
        """Give back all connections."""
        await asyncio.gather(*(way.port.aclose() for way in self._ways.values()))
