"""Fuzzes whatever reads bytes of others, with libFuzzer's coverage (atheris): `make fuzz SECONDS=60`.

Each target may refuse its bytes in its own way; anything else is a finding, and atheris leaves the bytes behind.
"""

import argparse
import contextlib
import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parents[2]


def frames(data: bytes) -> None:
    """A stream cut into frames, at one place that the bytes choose."""
    from cells.api.frames import Decoder, FrameError  # noqa: PLC0415 - instrumented by then

    cut = data[0] if data else 0
    decoder = Decoder()
    try:
        for part in (data[1 : 1 + cut], data[1 + cut :]):
            for frame in decoder.feed(part):
                assert isinstance(frame[0], int)
    except FrameError:
        return


def wire_messages(data: bytes) -> None:
    """A command, an answer and a profile."""
    import msgpack  # noqa: PLC0415

    from actors.commands import CommandError, parse  # noqa: PLC0415
    from cells.api import messages  # noqa: PLC0415

    try:
        command = messages.decode_command(data)
        for method in messages.WRITES:
            try:
                parse(method, command.arguments)
            except CommandError:
                continue
    except messages.MessageError:
        pass
    with contextlib.suppress(messages.MessageError):
        messages.decode_answer(data)
    try:
        messages.decode_profile(msgpack.unpackb(data))
    except (messages.MessageError, ValueError):
        return


def records(data: bytes) -> None:
    """Each stored record; what is read is written and read again as the same."""
    from actors import codec  # noqa: PLC0415
    from actors.errors import StoreCorruptError  # noqa: PLC0415

    for name in ("standing", "payment", "once", "open", "entry", "reconciled", "text"):
        decode: Callable[[bytes], Any] = getattr(codec, f"decode_{name}")
        encode: Callable[[Any], bytes] = getattr(codec, f"encode_{name}")
        try:
            record = decode(data)
        except StoreCorruptError:
            continue
        assert decode(encode(record)) == record


def requests(data: bytes) -> None:
    """A body and a query string, as the router reads them."""
    from router import models, reading  # noqa: PLC0415
    from router.problems import ProblemError  # noqa: PLC0415

    try:
        fields, _ = reading.parse_json(data)
        reading.validate_body(models.PaymentRequest, fields)
    except ProblemError:
        pass
    try:
        reading.read_query(models.PaymentsQuery, data)
    except ProblemError:
        return


def directories(data: bytes) -> None:
    """A directory's file, and a payload under its right checksum."""
    import orjson  # noqa: PLC0415

    from router import directory  # noqa: PLC0415

    with contextlib.suppress(directory.DirectoryError):
        directory.decode(data)
    try:
        fields = orjson.loads(data)
        checksum = directory._checksum(fields)
    except (ValueError, TypeError):
        return
    raw = orjson.dumps({"version": 1, "checksum": checksum, "payload": fields})
    try:
        found = directory.decode(raw)
    except directory.DirectoryError:
        return
    for partner in found.partners:
        found.cell_of(partner)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "frames": frames,
    "messages": wire_messages,
    "records": records,
    "requests": requests,
    "directories": directories,
}


def seeds(target: str) -> list[bytes]:
    """Give good bytes to begin with, as the unit tests have them."""
    sys.path.insert(0, str(FOLDER))
    if target == "records":
        found: dict[Any, bytes] = importlib.import_module("tests.unit.actors.test_events_codec").GOOD
        return list(found.values())
    if target == "frames":
        from cells.api import frames as wire  # noqa: PLC0415

        return [b"\x05" + wire.announce(wire.pack([wire.REQUEST, 1, "get_balance", 8_000, "alpha", b"x" * 20])) * 2]
    if target == "messages":
        from cells.api import messages  # noqa: PLC0415

        arguments = {"amount": 1, "currency": "EUR", "payment_method": "tok_x", "capture_method": "manual"}
        return [messages.encode_command(messages.Command("c", "r", arguments, "k", b"f"))]
    if target == "requests":
        return [
            b'{"amount": 1, "currency": "EUR", "payment_method": "tok_approve", "metadata": {"a": "b"}}',
            b"limit=5&status=captured&created_from=2026-01-01T00:00:00Z",
        ]
    cell = b'{"name":"cell-0","weight":1.0,"host":"127.0.0.1","port":1}'
    return [b'{"version":1,"checksum":"0","payload":{}}', b'{"cells":[%b],"partners":{}}' % cell]


def main() -> int:
    """Fuzz one target for so long; libFuzzer ends the process itself."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.decoders", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args()
    try:
        import atheris  # noqa: PLC0415 - where it can't be installed the rest of the project works
    except ImportError as error:
        sys.stdout.write(f"skipped: atheris is not there for Python {sys.version.split()[0]} ({error})\n")
        return 0
    with atheris.instrument_imports(include=["actors", "cells", "router"]):
        importlib.import_module("cells.api.messages")
        importlib.import_module("actors.codec")
        importlib.import_module("actors.commands")
        importlib.import_module("router.reading")
        importlib.import_module("router.models")
        importlib.import_module("router.directory")
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds(options.target)):
            Path(folder, str(number)).write_bytes(seed)
        arguments = [sys.argv[0], folder, f"-max_total_time={options.seconds}", "-max_len=4096", "-print_final_stats=1"]
        atheris.Setup(arguments, TARGETS[options.target])
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
