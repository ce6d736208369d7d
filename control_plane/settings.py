"""What an operator sets for a whole installation: one TOML file, environment over it, options over both.

Nothing about single partners goes in: that is the registry's.
"""

import os
import stat
import tomllib
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyAddress,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from cells.api import limits as wire_limits
from cells.api.bulkheads import Bulkhead
from control_plane import limits
from control_plane.approvals import ROLES_KIND, Kind
from control_plane.errors import SettingsError
from listeners import limits as listening

FILE_NAME: Final = "bulkhead.toml"
FILE_VARIABLE: Final = "BULKHEAD_SETTINGS"
PREFIX: Final = "BULKHEAD_"
LOOPBACK: Final = "127.0.0.1"
# Names of acquirers: the first, and the second simulator.
MAIN_ACQUIRER: Final = wire_limits.MAIN_ACQUIRER
SECOND_ACQUIRER: Final = "second"
# Where the audit log's head is copied to, instead of a file.
SYSLOG: Final = "syslog"
_PATHS: Final = frozenset({"data_folder", "control_cluster_file", "audit_key_file", "audit_head_copy"})

Port = Annotated[int, Field(ge=1, le=65_535)]


AcquirerName = Annotated[str, Field(pattern="^[a-z][a-z0-9_-]*$", max_length=wire_limits.ACQUIRER_KEY_CHARACTERS_MAX)]
BasisPoints = Annotated[int, Field(ge=0, le=wire_limits.FEE_BASIS_POINTS_MAX)]
FixedFee = Annotated[int, Field(ge=0, le=wire_limits.FEE_FIXED_MINOR_UNITS_MAX)]
# By the currency's number of decimals, 0 to 4.
FixedFees = tuple[FixedFee, FixedFee, FixedFee, FixedFee, FixedFee]


class AcquirerFees(BaseModel):
    """What was agreed with the acquirer: hundredths of a percent, and a fixed part in minor units.

    `fixed` is by the currency's number of decimals: [JPY, -, EUR, KWD, CLF] and their like. The defaults are what the
    simulator takes. Settlement files are compared with it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    basis_points: BasisPoints = 150
    fixed: FixedFees = (25, 25, 25, 250, 2_500)
    refund_basis_points: BasisPoints = 0
    refund_fixed: FixedFees = (0, 0, 0, 0, 0)


class Settings(BaseSettings):
    """One installation. Ports are the first of a row: cell or router number i gets the i-th after it.

    Environment variables that are not ours are left alone, also where they begin with BULKHEAD_: Kubernetes
    makes some for a service of that name.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    data_folder: Path = Path("data")
    cells: int = Field(default=4, ge=1, le=limits.CELLS_MAX)
    routers: int = Field(default=2, ge=1, le=limits.ROUTERS_MAX)
    spares_per_cell: int = Field(default=1, ge=0, le=limits.SPARES_PER_CELL_MAX)
    # A cell whose door is silent for so long is evacuated, where the cells share a FoundationDB cluster; 0: never.
    evacuate_after_s: int = Field(default=0, ge=0, le=limits.EVACUATE_AFTER_S_MAX)
    http_host: str = Field(default=LOOPBACK, min_length=1)
    http_port: Port = 8080
    # Proxies before the routers: other addresses may have a share of the connections each, for theirs are one client's.
    proxies: Annotated[frozenset[IPvAnyAddress], NoDecode] = frozenset(map(ip_address, listening.PROXIES))
    # Where the admin API listens beside its Unix socket; unset: nowhere. Put TLS before it where it is not loopback.
    admin_host: str = Field(default=LOOPBACK, min_length=1)
    admin_port: Port | None = None
    acquirer_port: Port = 8090
    door_port: Port = 8101
    # The port of the first cell's door as routers are told it, where that is another one: a proxy or NAT between them.
    door_advertised_port: Port | None = None
    metrics_port: Port = 8201
    # Where the first router tells its metrics, on loopback: they name partners.
    router_metrics_port: Port = 8181
    ray_port: Port = 8301
    acquirer_url: str = ""  # the acquirer `main`; empty: `up` starts the simulator and uses that
    # Further acquirers, for partners whose profile names them.
    acquirers: Annotated[dict[AcquirerName, str], NoDecode] = Field(
        default_factory=dict, max_length=wire_limits.ACQUIRERS_MAX - 2
    )
    # Where a second simulator listens, as the acquirer `second`; unset: none is started.
    second_acquirer_port: Port | None = None
    # Redis, by which routers hear sooner of a new directory and of 429s. Empty: `up` starts one; "none": no Redis.
    redis_url: str = ""
    redis_port: Port = 6390  # where that one listens
    acquirer_fees: AcquirerFees = AcquirerFees()
    store: Literal["sqlite", "fdb"] = "sqlite"
    # Where `up` is root: the first of a block of numbers for its processes' users (users.py); 0: all run as one user.
    first_uid: int | None = Field(default=None, ge=0, le=limits.UID_MAX - limits.USERS_MAX)
    # FoundationDB's cluster files, where the store is fdb: one that all cells share, or one a cell in their order.
    cluster_files: Annotated[tuple[Path, ...], NoDecode] = ()
    # The one for the control plane's own data; unset: the one that all cells share.
    control_cluster_file: Path | None = None
    # The key of the audit log's hashes, elsewhere than with the other secrets; unset: among them.
    audit_key_file: Path | None = None
    # A second place for the audit log's head: a file, on another disk or host's share, or "syslog"; empty: none.
    audit_head_copy: str = ""
    # Which changes need a second operator: live_keys, unknown_resolve, deletion, and always with them roles.
    two_person_approval: Annotated[tuple[Kind, ...], NoDecode] = ()
    # Whether what others on the network can read is meant (exposure.py); `up` refuses it otherwise.
    insecure: bool = False
    # For test installations: workers obey faults in metadata, and bulkheads can be switched off to see them missed.
    fault_injection: bool = False
    bulkheads_off: Annotated[tuple[Bulkhead, ...], NoDecode] = ()

    @field_validator("*", mode="before")
    @classmethod
    def _check_kind(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name not in {"fault_injection", "insecure"}:
            raise ValueError("should be a number or a text")
        if isinstance(value, str | Path) and "\0" in str(value):
            raise ValueError("should hold no NUL character")
        return value

    @field_validator("data_folder")
    @classmethod
    def _make_absolute(cls, folder: Path) -> Path:
        return folder.expanduser().absolute()

    @field_validator("acquirer_url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if url and not _is_url(url):
            raise ValueError("must be an http:// or https:// URL, or empty for the simulator")
        return url.rstrip("/")

    @field_validator("acquirers", mode="before")
    @classmethod
    def _split_acquirers(cls, acquirers: Any) -> Any:
        # One text, as the environment and options have it: name=url with commas between.
        if not isinstance(acquirers, str):
            return acquirers
        pairs = [pair.partition("=") for pair in acquirers.split(",") if pair]
        if len({name for name, _, _ in pairs}) < len(pairs):
            raise ValueError("one name stands there twice")
        return {name.strip(): url.strip() for name, _, url in pairs}

    @field_validator("acquirers")
    @classmethod
    def _check_acquirers(cls, acquirers: dict[str, str]) -> dict[str, str]:
        for name, url in acquirers.items():
            if name == MAIN_ACQUIRER:
                raise ValueError(f"{MAIN_ACQUIRER} is what acquirer_url sets")
            if not _is_url(url):
                raise ValueError(f"{name} must be name=URL, with an http:// or https:// URL")
        return {name: url.rstrip("/") for name, url in acquirers.items()}

    @model_validator(mode="after")
    def _check_second(self) -> "Settings":
        if self.second_acquirer_port is not None and SECOND_ACQUIRER in self.acquirers:
            raise ValueError(
                f"second_acquirer_port: an acquirer is called {SECOND_ACQUIRER} already; call it otherwise"
            )
        return self

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: str) -> str:
        if url not in {"", "none"}:
            parts = urlsplit(url)
            if parts.scheme not in {"redis", "rediss"} or not parts.hostname:
                raise ValueError('must be a redis:// or rediss:// URL, "none", or empty for a server of its own')
        return url

    @field_validator("cluster_files", mode="before")
    @classmethod
    def _split_files(cls, files: Any) -> Any:
        # One text, as the environment and options have it: names with commas between.
        return [name for name in files.split(",") if name] if isinstance(files, str) else files

    @field_validator("cluster_files")
    @classmethod
    def _make_files_absolute(cls, files: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(file.expanduser().absolute() for file in files)

    @field_validator("control_cluster_file", "audit_key_file")
    @classmethod
    def _make_file_absolute(cls, file: Path | None) -> Path | None:
        return None if file is None else file.expanduser().absolute()

    @field_validator("audit_head_copy", mode="before")
    @classmethod
    def _make_copy_absolute(cls, place: Any) -> Any:
        text = str(place) if isinstance(place, Path) else place
        if not isinstance(text, str) or text in {"", SYSLOG}:
            return text
        return str(Path(text).expanduser().absolute())

    @field_validator("bulkheads_off", mode="before")
    @classmethod
    def _split_bulkheads(cls, names: Any) -> Any:
        return [name for name in names.split(",") if name] if isinstance(names, str) else names

    @model_validator(mode="after")
    def _check_bulkheads(self) -> "Settings":
        if self.bulkheads_off and not self.fault_injection:
            raise ValueError("bulkheads_off: only a test installation goes without one; set fault_injection, too")
        return self

    @field_validator("proxies", mode="before")
    @classmethod
    def _split_addresses(cls, addresses: Any) -> Any:
        return [one.strip() for one in addresses.split(",") if one.strip()] if isinstance(addresses, str) else addresses

    @field_validator("two_person_approval", mode="before")
    @classmethod
    def _split_kinds(cls, names: Any) -> Any:
        return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names

    @model_validator(mode="after")
    def _check_kinds(self) -> "Settings":
        if self.two_person_approval and ROLES_KIND not in self.two_person_approval:
            raise ValueError(
                f"two_person_approval: name {ROLES_KIND}, too; else one who may add operators makes the second person"
            )
        return self

    @model_validator(mode="after")
    def _check_store(self) -> "Settings":
        files = len(self.cluster_files)
        if self.store == "sqlite" and (files or self.control_cluster_file is not None):
            raise ValueError('cluster_files: these are for FoundationDB; set store = "fdb" or leave them out')
        if self.store == "fdb" and files not in {1, self.cells}:
            raise ValueError(
                f"cluster_files: {files} files for {self.cells} cells; name one that all cells share, or one for each"
            )
        if files > 1 and self.control_cluster_file is None:
            raise ValueError("control_cluster_file: with a cluster for each cell, name the control plane's own, too")
        return self

    @model_validator(mode="after")
    def _keep_ports_apart(self) -> "Settings":
        taken: dict[int, str] = {}
        for name, (first, count) in self.port_rows().items():
            if first + count - 1 > 65_535:
                raise ValueError(f"{name}: {count} ports from {first} on go past 65535")
            for port in range(first, first + count):
                if port in taken:
                    raise ValueError(f"{name} and {taken[port]} both want port {port}: move one of them")
                taken[port] = name
        return self

    @model_validator(mode="after")
    def _check_advertised_row(self) -> "Settings":
        # No row of ours: somebody else listens there, or nobody does on this machine.
        if self.door_advertised_port is not None and self.door_advertised_port + self.cells - 1 > 65_535:
            raise ValueError(f"door_advertised_port: {self.cells} ports from there on go past 65535")
        return self

    @property
    def starts_simulator(self) -> bool:
        """Whether the acquirer is our own simulator."""
        return not self.acquirer_url

    @property
    def starts_redis(self) -> bool:
        """Whether Redis is a server of our own."""
        return not self.redis_url

    @property
    def acquirer(self) -> str:
        """The acquirer's base URL."""
        return self.acquirer_url or f"http://{LOOPBACK}:{self.acquirer_port}"

    @property
    def acquirer_urls(self) -> dict[str, str]:
        """Every acquirer's base URL by its name."""
        urls = {MAIN_ACQUIRER: self.acquirer, **self.acquirers}
        if self.second_acquirer_port is not None:
            urls[SECOND_ACQUIRER] = f"http://{LOOPBACK}:{self.second_acquirer_port}"
        return urls

    @property
    def simulators(self) -> frozenset[str]:
        """Names of the acquirers that are simulators of our own."""
        own = {MAIN_ACQUIRER: self.starts_simulator, SECOND_ACQUIRER: self.second_acquirer_port is not None}
        return frozenset(name for name, is_own in own.items() if is_own)

    def cluster_file_of(self, cell: str) -> Path:
        """Give the FoundationDB cluster file of a cell."""
        return self.cluster_files[self.cell_names.index(cell) if len(self.cluster_files) > 1 else 0]

    @property
    def cluster_file_of_registry(self) -> Path:
        """The FoundationDB cluster file of the control plane's own data."""
        return self.control_cluster_file or self.cluster_files[0]

    @property
    def cell_names(self) -> tuple[str, ...]:
        """`cell-0` and so on."""
        return tuple(f"cell-{index}" for index in range(self.cells))

    @property
    def router_names(self) -> tuple[str, ...]:
        """`router-0` and so on."""
        return tuple(f"router-{index}" for index in range(self.routers))

    def port_rows(self) -> dict[str, tuple[int, int]]:
        """Give the first port and the number of ports of each row, by the setting's name."""
        rows = {
            "http_port": (self.http_port, self.routers),
            "door_port": (self.door_port, self.cells),
            "metrics_port": (self.metrics_port, self.cells),
            "router_metrics_port": (self.router_metrics_port, self.routers),
            "ray_port": (self.ray_port, self.cells),
        }
        if self.second_acquirer_port is not None:
            rows["second_acquirer_port"] = (self.second_acquirer_port, 1)
        if self.admin_port is not None:
            rows["admin_port"] = (self.admin_port, 1)
        if self.starts_redis:
            rows["redis_port"] = (self.redis_port, 1)
        if self.starts_simulator:
            rows["acquirer_port"] = (self.acquirer_port, 1)
        return rows

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options, then the environment; `load` puts the file below both."""
        return init_settings, env_settings


def _is_url(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def find_file(named: Path | None) -> Path | None:
    """Give the settings file: the one named, else BULKHEAD_SETTINGS, else ./bulkhead.toml where it exists."""
    if named is None and os.environ.get(FILE_VARIABLE):
        named = Path(os.environ[FILE_VARIABLE])
    if named is None:
        return Path(FILE_NAME) if Path(FILE_NAME).exists() else None
    if not named.is_file():
        raise SettingsError(
            f"there is no settings file {named}",
            where=f"--settings or {FILE_VARIABLE}",
            hint=f"name an existing file, or leave it out: every setting has a default, and ./{FILE_NAME} is read",
        )
    return named


def load(named_file: Path | None, options: dict[str, Any]) -> Settings:
    """Read the settings. Options that are None count as not given. Raises SettingsError."""
    file = find_file(named_file)
    given = {name: value for name, value in options.items() if value is not None}
    named = set(given)
    in_file = _read_names(file)
    # A relative path in a file means: beside that file, wherever the command is run.
    if file is not None:
        in_file = {name: _beside(file, name, value) for name, value in in_file.items()}

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *sources: Any, **named: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            above = super().settings_customise_sources(settings_cls, *sources, **named)
            return *above, InitSettingsSource(settings_cls, in_file)

    try:
        return FromFile(**given)
    except ValidationError as error:
        raise _explain(error, file, named, set(in_file)) from error


def _beside(file: Path, name: str, value: Any) -> Any:
    if name in _PATHS and isinstance(value, str) and value not in {"", SYSLOG}:
        return str(file.absolute().parent / Path(value).expanduser())
    if name == "cluster_files" and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return [str(file.absolute().parent / Path(one).expanduser()) for one in value]
    return value


def _read_names(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(_read_file(file).decode("utf-8"))
    except RecursionError as error:
        raise SettingsError("not TOML: nested too deeply", where=str(file), hint="mend it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file can't be read: {error}", where=str(file), hint="mend it") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"not TOML: {error}", where=str(file), hint="mend the line named above") from error


def _read_file(file: Path) -> bytes:
    # Without O_NONBLOCK a pipe in its place would be waited for, for ever.
    with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise OSError("it is no regular file")
        raw = opened.read(limits.SETTINGS_BYTES_MAX + 1)
    if len(raw) > limits.SETTINGS_BYTES_MAX:
        raise OSError(f"it has more than {limits.SETTINGS_BYTES_MAX} bytes")
    return raw


def _explain(error: ValidationError, file: Path | None, given: set[str], in_file: set[str]) -> SettingsError:
    whats: list[str] = []
    wheres: list[str] = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            whats.append(f"{name}: there is no such setting")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            # A URL of Redis has its password in it.
            given_as = "" if name == "redis_url" else f" (it is {problem['input']!r})"
            whats.append(f"{name}: {message}{given_as}" if name else message)
        if name in given:
            wheres.append(f"option --{name.replace('_', '-')}")
        elif (PREFIX + name).upper() in {variable.upper() for variable in os.environ}:
            wheres.append(f"environment {(PREFIX + name).upper()}")
        elif name in in_file or file is not None:
            wheres.append(str(file))
    return SettingsError(
        "; ".join(whats),
        where=", ".join(dict.fromkeys(wheres)) or "the defaults",
        hint="known settings: " + ", ".join(sorted(Settings.model_fields)),
    )
