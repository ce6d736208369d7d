"""When the gateway itself first showed a fault: in a log, a metric of the routers, or its status. Changes nothing."""

import fnmatch
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families

from chaos import limits
from chaos.catalogue import Sign
from chaos.installation import Installation
from control_plane.errors import ControlPlaneError


@dataclass(frozen=True, slots=True)
class Seen:
    """A sign that was seen. `at_s` on the monotonic clock."""

    at_s: float
    what: str


class Watcher:
    """Looks for those signs that leave no line behind: metrics and status. Call `look` again and again."""

    def __init__(self, gateway: Installation, signs: Iterable[Sign], partner: str) -> None:
        self._gateway = gateway
        self._signs = [sign for sign in signs if sign.kind != "log"]
        self._partner = partner
        self._before: dict[Sign, float] = {}
        self.seen: list[Seen] = []

    def begin(self) -> None:
        """Take note of how it is before the fault."""
        self._before = {sign: self._metric(sign) or 0.0 for sign in self._signs if sign.kind == "metric"}

    def look(self) -> None:
        """Look once; nothing more to look for after the first sign."""
        if self.seen or not self._signs:
            return
        for sign in self._signs:
            what = self._look(sign)
            if what is not None:
                self.seen.append(Seen(time.monotonic(), what))
                return

    def _look(self, sign: Sign) -> str | None:
        if sign.kind == "metric":
            value = self._metric(sign)
            if value is not None and value > self._before.get(sign, 0.0):
                return f"metric {sign.name}{{{', '.join(f'{name}={label}' for name, label in sign.where)}}} rises"
            return None
        try:
            status = self._gateway.status()
        except ControlPlaneError as error:
            return f"status: {error.what}" if sign.kind == "control_plane" else None
        for row in status["partners"]:
            if (
                sign.kind == "breaker"
                and row["partner"] == self._partner
                and row.get("breaker") not in {None, "closed"}
            ):
                return f"status: {self._partner}'s breaker is {row['breaker']}"
        return None

    def _metric(self, sign: Sign) -> float | None:
        try:
            answer = httpx.get(self._gateway.metrics_url, trust_env=False, timeout=limits.CHAOS_WATCH_MS / 1_000)
        except httpx.HTTPError:
            return None  # it is looked at again
        return metric_sum(answer.text, sign)


def metric_sum(text: str, sign: Sign) -> float:
    """Sum a metric up over those of its samples that have the labels wanted."""
    wanted = dict(sign.where)
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == sign.name and wanted.items() <= sample.labels.items()
    )


def first_in_logs(folder: Path, signs: Iterable[Sign], since_s: float, wall_offset_s: float) -> Seen | None:
    """Give the first line since a moment that is a sign. `wall_offset_s`: wall clock less monotonic clock."""
    found: list[Seen] = []
    for sign in signs:
        if sign.kind != "log":
            continue
        for file in sorted(folder.glob("*/*.log")):
            if fnmatch.fnmatchcase(file.stem, sign.log):
                found += _lines(file, sign, since_s, wall_offset_s)
    return min(found, key=lambda seen: seen.at_s, default=None)


def _lines(file: Path, sign: Sign, since_s: float, wall_offset_s: float) -> list[Seen]:
    for line in file.read_bytes().splitlines():
        try:
            fields: Mapping[str, Any] = orjson.loads(line)
            at_s = datetime.fromisoformat(str(fields["timestamp"])).timestamp() - wall_offset_s
        except (orjson.JSONDecodeError, KeyError, ValueError, TypeError):
            continue  # a line that is being written, or none of ours
        if at_s >= since_s and fields.get("event") == sign.name and dict(sign.where).items() <= _texts(fields).items():
            return [Seen(at_s, f"log {file.name}: {sign.name}")]
    return []


def _texts(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in fields.items()}


def first_sign(folder: Path, signs: Iterable[Sign], seen: Iterable[Seen], struck_s: float) -> Seen | None:
    """Give the first of all signs since the fault struck, None where there was none."""
    in_log = first_in_logs(folder, signs, struck_s, time.time() - time.monotonic())
    return min([*seen, *([in_log] if in_log is not None else [])], key=lambda one: one.at_s, default=None)
