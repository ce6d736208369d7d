"""The FastAPI application: routes from the table of endpoints, the process's own pages, its start and end."""

import asyncio
import functools
import gc
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import orjson
import structlog
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from cells.api.log_budget import LogBudget
from listeners.metrics_page import MetricsPage
from router import failed_keys, openapi
from router.cells_client import CellsClient
from router.directory import Directory
from router.directory_file import DirectoryWatcher
from router.edge import BareRoute, Edge
from router.endpoints import ENDPOINTS, Endpoint
from router.gateway import Gateway
from router.metrics import Metrics
from router.notifications import Notifications
from router.settings import Settings, read_cell_key, read_directory_key, read_secret
from router.signing import Signer
from router.spreading import Spreading

log = structlog.get_logger()

_LOOPBACK: Final = "127.0.0.1"
_LATENESS_INTERVAL_S: Final = 0.5


def create_app(settings: Settings) -> Edge:
    """Build the application. Raises SettingsError where a secret can't be read.

    FastAPI routes and describes. Its stack of middleware (errors, exit stacks, telemetry: 40 microseconds a request) is
    left out: the edge stands straight before the router, answers every exception and has its own metrics.
    """
    metrics = Metrics()
    budget = LogBudget()

    async def wait_directory(version: int, timeout_ms: int) -> None:
        await watcher.wait_in_use(version, timeout_ms)

    cells = CellsClient(functools.partial(read_cell_key, settings.cell_keys_folder), wait_directory)

    async def changed(held: Directory) -> None:
        await cells.use(held.cells.values())
        cells.follow_directory(held.cell_of)

    signed_by = read_directory_key(settings.directory_key_file)
    watcher = DirectoryWatcher(settings.directory_file, settings.data_folder, signed_by, changed)
    pepper = read_secret(settings.pepper_file)
    gateway = Gateway(watcher, cells, pepper, metrics, budget, settings.bulkheads_off)
    keys = {name: read_secret(path) for name, path in settings.acquirer_key_files.items()}
    notifications = Notifications(watcher, cells, keys, budget, tuple(map(str, settings.proxies)))

    def is_partner(partner_id: str) -> bool:
        held = watcher.current
        return held is not None and partner_id in held.partners

    if settings.redis_url:
        secret_file = settings.redis_secret_file
        password = None if secret_file is None else read_secret(secret_file).hex()
        gateway.spreading = Spreading(
            settings.redis_url,
            gateway.remembered,
            Signer(pepper),
            is_partner,
            password=password,
            offer=watcher.offer,
        )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await watcher.load()
        page = MetricsPage(_measuring(watcher, cells, gateway, metrics))
        await page.start(_LOOPBACK, settings.metrics_port)
        tasks = [asyncio.create_task(watcher.watch()), asyncio.create_task(_measure_lateness(metrics))]
        failures = settings.data_folder / failed_keys.FOLDER
        tasks.append(asyncio.create_task(gateway.guard.failed_keys.run(failures)))
        if gateway.spreading is not None:
            tasks.append(asyncio.create_task(gateway.spreading.run()))
        for task in tasks:
            task.add_done_callback(_end_if_failed)
        # What lives until the end is not looked through at each collection.
        gc.collect()
        gc.freeze()
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await gateway.guard.failed_keys.keep(failures)
        await page.aclose()
        await cells.aclose()

    app = FastAPI(
        title="Bulkhead", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan
    )
    app.router.route_class = BareRoute
    for endpoint in ENDPOINTS:
        _add(app, endpoint, gateway)
    # For acquirers, who read another document than partners do: docs/notifications.md.
    app.add_api_route(
        "/v1/acquirers/{acquirer}/notifications",
        notifications.serve,
        methods=["POST"],
        include_in_schema=False,
        response_model=None,
    )
    _add_own_pages(app, watcher, cells)
    return Edge(app, metrics, budget, gateway.guard)


def _add(app: FastAPI, endpoint: Endpoint, gateway: Gateway) -> None:
    async def handle(request: Request) -> Response:
        return await gateway.serve(endpoint, request)

    app.add_api_route(
        endpoint.path,
        handle,
        methods=[endpoint.method],
        name=endpoint.name,
        operation_id=endpoint.name,
        summary=endpoint.summary,
        status_code=next(iter(endpoint.answers)),
        response_model=None,
        responses=openapi.responses(endpoint),
        openapi_extra=openapi.takes(endpoint),
    )


def _add_own_pages(app: FastAPI, watcher: DirectoryWatcher, cells: CellsClient) -> None:
    """Add what operators and tools ask: these know no partner and need no key."""
    document = orjson.dumps(openapi.document(app))

    async def describe(_: Request) -> Response:
        return Response(document, media_type="application/json")

    async def is_alive(_: Request) -> Response:
        return Response(b'{"status":"alive"}', media_type="application/json")

    async def is_ready(_: Request) -> Response:
        is_ready = watcher.current is not None and any(cells.connected().values())
        body = b'{"status":"ready"}' if is_ready else b'{"status":"not_ready"}'
        return Response(body, 200 if is_ready else 503, media_type="application/json")

    for path, page in (
        ("/livez", is_alive),
        ("/readyz", is_ready),
        ("/openapi.json", describe),
    ):
        app.add_api_route(path, page, methods=["GET"], include_in_schema=False, response_model=None)


def _measuring(
    watcher: DirectoryWatcher, cells: CellsClient, gateway: Gateway, metrics: Metrics
) -> Callable[[], Awaitable[bytes]]:
    """Return what renders all metrics as they are now."""

    async def measure() -> bytes:
        held = watcher.current
        metrics.running.set(gateway.admission.running)
        metrics.waiting.set(gateway.turns.waiting)
        metrics.directory_version.set(-1 if held is None else held.version)
        metrics.directory_age.set(watcher.age_s)
        metrics.directory_rejected.set(watcher.rejected)
        metrics.remembered.set(len(gateway.remembered))
        metrics.resent.set(cells.resent)
        spreading = gateway.spreading
        if spreading is not None:
            metrics.redis_connected.set(spreading.connected)
            for what in ("told", "heard", "left_out", "garbage"):
                metrics.news.labels(what).set(getattr(spreading, what))
        for name, is_up in cells.connected().items():
            metrics.cell_connected.labels(name).set(is_up)
            metrics.cell_running.labels(name).set(gateway.admission.running_of_cell(name))
        return await metrics.render()

    return measure


async def _measure_lateness(metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LATENESS_INTERVAL_S
        await asyncio.sleep(_LATENESS_INTERVAL_S)
        metrics.loop_late.set(max(0.0, loop.time() - due))


def _end_if_failed(task: asyncio.Task[None]) -> None:
    """End the process if a task that should run for ever does not: better started again than blind to revoked keys."""
    if task.cancelled():
        return
    error = task.exception()
    log.error("background_task_ended", error="no error" if error is None else type(error).__name__)
    os.kill(os.getpid(), signal.SIGTERM)
