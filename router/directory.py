"""The directory: who the partners are, which keys they have, which cell is theirs. Pure; directory_file has the files.

The control plane writes it, every router reads it. `decode` believes only what checksum and types bear out.
"""

import hashlib
import hmac
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from router import limits

# The newest version of the API: what the document describes, and what a new partner is pinned to.
API_VERSION: Final = "2026-11-22"
PARTNER_ID: Final = "[a-z0-9_]{1,40}"
KEY_SECRET_CHARACTERS: Final = 43  # 32 bytes in base64url without padding
# Greedy: the partner's id may hold `_`, the secret's length says where it ends.
_KEY: Final = re.compile(f"sk_(test|live)_({PARTNER_ID})_[A-Za-z0-9_-]{{{KEY_SECRET_CHARACTERS}}}")


class DirectoryError(ValueError):
    """The bytes are no directory: cut off, altered, or of other types."""


class _Record(BaseModel):
    # What is not known here is left out, so that a newer control plane may add to the directory.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Cell(_Record):
    """A cell and where its door listens. A cell of weight 0 gets no partner but by override."""

    name: Annotated[str, Field(pattern="^[a-z0-9-]{1,40}$")]
    weight: Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)] = 1.0
    host: Annotated[str, Field(min_length=1, max_length=255)]
    port: Annotated[int, Field(ge=1, le=65_535)]


class KeyRecord(_Record):
    """One API key, as its keyed hash (hexadecimal HMAC-SHA-256). `hint`: its last four characters."""

    id: Annotated[str, Field(min_length=1, max_length=64)]
    hash: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    hint: Annotated[str, Field(max_length=4)]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None


class Partner(_Record):
    """A partner as a router needs it. `cell` overrides the hash."""

    name: Annotated[str, Field(max_length=255)]
    status: Literal["active", "suspended"]
    mode: Literal["test", "live"]
    api_version: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    profile_version: Annotated[int, Field(ge=0)]
    cell: str | None = None
    rate_per_second: Annotated[int, Field(ge=1)]
    rate_burst: Annotated[int, Field(ge=1)]
    in_flight_max: Annotated[int, Field(ge=1)]
    created_at: AwareDatetime
    keys: Annotated[tuple[KeyRecord, ...], Field(max_length=limits.PARTNER_KEYS_MAX)] = ()


class Payload(_Record):
    """What the checksum is of."""

    cells: tuple[Cell, ...] = ()
    partners: dict[Annotated[str, Field(pattern=f"^{PARTNER_ID}$")], Partner] = {}


class Directory:
    """One version of the directory, with each partner's cell worked out once.

    `records`: the partners as they stood in the document, for the next version's `decode`.
    """

    def __init__(self, version: int, checksum: str, payload: Payload, records: Mapping[str, Any] | None = None) -> None:
        self.version = version
        self.checksum = checksum
        self.payload = payload
        self.records = records or {}
        self.partners = payload.partners
        self.cells = {cell.name: cell for cell in payload.cells}
        self._homes: dict[str, Cell | None] = {}
        # By a keyed digest of the API key: who was let in under this version (router/keys.py).
        self.authenticated: dict[bytes, tuple[str, Partner, KeyRecord]] = {}

    def cell_of(self, partner_id: str) -> Cell | None:
        """Give the partner's cell: its override, else where the hash puts it. None: there is no such cell."""
        if partner_id not in self._homes:
            partner = self.partners.get(partner_id)
            override = None if partner is None else partner.cell
            name = rendezvous(partner_id, self.cells.values()) if override is None else override
            found = None if name is None else self.cells.get(name)
            if partner is None:
                return found
            self._homes[partner_id] = found  # as many entries as partners
        return self._homes[partner_id]


def rendezvous(partner_id: str, cells: Iterable[Cell]) -> str | None:
    """Choose a cell by weighted rendezvous hashing; None where no cell has a weight.

    Each cell's score is -weight / ln(u), u in (0, 1) from blake2b over both names; the highest wins. A new cell takes
    its share from all others alike, and nothing else moves (Schindelhauer and Schomaker, "Weighted distributed hash
    tables", SPAA 2005).
    """
    best: tuple[float, str] | None = None
    for cell in cells:
        if cell.weight <= 0:
            continue
        digest = hashlib.blake2b(f"{cell.name}\0{partner_id}".encode(), digest_size=8).digest()
        # 52 bits and a half, so that u is exact and neither 0 nor 1.
        u = ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2.0**52
        score = (-cell.weight / math.log(u), cell.name)
        if best is None or score > best:
            best = score
    return None if best is None else best[1]


def encode(version: int, payload: Payload) -> bytes:
    """Give the directory's file."""
    fields = payload.model_dump(mode="json")
    return orjson.dumps({"version": version, "checksum": _checksum(fields), "payload": fields})


def decode(raw: bytes, held: Directory | None = None) -> Directory:
    """Read a directory's file. Raises DirectoryError.

    `held`: an older version. Records of partners that are the same there are not read again: most are.
    """
    version, checksum, fields = _verified(raw)
    records = fields.get("partners") if isinstance(fields, dict) else None
    if isinstance(records, dict) and held is not None:
        same = (name for name, record in records.items() if name in held.records and held.records[name] == record)
        known = {name: held.partners[name] for name in same}
        fields = {**fields, "partners": records | known}
    try:
        payload = Payload.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise DirectoryError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return Directory(version, checksum, payload, records if isinstance(records, dict) else None)


def decode_version(raw: bytes) -> int:
    """Read of a directory's file which version it is, for a third of the time. Raises DirectoryError."""
    return _verified(raw)[0]


def _verified(raw: bytes) -> tuple[int, str, Any]:
    """Give version, checksum, and the fields that the checksum bears out, of types that are still to be checked."""
    if len(raw) > limits.DIRECTORY_BYTES_MAX:
        raise DirectoryError(f"a directory of {len(raw)} bytes is larger than {limits.DIRECTORY_BYTES_MAX}")
    try:
        document = orjson.loads(raw)
        version, checksum, fields = document["version"], document["checksum"], document["payload"]
    except (ValueError, KeyError, TypeError) as error:
        raise DirectoryError("it is no JSON object with version, checksum and payload") from error
    if type(version) is not int or version < 0 or not isinstance(checksum, str):
        raise DirectoryError("its version or checksum is of another type")
    try:
        expected = _checksum(fields)
    except TypeError as error:  # of orjson, which writes less deeply than it reads
        raise DirectoryError("its payload is nested too deeply") from error
    if not hmac.compare_digest(expected.encode(), checksum.encode("utf-8", "replace")):
        raise DirectoryError("its checksum is not that of its payload")
    return version, checksum, fields


def hash_key(pepper: bytes, key: str) -> str:
    """Give the form in which an API key is kept: HMAC-SHA-256 under the installation's pepper, hexadecimal."""
    return hmac.digest(pepper, key.encode(), hashlib.sha256).hex()


def parse_key(key: str) -> tuple[str, str] | None:
    """Give the mode and the partner's id that an API key names; None where it has not the form of one."""
    match = _KEY.fullmatch(key)
    return None if match is None else (match[1], match[2])


def _checksum(fields: Any) -> str:
    return hashlib.sha256(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)).hexdigest()
