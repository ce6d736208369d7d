"""How the place of a cell's books is, for Prometheus: what the shelf tells, asked every few seconds, beside everything.

Knows no store by name. A shelf that tells nothing at first is not asked again.
"""

import asyncio
from collections.abc import Iterator, Sequence

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cells import limits
from stores.health import Sample
from stores.shelf import Shelf

log = structlog.get_logger()


class ShelfHealth(Collector):
    """Serves what the shelf told last, as gauges."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._samples: Sequence[Sample] = ()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to ask."""
        self._task = asyncio.create_task(self._run(), name="shelf-health")

    def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give the gauges."""
        families: dict[str, GaugeMetricFamily] = {}
        for sample in self._samples:
            family = families.get(sample.name)
            if family is None:
                family = families[sample.name] = GaugeMetricFamily(
                    f"bulkhead_{sample.name}", sample.meaning, labels=list(sample.labels)
                )
            family.add_metric(list(sample.labels.values()), sample.value)
        yield from families.values()

    async def _run(self) -> None:
        while True:
            try:
                self._samples = await self._shelf.health()
                if not self._samples:
                    return
            except Exception:
                # A bug of a dashboard's must not end what it looks at; what was told before is old news now.
                log.exception("shelf_health_failed")
                self._samples = ()
            await asyncio.sleep(limits.SHELF_HEALTH_DELAY_MS / 1_000)
