"""Which processes an installation has, from its settings and cells alone. Pure: nothing is read or started here."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from control_plane import limits
from control_plane.data_folder import DataFolder, Instance
from control_plane.places import place_of_cell
from control_plane.process_table import MARKER
from control_plane.registry_records import Cell
from control_plane.settings import LOOPBACK, MAIN_ACQUIRER, SECOND_ACQUIRER, Settings

# Gives a digest of the secrets that a cell's processes hold, of None: those that are no cell's.
SecretsDigest = Callable[[str | None], str]

# Stopped in the reverse of this order: who asks before who is asked.
STAGE_FOUNDATIONS: Final = 0
STAGE_DOORS: Final = 1
STAGE_ROUTERS: Final = 2
# Numbers of users; those of cells follow (limits.FIRST_CELL_USER).
_USER_OF_ROUTERS: Final = 0
_USER_OF_REDIS: Final = 1
_USER_OF_ACQUIRERS: Final = {MAIN_ACQUIRER: 2, SECOND_ACQUIRER: 3}
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - as Ray has it
# `ray start` itself looks after them once a second. Without its raylet it ends; its GCS it starts again.
RAY_PARTS: Final = ("raylet",)
RAY_PARTS_STARTED_AGAIN: Final = ("gcs_server",)


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process as it should run.

    `needs` names what is started before it, and without which it is started anew. `parts` are the names of children
    without which it is of no use itself, `parts_started_again` of those that it starts again. `scratch` is a folder of
    its own that is emptied before each start. Nobody waits for one that is `optional`: the installation is ready
    without it. `user_number` says which of the installation's users it runs as, `uid` who that is (users.py; None: the
    user of `up`). Of the installation's folders it `owns` some and `reads` others; elsewhere it `uses` some, and reads
    what is `foreign`.
    """

    name: str
    role: str  # acquirer, redis, ray, door, router
    cell: str | None
    stage: int
    argv: tuple[str, ...]
    config: dict[str, Any]
    config_file: Path
    environment: dict[str, str]
    host: str
    port: int
    fingerprint: str  # what must be equal for a running process to be adopted
    needs: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    parts_started_again: tuple[str, ...] = ()
    stopped_ms_max: int = limits.STOPPED_MS_MAX
    silent_ms_max: int = field(default_factory=lambda: limits.UNRESPONSIVE_MS_MAX)
    scratch: Path | None = None
    optional: bool = False
    user_number: int | None = None
    owns: tuple[Path, ...] = ()
    reads: tuple[Path, ...] = ()
    uses: tuple[Path, ...] = ()
    foreign: tuple[Path, ...] = ()
    uid: int | None = None

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"{self.host}:{self.port}"

    @property
    def marker(self) -> str:
        """What it and its descendants carry in their environment."""
        return self.environment[MARKER]


def plan(
    settings: Settings,
    folder: DataFolder,
    instance: Instance,
    cells: Iterable[Cell],
    version: str,
    secrets_digest: SecretsDigest,
) -> tuple[ProcessSpec, ...]:
    """Give all processes, in the order of their start. That a cell comes or goes changes no other process."""
    running = [cell for cell in cells if cell.is_running]
    planned: list[_Planned] = [*_plan_acquirer(settings, folder), *_plan_redis(settings, folder)]
    planned += [_plan_ray_head(settings, folder, instance, cell) for cell in running]
    planned += [_plan_door(settings, folder, instance, cell) for cell in running]
    for index, name in enumerate(settings.router_names):
        planned.append(_plan_router(settings, folder, index, name))
    specs: list[ProcessSpec] = []
    for process in planned:
        config_file = folder.run / f"{process.name}.config.json"
        # -P: what lies in the working folder is never imported.
        argv = (sys.executable, "-P", "-m", process.module, "--config", str(config_file))
        identity = json.dumps([argv, process.config, version, secrets_digest(process.cell)], sort_keys=True)
        specs.append(
            ProcessSpec(
                name=process.name,
                role=process.role,
                cell=process.cell,
                stage=process.stage,
                argv=argv,
                config=process.config,
                config_file=config_file,
                environment={
                    MARKER: f"{instance.id}/{process.name}",
                    # Ray's processes give themselves titles, which must not overwrite the marker (setproctitle).
                    "SPT_NOENV": "1",
                    "PYTHONUNBUFFERED": "1",
                },
                host=process.host,
                port=process.port,
                fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
                needs=process.needs,
                parts=RAY_PARTS if process.role == "ray" else (),
                parts_started_again=RAY_PARTS_STARTED_AGAIN if process.role == "ray" else (),
                stopped_ms_max=limits.STOPPED_RAY_MS_MAX if process.role == "ray" else limits.STOPPED_MS_MAX,
                silent_ms_max=limits.SILENT_RAY_MS_MAX if process.role == "ray" else limits.UNRESPONSIVE_MS_MAX,
                scratch=process.scratch,
                optional=process.optional,
                user_number=process.user_number,
                owns=(*process.owns, folder.log_folder(process.name)),
                reads=process.reads,
                uses=process.uses,
                foreign=process.foreign,
            )
        )
    return tuple(specs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    name: str
    role: str
    module: str
    stage: int
    port: int
    config: dict[str, Any]
    host: str = LOOPBACK
    cell: str | None = None
    needs: tuple[str, ...] = ()
    scratch: Path | None = None
    optional: bool = False
    user_number: int
    owns: tuple[Path, ...]
    reads: tuple[Path, ...]
    uses: tuple[Path, ...] = ()
    foreign: tuple[Path, ...] = ()


def _plan_acquirer(settings: Settings, folder: DataFolder) -> list[_Planned]:
    simulators = [("acquirer", MAIN_ACQUIRER, settings.acquirer_port)] if settings.starts_simulator else []
    if settings.second_acquirer_port is not None:
        simulators.append(("acquirer-second", SECOND_ACQUIRER, settings.second_acquirer_port))
    host = LOOPBACK if settings.http_host in {"0.0.0.0", "::"} else settings.http_host  # noqa: S104 - compared only
    host = f"[{host}]" if ":" in host else host
    routers = range(settings.http_port, settings.http_port + settings.routers)
    return [
        _Planned(
            name=name,
            role="acquirer",
            module="acquirer_simulator",
            stage=STAGE_FOUNDATIONS,
            port=port,
            config={
                "host": LOOPBACK,
                "port": port,
                "record_file": str(folder.acquirer_folder(acquirer) / "record.sqlite"),
                "log_file": str(folder.log_file(name)),
                "notify_urls": [f"http://{host}:{router}/v1/acquirers/{acquirer}/notifications" for router in routers],
                "notify_secret_file": str(folder.acquirer_secret_file(acquirer)),
            },
            user_number=_USER_OF_ACQUIRERS[acquirer],
            owns=(folder.acquirer_folder(acquirer),),
            reads=(folder.acquirer_secret_file(acquirer),),
        )
        for name, acquirer, port in simulators
    ]


def _plan_redis(settings: Settings, folder: DataFolder) -> list[_Planned]:
    if not settings.starts_redis:
        return []
    return [
        _Planned(
            name="redis",
            role="redis",
            module="control_plane.redis_server",
            stage=STAGE_FOUNDATIONS,
            port=settings.redis_port,
            config={
                "host": LOOPBACK,
                "port": settings.redis_port,
                "secret_file": str(folder.redis_secret_file),
                "server_config_file": str(folder.redis_config_file),
            },
            optional=True,
            user_number=_USER_OF_REDIS,
            owns=(folder.redis_config_file.parent,),
            reads=(folder.redis_secret_file,),
        )
    ]


def _plan_ray_head(settings: Settings, folder: DataFolder, instance: Instance, cell: Cell) -> _Planned:
    name = f"{cell.name}.ray"
    scratch = _scratch(instance, cell)
    config = {
        "cell": cell.name,
        "ray_port": cell.ray_port,
        "temp_folder": str(scratch),
        "token_file": str(folder.ray_token_file(cell.name)),
        "logs_folder": str(folder.log_folder(name)),
        # Not for Ray: workers outlive their door and keep what they were started with, so a change begins at Ray.
        **_workers_config(settings),
    }
    return _Planned(
        name=name,
        role="ray",
        module="cells.ray_head",
        cell=cell.name,
        stage=STAGE_FOUNDATIONS,
        port=cell.ray_port,
        config=config,
        scratch=scratch,
        **_user_of_cell(settings, folder, instance, cell),
    )


def _plan_door(settings: Settings, folder: DataFolder, instance: Instance, cell: Cell) -> _Planned:
    name = f"{cell.name}.door"
    config = {
        "cell": cell.name,
        "host": cell.host,
        "port": cell.door_port,
        "metrics_port": cell.metrics_port,
        "ray_address": f"{cell.host}:{cell.ray_port}",
        "token_file": str(folder.ray_token_file(cell.name)),
        "secret_file": str(folder.cell_secret_file(cell.name)),
        "folder": str(folder.cell_folder(cell.name)),
        "place": place_of_cell(settings, folder, instance, cell),
        "spares": settings.spares_per_cell,
        "acquirers": settings.acquirer_urls,
        "log_file": str(folder.log_file(name)),
        "logs_folder": str(folder.log_folder(cell.name)),
        **_workers_config(settings),
    }
    return _Planned(
        name=name,
        role="door",
        module="cells.door",
        cell=cell.name,
        stage=STAGE_DOORS,
        host=cell.host,
        port=cell.door_port,
        config=config,
        needs=(f"{cell.name}.ray",),
        **_user_of_cell(settings, folder, instance, cell),
    )


def _user_of_cell(settings: Settings, folder: DataFolder, instance: Instance, cell: Cell) -> dict[str, Any]:
    """Give who a cell's processes run as, and what is theirs: door, Ray and workers share one user."""
    return {
        "user_number": limits.FIRST_CELL_USER + cell.slot,
        "owns": (folder.cell_folder(cell.name),),
        "reads": (folder.cell_secret_file(cell.name), folder.ray_token_file(cell.name)),
        # Ray's sockets and logs, and what its object store lies in.
        "uses": (_scratch(instance, cell), _SHARED_MEMORY),
        "foreign": () if settings.store == "sqlite" else (Path(cell.cluster_file or settings.cluster_files[0]),),
    }


def _scratch(instance: Instance, cell: Cell) -> Path:
    return ray_folder(instance.id) / str(cell.slot)


def _workers_config(settings: Settings) -> dict[str, Any]:
    return {
        "fault_injection": settings.fault_injection,
        "bulkheads_off": sorted(settings.bulkheads_off),
    }


def _redis_config(settings: Settings, folder: DataFolder) -> dict[str, Any]:
    if settings.starts_redis:
        url = f"redis://{LOOPBACK}:{settings.redis_port}/0"
        return {"redis_url": url, "redis_secret_file": str(folder.redis_secret_file)}
    return {"redis_url": "" if settings.redis_url == "none" else settings.redis_url, "redis_secret_file": None}


def _plan_router(settings: Settings, folder: DataFolder, index: int, name: str) -> _Planned:
    config = {
        "name": name,
        "host": settings.http_host,
        "port": settings.http_port + index,
        "metrics_port": settings.router_metrics_port + index,
        "directory_file": str(folder.directory_file),
        "directory_key_file": str(folder.directory_public_key_file),
        "data_folder": str(folder.router_folder(name)),
        "pepper_file": str(folder.pepper_file),
        "cell_keys_folder": str(folder.router_keys),
        "acquirer_key_files": {name: str(folder.acquirer_secret_file(name)) for name in settings.acquirer_urls},
        **_redis_config(settings, folder),
        "log_file": str(folder.log_file(name)),
        "proxies": sorted(map(str, settings.proxies)),
        "bulkheads_off": sorted(settings.bulkheads_off),
    }
    return _Planned(
        name=name,
        role="router",
        module="router",
        stage=STAGE_ROUTERS,
        host=settings.http_host,
        port=settings.http_port + index,
        config=config,
        user_number=_USER_OF_ROUTERS,
        owns=(folder.router_folder(name),),
        reads=(
            folder.directory_file.parent,
            folder.router_keys,
            folder.pepper_file,
            *(folder.acquirer_secret_file(acquirer) for acquirer in settings.acquirer_urls),
            *((folder.redis_secret_file,) if settings.starts_redis else ()),
        ),
    )


def ray_folder(instance_id: str) -> Path:
    """Give the folder of the cells' Ray sessions.

    Short, because Unix sockets' names are limited to 107 bytes (unix(7)) and Ray appends about 70 of its own.
    """
    return Path("/tmp") / f"bulkhead-{instance_id[:8]}"  # noqa: S108 - made with 0700 and checked, see supervisor
