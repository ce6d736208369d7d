"""The router's settings, as its supervisor writes them; and the secrets that they point to."""

from pathlib import Path
from typing import Annotated, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress, ValidationError

from cells.api.bulkheads import ALL_ON, Bulkhead

SECRET_BYTES: Final = 32


class SettingsError(ValueError):
    """The settings or a file that they name can't be used; the message says which and why."""


class Settings(BaseModel):
    """One router process. `data_folder` is its own, `directory_file` is published by the control plane."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern="^[a-z0-9-]{1,40}$")]
    host: str
    port: Annotated[int, Field(ge=0, le=65_535)]
    metrics_port: Annotated[int, Field(ge=1, le=65_535)]  # on loopback
    directory_file: Path
    directory_key_file: Path  # the public key under which the control plane signs it
    data_folder: Path
    pepper_file: Path
    cell_keys_folder: Path  # a cell's key is <cell>.router.key in it; cells come and go, so each is read when it comes
    acquirer_key_files: dict[str, Path] = {}
    redis_url: str = ""  # empty: each router learns of 429s by itself, and of a new directory by its file
    redis_secret_file: Path | None = None  # what the password is made of, where it does not stand in the URL
    proxies: frozenset[IPvAnyAddress] = frozenset()  # of whose connections each is somebody else's
    log_file: str | None = None
    bulkheads_off: frozenset[Bulkhead] = ALL_ON


def read_settings(path: Path) -> Settings:
    """Read the settings. Raises SettingsError."""
    try:
        return Settings.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"the settings can't be read: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors(include_input=False)
        )
        raise SettingsError(f"{path}: {wrong}") from error


def read_cell_key(folder: Path, cell: str) -> bytes:
    """Read what this router knows of a cell's secret. Raises SettingsError."""
    return read_secret(folder / f"{cell}.router.key")


def read_directory_key(path: Path) -> Ed25519PublicKey:
    """Read the public key of who signs directories. Raises SettingsError."""
    return Ed25519PublicKey.from_public_bytes(read_secret(path))


def read_secret(path: Path) -> bytes:
    """Read a secret of 32 raw bytes. Raises SettingsError."""
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"a secret can't be read: {error}") from error
    if len(secret) != SECRET_BYTES:
        raise SettingsError(f"{path}: a secret has {SECRET_BYTES} bytes, this has {len(secret)}")
    return secret
