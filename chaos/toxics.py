"""What a fault proxy can do to connections: Toxiproxy's toxics as values, and how they are read from JSON.

Names and meanings are those of Toxiproxy (https://github.com/Shopify/toxiproxy), so that its users need not learn
others; `tamper` alone is no toxic of Toxiproxy's. `stream` says which way: "upstream" is from the client to the server.
No I/O here: see fault_proxy.py.
"""

from dataclasses import asdict
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from chaos import limits

Stream = Literal["upstream", "downstream"]
_Time = Annotated[int, Field(ge=0, le=limits.TOXIC_TIME_MS_MAX)]
_Bytes = Annotated[int, Field(ge=0, le=limits.TOXIC_BYTES_MAX)]
_STRICT: Final = ConfigDict(extra="forbid", strict=True)


class ToxicError(Exception):
    """No toxic can be made of this."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Toxic:
    """What all have. `toxicity` is the share of connections that it takes; `name` is unique in its proxy."""

    name: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_.-]*$")] = ""  # empty: its type and stream
    stream: Stream = "downstream"
    toxicity: Annotated[float, Field(ge=0, le=1, strict=False)] = 1.0

    @property
    def type(self) -> str:
        """Its type, as Toxiproxy calls it."""
        return next(name for name, kind in TYPES.items() if kind is type(self))

    @property
    def full_name(self) -> str:
        """Its name, or the one that it gets without."""
        return self.name or f"{self.type}_{self.stream}"

    def fields(self) -> dict[str, Any]:
        """Give it as Toxiproxy's API does."""
        attributes = asdict(self)
        shared = {name: attributes.pop(name) for name in ("name", "stream", "toxicity")}
        return {**shared, "name": self.full_name, "type": self.type, "attributes": attributes}


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Latency(Toxic):
    """Each piece of data comes `latency` ± `jitter` ms later; order is kept."""

    latency: _Time = 0
    jitter: _Time = 0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Bandwidth(Toxic):
    """At most `rate` KB a second on each connection; 0 lets nothing through."""

    rate: Annotated[int, Field(ge=0, le=limits.TOXIC_RATE_KB_MAX)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SlowClose(Toxic):
    """The end of a stream is passed on `delay` ms late."""

    delay: _Time


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Timeout(Toxic):
    """Data are dropped, and after `timeout` ms the connection is closed; 0: never, it hangs."""

    timeout: _Time = 0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ResetPeer(Toxic):
    """Data are dropped, and after `timeout` ms the connection is reset (TCP RST)."""

    timeout: _Time = 0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Slicer(Toxic):
    """Data come in slices of `average_size` ± `size_variation` bytes, `delay` microseconds apart."""

    average_size: Annotated[int, Field(ge=1, le=limits.TOXIC_BYTES_MAX)]
    size_variation: _Bytes = 0
    delay: Annotated[int, Field(ge=0, le=limits.TOXIC_TIME_MS_MAX * 1_000)] = 0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LimitData(Toxic):
    """The connection is closed once `bytes` have passed since it met this toxic."""

    bytes: _Bytes


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Tamper(Toxic):
    """One piece of data in `every` is tampered with, as a hostile relay might: `way` says how."""

    way: Literal["flip", "replay", "drop", "inject"]
    every: Annotated[int, Field(ge=1, le=limits.TOXIC_BYTES_MAX)]


TYPES: Final[dict[str, type[Toxic]]] = {
    "latency": Latency,
    "bandwidth": Bandwidth,
    "slow_close": SlowClose,
    "timeout": Timeout,
    "reset_peer": ResetPeer,
    "slicer": Slicer,
    "limit_data": LimitData,
    "tamper": Tamper,
}


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: str
    name: str = ""
    stream: Stream = "downstream"
    toxicity: float = 1.0
    attributes: dict[str, Any] = {}


def read_toxic(raw: bytes) -> Toxic:
    """Read a toxic from JSON as Toxiproxy has it. Raises ToxicError."""
    try:
        request = _Request.model_validate_json(raw)
        kind = TYPES.get(request.type)
        if kind is None:
            raise ToxicError(f"type: there is no toxic {request.type!r}; there are {', '.join(TYPES)}")
        shared: dict[str, Any] = {"name": request.name, "stream": request.stream, "toxicity": request.toxicity}
        twice = shared.keys() & request.attributes.keys()
        if twice:
            raise ToxicError(f"attributes: {', '.join(sorted(twice))} stand beside them, not among them")
        return kind(**request.attributes, **shared)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in error.errors()]
        raise ToxicError("; ".join(problems)) from error
