"""Dagster's logger `progress`, which writes the log lines of a build. The bars are drawn by `pipelines.bars`."""

from __future__ import annotations

import logging
import sys

import dagster as dg

from pipelines.bars import print_above


class _PlainLines(logging.Handler):
    """Writes what asset bodies log, and that a step waits for another run. Other events of Dagster are left out,
    because the UI shows them."""

    def emit(self, record: logging.LogRecord) -> None:
        meta = getattr(record, "dagster_meta", {})
        line = meta.get("orig_message", record.getMessage())
        if (event := meta.get("dagster_event")) is not None:
            if event.event_type != dg.DagsterEventType.ENGINE_EVENT or "pool" not in event.engine_event_data.metadata:
                return
            pool = event.engine_event_data.metadata["pool"].value
            line = (
                f"{event.step_key} waits, because another run holds the place in pool {pool} "
                "(in the UI: Deployment, Concurrency)"
            )
        elif record.levelno < logging.INFO or line.startswith("Dependencies for step"):
            return
        if not print_above(line):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


@dg.logger(config_schema={}, description="Writes what asset bodies log, as plain lines.")
def progress_logger(_: dg.InitLoggerContext) -> logging.Logger:
    logger = logging.Logger("vsr1", level=logging.DEBUG)
    logger.addHandler(_PlainLines())
    return logger
