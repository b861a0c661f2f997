"""``arenite.toml`` as frozen values, parsed once.  A typo is an error.

A section of the file is a dataclass here and a field of `Settings`; a key is a field of the dataclass, whose type says
what may stand there (`rules`).  So a new section is one dataclass and one field.  `CEILINGS` holds what two keys may
not say together.  Every refusal is a ConfigError that begins with the key's path: ``zeromq.listen[1] is ...``.

Durations are seconds and sizes bytes once they are read.  examples/arenite.toml documents every key for people.
"""

from __future__ import annotations

import re
import socket
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from ..runtime.config import NULL_MODEL, ModelOptions
from ..runtime.errors import ConfigError
from .rules import Bytes, Duration, Endpoint, File, Mode, Name, Secret, SecretRule, Share, Whole, shown, stays_here
from .tables import as_text, check_known, hints_of, read_table, read_values

LARGEST_FILE = 1 << 20
MODEL_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass(frozen=True, slots=True)
class Arena:
    """``size`` and ``gpu`` as `Runtime` takes them: ``600MiB``, ``80%``, ``auto``."""

    size: Annotated[str, Share()] = "auto"
    gpu: Annotated[str, Share()] = "auto"


@dataclass(frozen=True, slots=True)
class Engine:
    """The supervised process that computes.

    ``limit``       requests that may be unfinished at a time
    ``journal``     bytes of requests and answers kept, from which streams go on after a restart
    ``hang_start``, ``hang_load``, ``hang_step``  how long a start, a loading of a model, a step may last
    ``backoff_first``, ``backoff_last``  wait before a restart: the first, doubled up to the last
    ``grace``       how long running streams may go on when the service is told to stop
    """

    limit: Annotated[int, Whole(1, 65_536)] = 1024
    journal: Annotated[int, Bytes("64KiB", "64GiB")] = 64 << 20
    hang_start: Annotated[float, Duration("1s", "10min")] = 60.0
    hang_load: Annotated[float, Duration("1s", "2h")] = 900.0
    hang_step: Annotated[float, Duration("100ms", "10min")] = 10.0
    backoff_first: Annotated[float, Duration("10ms", "10min")] = 0.1
    backoff_last: Annotated[float, Duration("10ms", "1h")] = 5.0
    grace: Annotated[float, Duration("0s", "10min")] = 25.0


@dataclass(frozen=True, slots=True)
class Sessions:
    """Conversations kept: ``ttl`` after the last use, the last ``turns`` of each; ``folder``: saved there at a stop."""

    ttl: Annotated[float, Duration("1s", "9000h")] = 86_400.0
    turns: Annotated[int, Whole(1, 65_536)] = 64
    folder: Annotated[Path | None, File(relative=False)] = None


@dataclass(frozen=True, slots=True)
class Zeromq:
    """What is offered over ZeroMQ; an empty ``listen`` offers nothing.

    ``listen``        endpoints of the ROUTER; ``mode``: permissions of ipc sockets
    ``status``        endpoint of the XPUB that tells states, models and health; None: none
    ``curve_secret``  the server's CURVE key; guards every tcp endpoint.  ``allow``: the file of clients' public keys
    ``hwm_send``, ``hwm_receive``  messages queued for, and from, each peer
    ``max_message``   bytes of one frame; a peer that sends more is cut off
    ``heartbeat``, ``heartbeat_timeout``  a peer that says nothing for the latter is gone
    """

    listen: tuple[Annotated[str, Endpoint()], ...] = ("ipc:///run/arenite/arenite.sock",)
    mode: Annotated[int, Mode()] = 0o660
    status: Annotated[str | None, Endpoint(optional=True)] = "ipc:///run/arenite/status.sock"
    curve_secret: Annotated[Secret | None, SecretRule()] = None
    allow: Annotated[Path | None, File()] = None
    hwm_send: Annotated[int, Whole(1, 100_000)] = 200
    hwm_receive: Annotated[int, Whole(1, 100_000)] = 200
    max_message: Annotated[int, Bytes("1KiB", "64MiB")] = 1 << 20
    heartbeat: Annotated[float, Duration("100ms", "10min")] = 2.0
    heartbeat_timeout: Annotated[float, Duration("200ms", "1h")] = 6.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take, on every transport.  More is refused with a code, and ``retry_ms`` where waiting helps.

    ``payload``     bytes of a request; ``chunk``: bytes of text in one message of a stream
    ``clients``     clients known at a time
    ``queued``, ``queued_per_client``  requests that wait; ``streams_per_client``: requests that run
    ``credit``      bytes of a stream that may be under way unacknowledged, unless a request says otherwise; 0: no limit
    ``control_rate``  messages of credit and resume per second and client
    ``stall``       a stream without credit for so long is reported, or cancelled if its client asked for that
    ``outbound``    bytes that wait for one client
    ``transcript``  bytes of one stream kept for a resume; ``replay``: of all finished ones, ``ids``: how many of them
    ``kept_done``, ``kept``  how long a finished one is kept after its client has said that it has it, and without that
    ``sessions``    conversations at a time
    ``health``      how often health is told
    """

    payload: Annotated[int, Bytes("1KiB", "16MiB")] = 64 << 10
    chunk: Annotated[int, Bytes("16B", "64KiB")] = 512
    clients: Annotated[int, Whole(1, 65_536)] = 1024
    queued: Annotated[int, Whole(1, 65_536)] = 64
    queued_per_client: Annotated[int, Whole(1, 65_536)] = 4
    streams_per_client: Annotated[int, Whole(1, 255)] = 2
    credit: Annotated[int, Bytes("64B", "16MiB", none=True)] = 4096
    control_rate: Annotated[int, Whole(1, 10_000)] = 20
    stall: Annotated[float, Duration("1s", "1h")] = 30.0
    outbound: Annotated[int, Bytes("4KiB", "64MiB")] = 256 << 10
    transcript: Annotated[int, Bytes("4KiB", "16MiB")] = 256 << 10
    replay: Annotated[int, Bytes("4KiB", "4GiB")] = 32 << 20
    ids: Annotated[int, Whole(1, 1_000_000)] = 1000
    kept_done: Annotated[float, Duration("1s", "24h")] = 300.0
    kept: Annotated[float, Duration("1s", "24h")] = 900.0
    sessions: Annotated[int, Whole(1, 1024)] = 256
    health: Annotated[float, Duration("1s", "1h")] = 30.0


@dataclass(frozen=True, slots=True)
class Log:
    """``level``: what is logged; ``prompts``: whether prompts and answers are, which nobody expects."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    prompts: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """``name``: the node's name on the wire, empty: the host's; ``boot``: id of this start, empty: drawn at each."""

    name: Annotated[str, Name()] = ""
    boot: Annotated[str, Name()] = ""

    @property
    def node(self) -> str:
        """The node's name: as configured, or the host's with ``-`` for what a name may not hold."""
        return self.name or re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:64] or "arenite"


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file.  Making one checks what its parts say together; ``model``: in the order of the file."""

    arena: Arena = field(default_factory=Arena)
    engine: Engine = field(default_factory=Engine)
    model: tuple[ModelOptions, ...] = ()
    sessions: Sessions = field(default_factory=Sessions)
    zeromq: Zeromq = field(default_factory=Zeromq)
    limits: Limits = field(default_factory=Limits)
    log: Log = field(default_factory=Log)
    service: Service = field(default_factory=Service)

    def __post_init__(self) -> None:
        _check_models(self.model)
        _check_listeners(self.zeromq)
        for low, high, why in CEILINGS:
            _check_ceiling(self, low, high, why)
        kept = self.limits.payload + self.limits.transcript
        if kept > self.engine.journal:
            raise ConfigError(
                f"engine.journal is {_text(self, 'engine.journal')}: one request and its answer may take {kept:,} "
                "bytes (limits.payload + limits.transcript), give at least that"
            )


CEILINGS = (  # a key, the key that is its upper bound, and why
    ("limits.queued", "engine.limit", "waiting requests are unfinished ones"),
    ("limits.queued_per_client", "limits.queued", "one client can not have more than all"),
    ("limits.streams_per_client", "engine.limit", "running requests are unfinished ones"),
    ("limits.chunk", "limits.credit", "no chunk would ever fit into the credit"),
    ("limits.chunk", "limits.outbound", "no chunk would ever fit into what may wait"),
    ("limits.transcript", "limits.replay", "a finished stream could not be kept"),
    ("limits.kept_done", "limits.kept", "who has its answer needs it no longer than who has not"),
    ("limits.payload", "zeromq.max_message", "who sends such a request would be cut off, not answered"),
    ("limits.chunk", "zeromq.max_message", "a client with the same bound would not get it"),
    ("zeromq.heartbeat", "zeromq.heartbeat_timeout", "peers would be given up between two heartbeats"),
    ("engine.backoff_first", "engine.backoff_last", "the wait only grows"),
)


def load(path: str | Path) -> Settings:
    """Read a settings file.  Raises ConfigError if it can not be read, too."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: give the settings file with --config") from None
    if len(raw) > LARGEST_FILE:
        raise ConfigError(f"{path}: more than {LARGEST_FILE:,} bytes: this is no settings file")
    try:
        table = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, nested beyond all bounds
        raise ConfigError(f"{path}: no TOML: {error}") from None
    return read(table, path.absolute().parent)


def read(table: dict[str, Any], folder: Path) -> Settings:
    """Return the settings of a parsed file; relative paths start from ``folder``."""
    check_known(table, [each.name for each in fields(Settings)])
    sections: dict[str, Any] = {}
    for each in fields(Settings):
        if each.name not in table:
            continue
        if each.name == "model":
            sections["model"] = _read_models(table["model"], folder)
        else:
            kind: Any = each.default_factory
            sections[each.name] = read_table(kind, table[each.name], each.name, folder)
    return Settings(**sections)


def _read_models(tables: Any, folder: Path) -> tuple[ModelOptions, ...]:
    if not isinstance(tables, list):
        raise ConfigError(f"model is {shown(tables)}: write [[model]], once for each model")
    return tuple(_read_model(table, f"model[{at}]", folder) for at, table in enumerate(tables))


def _read_model(table: Any, key: str, folder: Path) -> ModelOptions:
    """Return one model's options: types are checked here, all else by `ModelOptions` itself."""
    if not isinstance(table, dict):
        raise ConfigError(f"{key} is {shown(table)}: write [[model]], once for each model")
    values = read_values(ModelOptions, table, key, folder)
    path = values.pop("path")
    if not path or path.startswith("~") or "\0" in path:
        raise ConfigError(f"{key}.path is {path!r}: give the path of a GGUF file (~ is not expanded)")
    path = path if path == NULL_MODEL else str(folder / path)
    try:
        return ModelOptions(path, **values)
    except ConfigError as error:
        word, message = str(error).split(maxsplit=1)[0], str(error)
        if word in values:
            raise ConfigError(f"{key}.{message}") from None
        culprit = next((name for name in values if _refused(path, name, values[name])), None)
        raise ConfigError(f"{key}.{culprit}: {message}" if culprit else f"{key}: {message}") from None


def _refused(path: str, name: str, value: Any) -> bool:
    try:
        ModelOptions(path, **{name: value})
    except ConfigError:
        return True
    return False


def _check_models(models: tuple[ModelOptions, ...]) -> None:
    seen: dict[str, int] = {}
    for at, model in enumerate(models):
        if not MODEL_NAME.fullmatch(model.name):
            raise ConfigError(
                f"model[{at}].name is {shown(model.name)}: give 1 to 64 letters, digits, '_', '.', ':' or '-'"
            )
        if model.name in seen:
            raise ConfigError(f"model[{at}].name is {model.name!r}, as model[{seen[model.name]}]'s: give another name")
        seen[model.name] = at


def _check_listeners(zeromq: Zeromq) -> None:
    """Refuse an endpoint twice, and one that others reach without keys that tell who they are."""
    places = {f"zeromq.listen[{at}]": each for at, each in enumerate(zeromq.listen)}
    if zeromq.status is not None:
        places["zeromq.status"] = zeromq.status
    seen: dict[str, str] = {}
    for key, endpoint in places.items():
        if endpoint in seen and not endpoint.endswith(":*"):
            raise ConfigError(f"{key} is {endpoint!r}, as {seen[endpoint]}: give another endpoint")
        seen[endpoint] = key
        if not stays_here(endpoint) and (zeromq.curve_secret is None or zeromq.allow is None):
            raise ConfigError(
                f"{key} is {endpoint!r}, which other machines reach: give zeromq.curve_secret and zeromq.allow, "
                "or listen on 127.0.0.1"
            )
    if zeromq.allow is not None and zeromq.curve_secret is None:
        raise ConfigError(f"zeromq.allow is {str(zeromq.allow)!r}: its keys need zeromq.curve_secret, give that, too")


def _check_ceiling(settings: Settings, low: str, high: str, why: str) -> None:
    lower, upper = value_at(settings, low), value_at(settings, high)
    unlimited = high == "limits.credit" and upper == 0
    if lower > upper and not unlimited:
        raise ConfigError(
            f"{low} is {_text(settings, low)}, more than {high} with {_text(settings, high)}: {why}; "
            "lower the one or raise the other"
        )


def value_at(settings: Settings, key: str) -> Any:
    """Return the value of a key such as ``limits.queued``."""
    section, name = key.split(".")
    return getattr(getattr(settings, section), name)


def _text(settings: Settings, key: str) -> str:
    section, name = key.split(".")
    return as_text(hints_of(type(getattr(settings, section)))[name], value_at(settings, key))
