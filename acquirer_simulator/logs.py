"""The simulator's own structured logs: one JSON object a line. Payment methods never go in."""

import logging
import logging.handlers
import sys

import orjson
import structlog

from acquirer_simulator import limits


def configure(log_file: str | None) -> None:
    """Send logs to `log_file` (rotated, bounded), or to standard error where there is none."""
    handler: logging.Handler = (
        logging.handlers.RotatingFileHandler(
            log_file, maxBytes=limits.LOG_FILE_BYTES_MAX, backupCount=limits.LOG_FILES_KEPT, encoding="utf-8"
        )
        if log_file
        else logging.StreamHandler(sys.stderr)
    )
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.dict_tracebacks,
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
    root.setLevel(logging.INFO)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _to_json(value: object, **_: object) -> str:
    return orjson.dumps(value, default=str).decode()
