"""Where log lines go: native fields to the journal where standard error is the journal, else lines of JSON.

Every line has a request id: that of `request`, or ``extra={"request_id": ...}``.  All other ``extra`` become fields as
well.  What people say to a model is not logged: wrap it in `Private`, and only its length appears unless `set_up` was
told to show it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import sys
import traceback
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from ..runtime.errors import BadAnswer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

JOURNAL = "/run/systemd/journal/socket"
VALUE_BYTES = 48 << 10  # of one field: journald's own limit of a line; what is longer is cut
SEND_S = 0.1  # a journal that does not read for so long is not waited for
FIELD_CHARS = 64  # of a field's name, journald's limit
PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
REQUEST_ID: ContextVar[str] = ContextVar("arenite_request_id", default="")
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "request_id",
             "color_message"}  # the last is uvicorn's, with colours for a terminal


@dataclass(frozen=True, slots=True)
class Private:
    """A text that is not for the log: a prompt, an answer.  As a string it is its length."""

    text: str

    def __str__(self) -> str:
        return f"<{len(self.text)} characters>"

    __repr__ = __str__


@contextlib.contextmanager
def request(request_id: str) -> Iterator[None]:
    """Give all log lines inside, those of tasks started inside too, this request id."""
    token = REQUEST_ID.set(request_id)
    try:
        yield
    finally:
        REQUEST_ID.reset(token)


class _Shaper:
    """What a record says, as message and fields, with what is private left out or shown."""

    def __init__(self, *, prompts: bool) -> None:
        self._prompts = prompts

    def message(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback below it."""
        args = record.args
        if isinstance(args, tuple):
            args = tuple(self._shown(value) for value in args)
        elif args:
            args = {name: self._shown(value) for name, value in args.items()}
        text = str(self._shown(record.msg))
        text = text % args if args else text
        return "\n".join(filter(None, (text, self._trace(record), record.stack_info)))

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return what ``extra`` gave, without the request id."""
        return {name: self._shown(value) for name, value in vars(record).items()
                if name not in _STANDARD and not name.startswith("_")}

    def _shown(self, value: Any) -> Any:
        if isinstance(value, Private):
            return value.text if self._prompts else str(value)
        if isinstance(value, BadAnswer) and not self._prompts:
            return _without_answer(value)
        return value

    def _trace(self, record: logging.LogRecord) -> str:
        if not record.exc_info or record.exc_info[1] is None:
            return ""
        error: BaseException | None = record.exc_info[1]
        text = "".join(traceback.format_exception(error)).rstrip()
        while error is not None and not self._prompts:
            if isinstance(error, BadAnswer):
                text = text.replace(str(error), _without_answer(error))
            error = error.__cause__ or error.__context__
        return text


def _without_answer(error: BadAnswer) -> str:
    """Return such an error without its message, which quotes the answer."""
    return f"{error.code} {Private(error.text)}"


def _request_id(record: logging.LogRecord) -> str:
    return str(getattr(record, "request_id", None) or REQUEST_ID.get())


def _priority(level: int) -> int:
    return next(priority for least, priority in PRIORITIES if level >= least)


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, logger, message, request_id (null: none), and the fields of ``extra``.

    ``priority``: begin the line with the <N> by which the journal sees its level.
    """

    def __init__(self, *, prompts: bool = False, priority: bool = False) -> None:
        super().__init__()
        self._shaper, self._prefix = _Shaper(prompts=prompts), priority

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            **self._shaper.fields(record), "time": when.replace("+00:00", "Z"), "level": record.levelname.lower(),
            "logger": record.name, "message": self._shaper.message(record), "request_id": _request_id(record) or None,
        }
        prefix = f"<{_priority(record.levelno)}>" if self._prefix else ""
        return prefix + json.dumps(line, ensure_ascii=False, default=str)


class Journal(logging.Handler):
    """Sends records to journald with native fields; what it does not take goes to ``fallback``."""

    def __init__(self, path: str = JOURNAL, *, prompts: bool = False, fallback: logging.Handler | None = None) -> None:
        super().__init__()
        self._path, self._fallback = path, fallback
        self._shaper = _Shaper(prompts=prompts)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(SEND_S)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            self._socket.sendto(b"".join(_field(*item) for item in self._fields(record).items()), self._path)
        except OSError:  # the journal restarts, or the record is too large for a datagram
            if self._fallback is not None:
                self._fallback.handle(record)
        except Exception:  # noqa: BLE001 - a record that can not be formatted is reported as logging does
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> dict[str, str]:
        fields = {_name(name): str(value) for name, value in self._shaper.fields(record).items()}
        if rid := _request_id(record):
            fields["ARENITE_REQUEST_ID"] = rid
        return {
            "MESSAGE": self._shaper.message(record), "PRIORITY": str(_priority(record.levelno)),
            "SYSLOG_IDENTIFIER": "arenite", "ARENITE_LOGGER": record.name, "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno), "CODE_FUNC": record.funcName or "", **fields,
        }


def _name(name: str) -> str:
    """Return a journal field of ours for the name of an extra: capitals, digits and underscores."""
    return ("ARENITE_" + re.sub(r"[^A-Z0-9_]", "_", name.upper()))[:FIELD_CHARS]


def _field(name: str, value: str) -> bytes:
    """Encode a field: NAME=value, or with a newline inside NAME, the length (64 bits, little-endian) and the value."""
    data = value.encode("utf-8", "replace")
    if len(data) > VALUE_BYTES:
        data = data[:VALUE_BYTES].decode("utf-8", "ignore").encode()  # half a character would make it a blob
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"


def is_journal(environ: Mapping[str, str], descriptor: int) -> bool:
    """Return True if a file descriptor is the stream to the journal that JOURNAL_STREAM names (device:inode)."""
    try:
        device, inode = map(int, environ.get("JOURNAL_STREAM", "").split(":"))
        found = os.fstat(descriptor)
    except (OSError, ValueError):
        return False
    return (found.st_dev, found.st_ino) == (device, inode)


def set_up(
    level: str = "INFO", *, prompts: bool = False, stream: TextIO | None = None,
    environ: Mapping[str, str] | None = None, journal: str = JOURNAL,
) -> logging.Handler:
    """Send all logging of this process to the journal or as JSON lines to ``stream`` (standard error).

    Changes the root logger (one handler of ours, replaced when called again; WARNING for others' loggers) and the level
    of ours.  Each process calls it for itself.  ``prompts``: show what is `Private`.
    """
    stream = sys.stderr if stream is None else stream
    in_journal = is_journal(os.environ if environ is None else environ, _descriptor(stream))
    lines = logging.StreamHandler(stream)
    lines.setFormatter(JsonLines(prompts=prompts, priority=in_journal))
    usable = in_journal and os.path.exists(journal)  # noqa: PTH110 - a socket's name, not a file to open
    handler: logging.Handler = Journal(journal, prompts=prompts, fallback=lines) if usable else lines
    handler.name = "arenite"
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.name == handler.name]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("arenite").setLevel(level.upper())
    logging.captureWarnings(capture=True)
    return handler


def _descriptor(stream: TextIO) -> int:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # a StringIO, or a stream that was closed
        return -1
