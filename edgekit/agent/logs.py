"""How the agent logs: one readable line each, or one JSON object a line. Decides nothing about what is logged."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from types import TracebackType
from typing import TextIO

from edgekit.core.errors import printable

_PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# syslog's priorities as sd-daemon(3) has them, read by journald from the beginning of a line
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
_job: ContextVar[str | None] = ContextVar("job", default=None)
log = logging.getLogger("edgekit.agent")


def set_up(
    stream: TextIO, *, as_json: bool, verbose: bool, fields: Mapping[str, str], journal: str = ""
) -> None:
    """Log to `stream`: libraries only where they warn. fields: of every JSON line, such as device.

    journal: the environment's JOURNAL_STREAM; where that is `stream`, lines begin with their priority. What threads and
    the main thread did not catch is logged as well.
    """
    handler = logging.StreamHandler(stream)
    formatter: logging.Formatter = JsonLines(fields) if as_json else Lines(_PLAIN)
    handler.setFormatter(_Prioritised(formatter) if is_journal(stream, journal) else formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("edgekit").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("urllib3").setLevel(
        logging.ERROR
    )  # it warns of a full pool; what fails is said by the agent
    threading.excepthook = _thread_died
    sys.excepthook = _died


@contextmanager
def about_job(job_id: str) -> Iterator[None]:
    """What is logged inside is about that job."""
    token = _job.set(job_id)
    try:
        yield
    finally:
        _job.reset(token)


def is_journal(stream: TextIO, journal: str) -> bool:
    """Whether `stream` is the one that systemd named by device and inode (systemd.exec(5))."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return journal == f"{found.st_dev}:{found.st_ino}"


class Lines(logging.Formatter):
    """Readable lines. What a peer gave steers no terminal that they are read on."""

    def format(self, record: logging.LogRecord) -> str:
        """With escapes for all but line breaks."""
        return "\n".join(printable(line) for line in super().format(record).split("\n"))


class JsonLines(logging.Formatter):
    """time (UTC, ISO 8601), level, logger, message; job_id and exception where there is one; the given fields."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        time = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, str] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields,
        }
        if (job_id := _job.get()) is not None:
            line["job_id"] = job_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = json.dumps(line, ensure_ascii=False, default=str)
        return text if text == printable(text) else json.dumps(line, default=str)


class _Prioritised(logging.Formatter):
    """Every line of another formatter with its priority, for journald."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in self._inner.format(record).splitlines())


def _thread_died(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        value = args.exc_value or args.exc_type()
        name = args.thread.name if args.thread else "?"
        log.critical(
            "thread %s met a defect and is over", name, exc_info=(args.exc_type, value, args.exc_traceback)
        )


def _died(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, value, trace)
    else:
        log.critical("the agent met a defect and is over", exc_info=(kind, value, trace))
