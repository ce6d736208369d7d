"""What load there is: routers' counts of answers, by partner and in all, and how many bytes each partner's book has.

Counts begin anew where a router does; a difference that would be below zero counts from there.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx
import structlog
from prometheus_client.parser import text_string_to_metric_families

from control_plane import limits
from control_plane.data_folder import DataFolder
from control_plane.errors import ControlPlaneError
from control_plane.rebalancer import Answers
from control_plane.rebalancing import Resident
from control_plane.registry import Registry
from control_plane.settings import LOOPBACK, Settings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Counts:
    """What a router has answered since its start."""

    answers: int = 0
    server_errors: int = 0
    of_partners: Mapping[str, int] = field(default_factory=dict)


class LoadError(ControlPlaneError):
    """A router's metrics can't be read."""


class Load:
    """Looks at all routers. `fetch` gives the text of one router's metrics."""

    def __init__(
        self,
        registry: Registry,
        folder: DataFolder,
        routers: Sequence[str],
        fetch: Callable[[str], "asyncio.Future[str]"] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._folder = folder
        self._routers = tuple(routers)
        self._fetch = fetch or _fetch
        self._monotonic = monotonic
        self._last: dict[str, Counts] = {}
        self._answers = Answers(0, 0)
        self._requests: Counter[str] = Counter()
        self._looks: deque[tuple[float, Counter[str]]] = deque(maxlen=limits.LOAD_LOOKS_MAX)

    async def answers(self) -> Answers:
        """Count all routers' answers since this began to look. Raises LoadError where no router can be asked."""
        await self._look()
        return self._answers

    async def remember(self) -> None:
        """Look once and remember it, so that rates are those of some minutes."""
        try:
            await self._look()
        except LoadError as error:
            log.debug("load_not_seen", error=error.what)
            return
        self._looks.append((self._monotonic(), self._requests.copy()))

    async def residents(self) -> list[Resident]:
        """Give every partner with its cell and load. Requests are none where no router can be asked."""
        rates: dict[str, float] = {}
        try:
            if not self._looks:
                await self._look()
                self._looks.append((self._monotonic(), self._requests.copy()))
            began, before = self._looks[0]
            short_s = limits.LOAD_SPAN_MS_MIN / 1000 - (self._monotonic() - began)
            if short_s > 0:
                await asyncio.sleep(short_s)
            await self._look()
            seconds = max(self._monotonic() - began, limits.LOAD_SPAN_MS_MIN / 1000)
            rates = {name: (count - before[name]) / seconds for name, count in self._requests.items()}
        except LoadError as error:
            log.warning("load_not_seen", error=error.what)
        partners = [partner for partner in self._registry.partners() if partner.status != "onboarding"]
        sizes = await asyncio.to_thread(self._sizes, [(partner.id, partner.cell) for partner in partners])
        return [
            Resident(partner.id, partner.cell, rates.get(partner.id, 0.0), sizes[partner.id]) for partner in partners
        ]

    async def _look(self) -> None:
        texts = await asyncio.gather(*(self._fetch(router) for router in self._routers), return_exceptions=True)
        seen = 0
        for router, text in zip(self._routers, texts, strict=True):
            if isinstance(text, BaseException):
                if not isinstance(text, httpx.HTTPError | OSError):
                    raise text
                log.debug("router_not_asked", router=router, error=repr(text))
                continue
            now = await asyncio.to_thread(parse, text)
            before = self._last.get(router, now)
            self._last[router] = now
            seen += 1
            self._answers = Answers(
                self._answers.all + _rise(before.answers, now.answers),
                self._answers.server_errors + _rise(before.server_errors, now.server_errors),
            )
            for partner, count in now.of_partners.items():
                self._requests[partner] += _rise(before.of_partners.get(partner, 0), count)
        if not seen:
            raise LoadError(
                "no router tells its metrics", where=", ".join(self._routers), hint="see them: bulkhead status"
            )

    def _sizes(self, places: Sequence[tuple[str, str]]) -> dict[str, int]:
        # Of SQLite's books; what FoundationDB holds costs a move nothing where cells share a cluster.
        sizes: dict[str, int] = {}
        for partner, cell in places:
            try:
                sizes[partner] = (self._folder.cell_folder(cell) / "partners" / f"{partner}.sqlite").stat().st_size
            except OSError:
                sizes[partner] = 0
        return sizes


def routers_of(settings: Settings) -> list[str]:
    """Return where each router tells its metrics."""
    ports = range(settings.router_metrics_port, settings.router_metrics_port + settings.routers)
    return [f"http://{LOOPBACK}:{port}/metrics" for port in ports]


def parse(text: str) -> Counts:
    """Read a router's metrics. Raises LoadError."""
    answers = server_errors = 0
    of_partners: Counter[str] = Counter()
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "bulkhead_router_requests_total":
                    answers += int(sample.value)
                    server_errors += int(sample.value) if sample.labels["status"].startswith("5") else 0
                elif sample.name == "bulkhead_router_partner_requests_total":
                    of_partners[sample.labels["partner"]] += int(sample.value)
    except (ValueError, KeyError) as error:
        raise LoadError(f"a router's metrics can't be read: {error}", hint="run one version everywhere") from error
    return Counts(answers, server_errors, of_partners)


def _rise(before: int, now: int) -> int:
    return now - before if now >= before else now


async def _fetch(url: str) -> str:
    async with httpx.AsyncClient(timeout=limits.METRICS_TIMEOUT_MS / 1000) as client:
        answer = await client.get(url)
        answer.raise_for_status()
        if len(answer.content) > limits.METRICS_BYTES_MAX:
            raise OSError(f"{len(answer.content)} bytes of metrics are more than {limits.METRICS_BYTES_MAX}")
        return answer.text
