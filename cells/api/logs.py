"""Structured logs: one JSON object a line, with what is bound (process, cell) and what each call adds.

What must not go in: card data, keys, bodies of requests (PCI DSS 3.4, 10.2). Callers name ids, never contents.
"""

import logging
import logging.handlers
import sys
from typing import Final, TextIO, cast

import orjson
import structlog

LOG_FILE_BYTES_MAX: Final = 50_000_000
LOG_FILES_KEPT: Final = 3
LOG_FILE_CHARACTERS_UNLOOKED_MAX: Final = 100_000
# A longer line, such as one of a traceback without end, loses its longest fields, so that few rotate no file away.
LOG_LINE_BYTES_MAX: Final = 16_384
LOG_FIELD_CHARACTERS_MAX: Final = 1_000


def configure(log_file: str | None, *, level: str = "info", **bound: str) -> None:
    """Send this process's logs to `log_file` (rotated, bounded), or to standard error where there is none.

    Our own lines go straight to the file: the standard library's records would cost each payment ten times as much.
    What libraries say through the standard library comes out in the same form, at the same place.
    """
    handler: logging.Handler
    if log_file:
        handler = rotating = logging.handlers.RotatingFileHandler(
            log_file, maxBytes=LOG_FILE_BYTES_MAX, backupCount=LOG_FILES_KEPT, encoding="utf-8"
        )
        lines = structlog.WriteLogger(cast("TextIO", _RotatedFile(rotating)))
    else:
        handler = logging.StreamHandler(sys.stderr)
        lines = structlog.WriteLogger(sys.stderr)
    shared: list[structlog.typing.Processor] = [
        lambda _logger, _method, event: {**bound, **event},
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Without local variables: they hold bodies, keys and names of payment methods.
        structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
    ]
    renderer = structlog.processors.JSONRenderer(serializer=_to_json)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )


class _RotatedFile:
    """The handler's file, written to without the handler; one lock for both, so that no line is torn."""

    def __init__(self, handler: logging.handlers.RotatingFileHandler) -> None:
        assert handler.lock is not None
        self._handler = handler
        self._lock = handler.lock
        self._characters_unlooked = 0

    def write(self, text: str) -> None:
        """Write one line. The file's size is looked at now and then only: asking at each line would cost more."""
        with self._lock:
            self._characters_unlooked += len(text)
            stream = self._handler.stream
            if self._characters_unlooked > LOG_FILE_CHARACTERS_UNLOOKED_MAX and stream is not None:
                self._characters_unlooked = 0
                if stream.tell() > LOG_FILE_BYTES_MAX:
                    self._handler.doRollover()
                    stream = self._handler.stream
            if stream is not None:  # None: closed, at the process's end
                stream.write(text)
                stream.flush()

    def flush(self) -> None:
        """Do nothing: each line is flushed."""


def _to_json(value: dict[str, object], **_: object) -> str:
    line = orjson.dumps(value, default=str)
    return (line if len(line) <= LOG_LINE_BYTES_MAX else _shorten(value, len(line))).decode()


def _shorten(value: dict[str, object], size: int) -> bytes:
    """Encode what fits, the shortest fields first, long ones cut; `cut_from_bytes` is the size of all."""
    texts = {name: orjson.dumps(field, default=str).decode() for name, field in value.items()}
    kept: dict[str, object] = {"cut_from_bytes": size}
    left = LOG_LINE_BYTES_MAX - len(orjson.dumps(kept))
    for name, text in sorted(texts.items(), key=lambda entry: len(entry[1])):
        field = value[name] if len(text) <= LOG_FIELD_CHARACTERS_MAX else f"{text[:LOG_FIELD_CHARACTERS_MAX]}..."
        left -= len(orjson.dumps({name: field}, default=str))
        if left < 0:
            break
        kept[name] = field
    return orjson.dumps(kept, default=str)
