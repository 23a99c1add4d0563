"""How kmscore logs: a line for each record, as text or as JSON, with what is known of the request behind it.

A fault of ours is told by where it came from and what kind it is, never by its text, which may hold what must not be shown.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from kmscore import tracing
from kmscore.asked import ASKED
from kmscore.config import Settings
from kmscore.errors import KmsError

log = logging.getLogger("kmscore")
access_log = logging.getLogger("kmscore.access")  # one line for each request of a service, where the setting asks for it

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # of which one could make a line that nobody logged
_PLAIN = re.compile(r"[^\s\"=]+")


def configure(settings: Settings) -> None:
    """Log to standard error as `settings` say: once in each process of a service. Libraries are heard from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else Lines())
    logging.basicConfig(level=max(logging.WARNING, logging.getLevelNamesMapping()[settings.log_level]), handlers=[handler], force=True)
    log.setLevel(settings.log_level)
    access_log.setLevel(logging.INFO if settings.access_log else logging.CRITICAL)


def told(**fields: Any) -> dict[str, Any]:
    """For `extra=` of a logging call: what a line says beside its message; what is empty is left out."""
    return {"told": fields}


def log_fault(what: str, error: BaseException, **fields: Any) -> None:
    """A KmsError says only what may be read; of any other, the lines of code it passed, and what the system calls it."""
    if isinstance(error, KmsError):
        log.warning("%s: %s", what, error, extra=told(**{"code": error.code, **fields}))
    else:
        reason = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        log.error("%s: unexpected %s%s", what, type(error).__name__, reason, extra=told(**fields, where=_lines(error.__traceback__)))


class Lines(logging.Formatter):
    """Text: time, level, message, and name=value for the rest."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        where = fields.pop("where", "")
        words = [_time(record), record.levelname, _visible(record.getMessage())]
        words += [f"{name}={_word(value)}" for name, value in fields.items()]
        return " ".join(words) + (f"\n{where.rstrip()}" if where else "")


class JsonLines(logging.Formatter):
    """A JSON object in a line: time, level, logger, process, message, and the rest by its name."""

    def format(self, record: logging.LogRecord) -> str:
        known = {"time": _time(record), "level": record.levelname, "logger": record.name, "process": record.process}
        return json.dumps({**known, "message": record.getMessage(), **_fields(record)}, ensure_ascii=False, default=str)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if (asked := ASKED.get()) is not None:
        fields = {"request_id": asked.request_id, "operation": asked.operation, "caller": asked.actor}
    fields |= tracing.current_ids() | getattr(record, "told", {})
    if record.exc_info and record.exc_info[1] is not None:  # of a library: the same rule as for ours
        fields |= {"error": type(record.exc_info[1]).__name__, "where": _lines(record.exc_info[2])}
    return {name: value for name, value in fields.items() if value not in ("", None)}


def _lines(trace: TracebackType | None) -> str:
    return "".join(traceback.format_tb(trace))


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _visible(text: str) -> str:
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _word(value: Any) -> str:
    text = ",".join(value) if isinstance(value, list) else str(value)
    return text if _PLAIN.fullmatch(text) and not _CONTROLS.search(text) else json.dumps(text)
