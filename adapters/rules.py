"""What a key of a settings file may hold.  A field names its rule in its type: ``Annotated[int, Whole(1, 9)]``.

A rule turns what TOML gave into the value that the field holds (`Rule.read`) and back into what stands in a file
(`Rule.show`).  A refusal is a ConfigError that begins with the key's path and says what is allowed.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..runtime.errors import ConfigError
from ..runtime.sizes import parse_size
from .units import DURATIONS, exact_size, format_duration, parse_duration

ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # of clients, nodes and boots, on every transport
LONGEST_IPC = 107  # bytes of a path in sockaddr_un, without the final zero
LARGEST_SECRET = 1 << 16
LONGEST_SHOWN = 60
SECRETS = "a secret never stands in this file: write file:PATH or credential:NAME (a systemd credential)"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands: the path of its key, and the folder that relative paths start from."""

    key: str
    folder: Path


def shown(value: Any) -> str:
    """Return a value as a message shows it: short, and on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


class Rule:
    """What one key may hold.  A rule itself has `_read`, which says in a ConfigError what is allowed, and `_show`."""

    __slots__ = ()
    hidden: ClassVar[bool] = False  # whether a refusal leaves the value out

    def read(self, value: Any, place: Place) -> Any:
        """Return what the field holds.  Raises ConfigError with the key's path and what is allowed."""
        try:
            return self._read(value, place)
        except ConfigError as error:
            said = place.key if self.hidden else f"{place.key} is {shown(value)}"
            raise ConfigError(f"{said}: {error}") from None

    def show(self, value: Any) -> str:
        """Return the field's value as it would stand in a file, without quotes."""
        return "" if value is None else self._show(value)

    def _read(self, value: Any, _place: Place) -> Any:
        raise NotImplementedError

    def _show(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True, slots=True)
class Whole(Rule):
    """A whole number from ``low`` to ``high``."""

    low: int
    high: int

    def _read(self, value: Any, _place: Place) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise ConfigError(f"give a whole number from {self.low} to {self.high}")
        return value


@dataclass(frozen=True, slots=True)
class Duration(Rule):
    """A time from ``low`` to ``high``, both written with units; the field holds seconds."""

    low: str
    high: str

    def _read(self, value: Any, _place: Place) -> float:
        try:
            seconds = parse_duration(value)
        except ConfigError:
            raise ConfigError(f"{DURATIONS}, from {self.low} to {self.high}") from None
        if not parse_duration(self.low) <= seconds <= parse_duration(self.high):
            raise ConfigError(f"give a duration from {self.low} to {self.high}")
        return seconds

    def _show(self, value: Any) -> str:
        return format_duration(value)


@dataclass(frozen=True, slots=True)
class Bytes(Rule):
    """A size from ``low`` to ``high``, both written with units; the field holds bytes.

    A share of something (``80%``) or ``auto`` is none.  ``none``: 0 stands for no limit.
    """

    low: str
    high: str
    none: bool = False

    def _read(self, value: Any, _place: Place) -> int:
        if self.none and str(value).strip() == "0":
            return 0
        low, high = (parse_size(bound, 0) or 0 for bound in (self.low, self.high))
        size = None
        if isinstance(value, (str, int)) and not isinstance(value, bool) and "%" not in str(value):
            try:
                size = parse_size(value, 0)
            except ConfigError:
                size = None
        if size is None or not low <= size <= high:
            raise ConfigError(f"give a size from {self.low} to {self.high}" + (", or 0 for no limit" * self.none))
        return size

    def _show(self, value: Any) -> str:
        return exact_size(value)


@dataclass(frozen=True, slots=True)
class Share(Rule):
    """A size of at least 1 MiB, a share such as ``80%``, or ``auto``; kept as it is written."""

    def _read(self, value: Any, _place: Place) -> str:
        advice = "give a size of at least 1MiB such as 600MiB, a share such as 80%, or auto"
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise ConfigError(advice)
        try:
            size = parse_size(value, 1 << 40)
        except ConfigError:
            raise ConfigError(advice) from None
        if size is not None and size < 1 << 20:
            raise ConfigError(advice)
        return str(value).strip()


@dataclass(frozen=True, slots=True)
class Name(Rule):
    """A name that goes over the wire, or an empty text: then it is found at start."""

    def _read(self, value: Any, _place: Place) -> str:
        if not isinstance(value, str) or (value and not ID.fullmatch(value)):
            raise ConfigError("give 1 to 64 letters, digits, '_', '.' or '-'; empty: it is found at start")
        return value


@dataclass(frozen=True, slots=True)
class File(Rule):
    """A path, or an empty text for none.  A relative one starts from the settings file's folder, if it may be one."""

    relative: bool = True

    def _read(self, value: Any, place: Place) -> Path | None:
        advice = "give a path" if self.relative else "give an absolute path"
        if not isinstance(value, str) or "\0" in value:
            raise ConfigError(f"{advice}, or an empty text for none")
        if value.startswith("~"):
            raise ConfigError(f"{advice}: ~ is not expanded")
        if value and not self.relative and not Path(value).is_absolute():
            raise ConfigError(f"{advice}, or an empty text for none")
        return place.folder / value if value else None


@dataclass(frozen=True, slots=True)
class Mode(Rule):
    """Permissions of a socket, as a text of octal digits; the field holds the number."""

    def _read(self, value: Any, _place: Place) -> int:
        if not isinstance(value, str) or not re.fullmatch("0?[67][0-7]{2}", value):
            raise ConfigError('give octal permissions as a text that let the owner read and write, such as "0660"')
        return int(value, 8)

    def _show(self, value: Any) -> str:
        return f"{value:04o}"


@dataclass(frozen=True, slots=True)
class Endpoint(Rule):
    """``ipc:///absolute/path`` or ``tcp://ADDRESS:PORT``.  ``optional``: an empty text stands for none.

    An address is numeric, ``*`` for all, or the name of an interface: what libzmq binds.  Port ``*``: any free one.
    """

    optional: bool = False

    def _read(self, value: Any, _place: Place) -> str | None:
        if self.optional and value == "":
            return None
        if isinstance(value, str) and value.startswith("ipc://"):
            return _ipc(value)
        if isinstance(value, str) and value.startswith("tcp://"):
            return _tcp(value)
        raise ConfigError(
            "write ipc:///absolute/path or tcp://ADDRESS:PORT" + (", or an empty text for none" * self.optional)
        )


def _ipc(text: str) -> str:
    path = text.removeprefix("ipc://")
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ConfigError("write ipc:// and the absolute path of a socket: ipc:///run/arenite/arenite.sock")
    if len(os.fsencode(path)) > LONGEST_IPC:
        raise ConfigError(f"the path of a socket has at most {LONGEST_IPC} bytes")
    return text


def _tcp(text: str) -> str:
    match = re.fullmatch(r"tcp://(\[[0-9A-Fa-f:.]+\]|[0-9.]+|\*|[A-Za-z][A-Za-z0-9_.-]{0,14}):([0-9]{1,5}|\*)", text)
    if not match or (match[2] != "*" and not 1 <= int(match[2]) <= 65_535):
        raise ConfigError("write tcp://ADDRESS:PORT with a port from 1 to 65535: tcp://127.0.0.1:5560, tcp://*:5560")
    if match[1] == "localhost":
        raise ConfigError("write 127.0.0.1 or [::1]: a listener has an address, not a host's name")
    if match[1][0] in "[0123456789":
        try:
            ipaddress.ip_address(match[1].strip("[]"))
        except ValueError:
            raise ConfigError(f"{match[1]} is no address: write tcp://127.0.0.1:5560, tcp://*:5560") from None
    return text


def stays_here(endpoint: str) -> bool:
    """Return whether only this machine reaches an endpoint; names of interfaces count as the outside."""
    if endpoint.startswith("ipc://"):
        return True
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret is, never the secret.  ``name``: an absolute path, or what systemd calls the credential."""

    kind: Literal["file", "credential"]
    name: str
    key: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    def read(self) -> str:
        """Return the secret, without white space around it.  Raises ConfigError, with what to do."""
        path = self._path()
        try:
            with path.open("rb") as file:
                if self.kind == "file" and os.fstat(file.fileno()).st_mode & 0o007:
                    raise ConfigError(f"{self.key}: everybody may read {path}: chmod 600 it")
                text = file.read(LARGEST_SECRET + 1).decode("utf-8").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text"
            raise ConfigError(f"{self.key}: {path} can not be read: {reason}") from None
        if not text or len(text) > LARGEST_SECRET:
            raise ConfigError(f"{self.key}: {path} is {'too long' if text else 'empty'}: put the secret alone in it")
        return text

    def _path(self) -> Path:
        if self.kind == "file":
            return Path(self.name)
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise ConfigError(
                f"{self.key}: there are no systemd credentials here: start the service with "
                f"LoadCredential={self.name}:PATH, or write file:PATH"
            )
        return Path(folder, self.name)


@dataclass(frozen=True, slots=True)
class SecretRule(Rule):
    """``file:PATH``, ``credential:NAME``, or an empty text for none.  Hidden: it may be the secret itself."""

    hidden: ClassVar[bool] = True

    def _read(self, value: Any, place: Place) -> Secret | None:
        if value == "":
            return None
        kind, _, name = value.partition(":") if isinstance(value, str) else ("", "", "")
        if kind == "file" and name and not name.startswith("~") and "\0" not in name:
            return Secret("file", str(place.folder / name), place.key)
        if kind == "credential" and ID.fullmatch(name) and name not in {".", ".."}:
            return Secret("credential", name, place.key)
        raise ConfigError(SECRETS)
