"""JSON lines on stderr, written by a thread of their own so that a slow reader of them holds up nobody."""

import json
import logging
import queue
import sys
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Any

ACCESS = "tandem.access"
"""The logger of requests."""
FIELDS = "fields"
"""The attribute of a record that holds what else belongs into its line."""


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, process, message, what `FIELDS` holds, a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _Unformatted(QueueHandler):
    """Leaves the work to the listening thread."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


def begin_logging() -> QueueListener:
    """Sends every logger's lines to stderr; stop the listener in the end, so that nothing is lost."""
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(JsonLines())
    listener = QueueListener(lines, stream)
    listener.start()
    root = logging.getLogger()
    root.handlers[:] = [_Unformatted(lines)]
    root.setLevel(logging.INFO)
    # Our own line of a request says more.
    logging.getLogger("uvicorn.access").disabled = True
    return listener
