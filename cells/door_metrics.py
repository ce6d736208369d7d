"""What a door counts and times, and one /metrics for the whole cell: its own, its workers' sums, its shelf's health."""

import asyncio
from typing import Final

import msgpack
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest

from cells import limits as cell_limits
from cells.api import limits
from cells.api.connection import PeerError
from cells.api.messages import Method
from cells.api.saturation import Saturation
from cells.shelf_health import ShelfHealth
from cells.worker_metrics import Dump, Sum
from cells.workforce import Link, Workforce
from listeners.metrics_page import MetricsPage
from stores.shelf import Shelf

# Not the default registry: a door's process also has the (idle) metrics of actors.
_REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=_REGISTRY)

COMMANDS: Final = Counter(
    "bulkhead_door_commands", "Commands through the door.", ["partner", "method"], registry=_REGISTRY
)
COMMAND_SECONDS: Final = Histogram(
    "bulkhead_door_command_seconds",
    "From a command's arrival at the door to its answer.",
    ["method"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=_REGISTRY,
)
REFUSED: Final = Counter(
    "bulkhead_door_refused", "Commands past a partner's share of the door.", ["partner"], registry=_REGISTRY
)
SHED: Final = Counter(
    "bulkhead_door_shed", "Commands shed for want of the cell's room, by class of work.", ["work"], registry=_REGISTRY
)
UNDER_WAY: Final = Gauge(
    "bulkhead_door_commands_under_way",
    f"What is used of the cell's room of {cell_limits.DOOR_COMMANDS_MAX} commands.",
    registry=_REGISTRY,
)
SENT_AGAIN: Final = Counter("bulkhead_door_sent_again", "Commands whose worker died under them.", registry=_REGISTRY)
TAKEOVERS: Final = Counter(
    "bulkhead_door_takeovers", "Partners given to another worker.", ["cause"], registry=_REGISTRY
)
ACTIVATION_SECONDS: Final = Histogram(
    "bulkhead_door_activation_seconds",
    "From a partner's loss to its next owner.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=_REGISTRY,
)
HANDOVERS: Final = Counter(
    "bulkhead_door_handovers", "Partners handed over between living workers.", registry=_REGISTRY
)
DEPARTED: Final = Counter("bulkhead_door_partners_departed", "Partners that left for another cell.", registry=_REGISTRY)
ARRIVED: Final = Counter("bulkhead_door_partners_arrived", "Partners that came from another cell.", registry=_REGISTRY)
ESCALATIONS: Final = Counter(
    "bulkhead_door_escalations", "Partners kept apart for good, or quarantined.", ["kind"], registry=_REGISTRY
)
QUARANTINED: Final = Gauge(
    "bulkhead_door_partners_quarantined", "Partners of which nothing is executed.", registry=_REGISTRY
)
WORKERS: Final = Gauge("bulkhead_door_workers", "Living workers.", ["state"], registry=_REGISTRY)


async def serve(host: str, port: int, workforce: Workforce, shelf: Shelf) -> MetricsPage:
    """Serve GET /metrics until the page is closed. Raises OSError where the address is taken."""
    workers = Sum()
    _REGISTRY.register(workers)
    Saturation("door", _REGISTRY).start()
    health = ShelfHealth(shelf)
    _REGISTRY.register(health)
    health.start()

    async def render() -> bytes:
        links = list(workforce.links.values())
        spares = sum(workforce.is_spare(link) for link in links)
        WORKERS.labels("spare").set(spares)
        pools = sum(link.is_pool for link in links)
        WORKERS.labels("pool").set(pools)
        WORKERS.labels("assigned").set(len(links) - spares - pools)
        dumps = await asyncio.gather(*(_dump(link) for link in links))
        workers.take({link.name: dump for link, dump in zip(links, dumps, strict=True)})
        return generate_latest(_REGISTRY)

    page = MetricsPage(render)
    await page.start(host, port)
    return page


async def _dump(link: Link) -> Dump | None:
    try:
        return list(msgpack.unpackb(await link.connection.request(Method.METRICS, "", b"", limits.METRICS_TIMEOUT_MS)))
    except PeerError:
        return None  # its last word stands; whether it lives is watched elsewhere
