"""What an operator sets for a whole installation: one TOML file, environment over it, options over both.

Nothing about single partners goes in: that is the registry's.
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from cells.api import limits as wire_limits
from control_plane import limits
from control_plane.errors import SettingsError

FILE_NAME: Final = "bulkhead.toml"
FILE_VARIABLE: Final = "BULKHEAD_SETTINGS"
PREFIX: Final = "BULKHEAD_"
LOOPBACK: Final = "127.0.0.1"

Port = Annotated[int, Field(ge=1, le=65_535)]


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
    routers: int = Field(default=1, ge=1, le=limits.ROUTERS_MAX)
    spares_per_cell: int = Field(default=1, ge=0, le=limits.SPARES_PER_CELL_MAX)
    http_host: str = Field(default=LOOPBACK, min_length=1)
    http_port: Port = 8080
    acquirer_port: Port = 8090
    door_port: Port = 8101
    metrics_port: Port = 8201
    ray_port: Port = 8301
    acquirer_url: str = ""  # empty: `up` starts the simulator and uses that
    acquirer_fees: AcquirerFees = AcquirerFees()

    @field_validator("data_folder")
    @classmethod
    def _make_absolute(cls, folder: Path) -> Path:
        return folder.expanduser().absolute()

    @field_validator("acquirer_url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if url:
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError("must be an http:// or https:// URL, or empty for the simulator")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _keep_ports_apart(self) -> "Settings":
        taken: dict[int, str] = {}
        for name, first, count in self._port_rows():
            if first + count - 1 > 65_535:
                raise ValueError(f"{name}: {count} ports from {first} on go past 65535")
            for port in range(first, first + count):
                if port in taken:
                    raise ValueError(f"{name} and {taken[port]} both want port {port}: move one of them")
                taken[port] = name
        return self

    @property
    def starts_simulator(self) -> bool:
        """Whether the acquirer is our own simulator."""
        return not self.acquirer_url

    @property
    def acquirer(self) -> str:
        """The acquirer's base URL."""
        return self.acquirer_url or f"http://{LOOPBACK}:{self.acquirer_port}"

    @property
    def cell_names(self) -> tuple[str, ...]:
        """`cell-0` and so on."""
        return tuple(f"cell-{index}" for index in range(self.cells))

    @property
    def router_names(self) -> tuple[str, ...]:
        """`router-0` and so on."""
        return tuple(f"router-{index}" for index in range(self.routers))

    def _port_rows(self) -> list[tuple[str, int, int]]:
        rows = [
            ("http_port", self.http_port, self.routers),
            ("door_port", self.door_port, self.cells),
            ("metrics_port", self.metrics_port, self.cells),
            ("ray_port", self.ray_port, self.cells),
        ]
        return [*rows, ("acquirer_port", self.acquirer_port, 1)] if self.starts_simulator else rows

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


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
    in_file = _read_names(file)
    # A relative folder in a file means: beside that file, wherever the command is run.
    if file is not None and "data_folder" in in_file and "data_folder" not in given:
        folder = in_file["data_folder"]
        if isinstance(folder, str) and PREFIX + "DATA_FOLDER" not in os.environ:
            given["data_folder"] = file.absolute().parent / Path(folder).expanduser()

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        return FromFile(**given)
    except ValidationError as error:
        raise _explain(error, file, set(given), set(in_file)) from error


def _read_names(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file can't be read: {error}", where=str(file), hint="mend it") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"not TOML: {error}", where=str(file), hint="mend the line named above") from error


def _explain(error: ValidationError, file: Path | None, given: set[str], in_file: set[str]) -> SettingsError:
    whats: list[str] = []
    wheres: list[str] = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            whats.append(f"{name}: there is no such setting")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            whats.append(f"{name}: {message} (it is {problem['input']!r})" if name else message)
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
