"""Progress on the terminal: the lines assets log, and nothing of Dagster's own events."""

from __future__ import annotations

import logging
import sys

import dagster as dg


class _PlainLines(logging.Handler):
    """Writes what asset bodies log; events of the framework are dropped (the UI shows those)."""

    def emit(self, record: logging.LogRecord) -> None:
        meta = getattr(record, "dagster_meta", {})
        line = meta.get("orig_message", record.getMessage())
        if meta.get("dagster_event") is None and not line.startswith("Dependencies for step"):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


@dg.logger(config_schema={}, description="Lines logged by asset bodies, plain.")
def progress_logger(_: dg.InitLoggerContext) -> logging.Logger:
    logger = logging.Logger("vsr1", level=logging.INFO)
    logger.addHandler(_PlainLines())
    return logger
