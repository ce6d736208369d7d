"""The router's metrics. Partners stand as labels on counters only, never on histograms; no path stands anywhere."""

import asyncio

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

# Seconds. Dense where the goals are (10 and 50 ms), up to the client's deadline.
_DURATIONS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """One process's metrics, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "bulkhead_router_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._durations = Histogram(
            "bulkhead_router_request_seconds",
            "From the head's arrival to the answer's first byte.",
            ["route"],
            buckets=_DURATIONS,
            registry=registry,
        )
        self._partners = Counter(
            "bulkhead_router_partner_requests",
            "Requests of each partner, by class of answer.",
            ["partner", "outcome"],
            registry=registry,
        )
        self.running = Gauge("bulkhead_router_requests_running", "Requests that run now.", registry=registry)
        self.cell_running = Gauge(
            "bulkhead_router_cell_requests_running", "Requests that run now, by cell.", ["cell"], registry=registry
        )
        self.directory_version = Gauge(
            "bulkhead_router_directory_version", "Version of the directory that is held.", registry=registry
        )
        self.directory_age = Gauge(
            "bulkhead_router_directory_age_seconds",
            "Since the published directory was last found to be the one that is held.",
            registry=registry,
        )
        self.directory_rejected = Gauge(
            "bulkhead_router_directory_rejected", "Published directories that were not taken.", registry=registry
        )
        self.remembered = Gauge(
            "bulkhead_router_remembered_429s", "Partners whose 429 is remembered now.", registry=registry
        )
        self.answered_from_memory = Counter(
            "bulkhead_router_remembered_429_answers", "New payments answered by a remembered 429.", registry=registry
        )
        self.over_budget = Counter(
            "bulkhead_router_over_budget",
            "Requests of partners that had used up their CPU time here.",
            registry=registry,
        )
        self.waiting = Gauge(
            "bulkhead_router_requests_waiting", "Requests that wait for their partner's turn now.", registry=registry
        )
        self.guesses_limited = Counter(
            "bulkhead_router_failed_authentications_limited",
            "Failed authentications of an address past its bound.",
            registry=registry,
        )
        self.redis_connected = Gauge(
            "bulkhead_router_redis_connected", "Whether remembered 429s are spread by Redis now.", registry=registry
        )
        self.news = Gauge(
            "bulkhead_router_redis_news",
            "News of 429s: told, heard, left_out; garbage: unsigned or unreadable, directories too.",
            ["what"],
            registry=registry,
        )
        self.cell_connected = Gauge(
            "bulkhead_router_cell_connected", "Whether the cell can be asked now.", ["cell"], registry=registry
        )
        self.resent = Gauge(
            "bulkhead_router_commands_resent", "Commands sent again after a lost connection.", registry=registry
        )
        self.loop_late = Gauge(
            "bulkhead_router_loop_late_seconds", "How late the event loop's last wake-up came.", registry=registry
        )
        # Looking a labelled child up costs more than raising it; there are few, so each is kept.
        self._request_children: dict[tuple[str, str, int], Counter] = {}
        self._duration_children: dict[str, Histogram] = {}
        self._partner_children: dict[tuple[str, int], Counter] = {}

    def observe(self, method: str, route: str, status: int, seconds: float, partner_id: str | None) -> None:
        """Count one answer."""
        requests = self._request_children.get((method, route, status))
        if requests is None:
            requests = self._request_children[method, route, status] = self._requests.labels(method, route, status)
        requests.inc()
        durations = self._duration_children.get(route)
        if durations is None:
            durations = self._duration_children[route] = self._durations.labels(route)
        durations.observe(seconds)
        if partner_id is not None:
            outcome = 429 if status == 429 else status // 100
            partners = self._partner_children.get((partner_id, outcome))
            if partners is None:
                label = "429" if outcome == 429 else f"{outcome}xx"
                partners = self._partner_children[partner_id, outcome] = self._partners.labels(partner_id, label)
            partners.inc()

    def turned_away(self, method: str, status: int) -> None:
        """Count an answer to a bad key past its address' bound, of which no request was made."""
        self.guesses_limited.inc()
        key = (method, "turned_away", status)
        requests = self._request_children.get(key)
        if requests is None:
            requests = self._request_children[key] = self._requests.labels(*key)
        requests.inc()

    async def render(self) -> bytes:
        """Give the text format; in a thread, since a thousand partners take a while."""
        return await asyncio.to_thread(generate_latest, self.registry)
