"""Structured logs: one JSON object a line, with what is bound (process, cell) and what each call adds.

What must not go in: card data, keys, bodies of requests (PCI DSS 3.4, 10.2). Callers name ids, never contents.
"""

import logging
import logging.handlers
import sys
from typing import Final

import orjson
import structlog

LOG_FILE_BYTES_MAX: Final = 50_000_000
LOG_FILES_KEPT: Final = 3


def configure(log_file: str | None, *, level: str = "info", **bound: str) -> None:
    """Send this process's logs to `log_file` (rotated, bounded), or to standard error where there is none."""
    handler: logging.Handler = (
        logging.handlers.RotatingFileHandler(
            log_file, maxBytes=LOG_FILE_BYTES_MAX, backupCount=LOG_FILES_KEPT, encoding="utf-8"
        )
        if log_file
        else logging.StreamHandler(sys.stderr)
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Without local variables: they hold bodies, keys and names of payment methods.
        structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_to_json),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**bound)


def _to_json(value: object, **_: object) -> str:
    return orjson.dumps(value, default=str).decode()
