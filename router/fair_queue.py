"""Deficit round robin over flows (Shreedhar and Varghese, SIGCOMM 1995): each flow gets as much as any other. Pure.

A flow is here while it has something waiting, so that memory is bounded by what waits; who queues bounds that.
"""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """What waits, by flow. In each round a flow may take `quantum` more; no item costs more than that."""

    def __init__(self, quantum: int) -> None:
        assert quantum > 0
        self._quantum = quantum
        self._flows: OrderedDict[str, deque[tuple[int, Item]]] = OrderedDict()
        self._deficits: dict[str, int] = {}  # of the flows in this round; one that emptied its queue keeps none
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def push(self, flow: str, cost: int, item: Item) -> None:
        """Add an item of this cost behind those of its flow."""
        assert 0 < cost <= self._quantum, "each round lets through at least one of each flow"
        waiting = self._flows.get(flow)
        if waiting is None:
            waiting = self._flows[flow] = deque()
            self._deficits[flow] = self._quantum
        waiting.append((cost, item))
        self._waiting += 1

    def pop(self) -> tuple[int, Item]:
        """Remove the next item, and return its cost and itself. Something waits."""
        while True:
            flow, waiting = next(iter(self._flows.items()))
            cost = waiting[0][0]
            if cost > self._deficits[flow]:
                self._deficits[flow] += self._quantum
                self._flows.move_to_end(flow)
                continue
            self._deficits[flow] -= cost
            item = waiting.popleft()[1]
            self._waiting -= 1
            if not waiting:
                del self._flows[flow], self._deficits[flow]
            return cost, item
