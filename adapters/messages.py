"""What ARN1 says: one frozen value per message, checked where it is read and where it is written.

::

    device -> node   gen  cancel  credit  resume  done  forget  list      hello  ping  bye
    node -> device   acc  prog  tok  (end | err)  listed                  welcome  pong  bye

A key on the wire is short (``o``), its name here is long (``offset``); the comment beside a field says its key where
the two differ.  A device's messages may hold no unknown key: a typo is refused by name.  A node's may, and it is
ignored, so that a newer node can say more to an older device.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, Struct, field

from ..runtime.events import Reason  # noqa: TC001 - msgspec reads the annotations at run time

VERSION = 1
Format = Literal["json", "msgpack"]
Code = Literal[
    "bad_request", "unsupported_version", "unauthorized", "no_model", "not_loaded", "busy", "too_large", "expired",
    "deadline", "cancelled", "conflict", "no_session", "node_lost", "stalled", "internal",
]
CODES: tuple[Code, ...] = get_args(Code)
Channel = Literal[0, 1, 2]
TEXT: Channel = 0
REASONING: Channel = 1
TOOL: Channel = 2

SAFE = 2**53 - 1  # the largest whole number that every JSON reader holds exactly (RFC 8259, section 6)
DAY_MS = 86_400_000
SMALLEST_WINDOW = 64  # bytes; half of it must still hold the longest character

Id = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.-]{1,64}\Z")]
MaybeId = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.-]{0,64}\Z")]
Count = Annotated[int, Meta(ge=0, le=SAFE)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Window = Annotated[int, Meta(ge=0, le=1 << 24)]
ChannelKey = Literal["0", "1", "2"]


def new_request_id() -> str:
    """Return a request id nobody can guess: 128 random bits as 32 hexadecimal digits, which fit ZeroMQ's 16 bytes."""
    return secrets.token_hex(16)


def _version() -> int:
    return VERSION  # a factory, so that the version is written although it is the default


class FromDevice(Struct, frozen=True, kw_only=True, tag_field="t", omit_defaults=True, forbid_unknown_fields=True):
    """What a device says.  ``sent``: its clock when it did, in seconds, for whom it may concern."""

    sent: Annotated[float, Meta(ge=0, le=1e15)] | None = field(default=None, name="ts")


class FromNode(Struct, frozen=True, kw_only=True, tag_field="t", omit_defaults=True):
    """What a node says."""


class Coalesce(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How text is gathered into chunks: for so many milliseconds, or bytes, or to the end of a sentence.

    Whatever comes first sends; the first text of an answer never waits.
    """

    ms: Annotated[int, Meta(ge=0, le=10_000)] = 60
    bytes: Annotated[int, Meta(ge=1, le=1 << 16)] = 256
    flush: Literal["none", "sentence"] = "none"


class Generate(FromDevice, frozen=True, kw_only=True, tag="gen"):
    """A request for an answer.  Exactly one of ``messages`` and ``prompt``.

    ``window``       bytes that may be under way unacknowledged; 0: no limit (a PC)
    ``lifetime_ms``  not begun by then: `expired`
    ``deadline_ms``  from its receipt; the answer ends with what there is
    ``priority``     0-3 background, 4-7 interactive, 8-9 control
    ``absent``       what becomes of the answer while the device is away
    """

    v: int = field(default_factory=_version)
    rid: Id
    model: Annotated[str, Meta(max_length=256)] = ""
    messages: Annotated[tuple[dict[str, Any], ...], Meta(max_length=256)] | None = field(default=None, name="msgs")
    prompt: str | None = None
    session: MaybeId = field(default="", name="sid")
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 24)] | None = field(default=None, name="max")
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = field(default=None, name="temp")
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None
    stop: Annotated[tuple[Name, ...], Meta(max_length=16)] = ()
    schema: dict[str, Any] | None = None
    tools: Annotated[tuple[dict[str, Any], ...], Meta(max_length=64)] = ()
    stream: bool = True
    format: Format | None = field(default=None, name="fmt")
    window: Window = field(default=4096, name="win")
    chunk: Coalesce = Coalesce()
    lifetime_ms: Annotated[int, Meta(ge=1, le=DAY_MS)] | None = field(default=None, name="ttl_ms")
    deadline_ms: Annotated[int, Meta(ge=1, le=DAY_MS)] | None = None
    priority: Annotated[int, Meta(ge=0, le=9)] = field(default=5, name="prio")
    key: Name | None = None
    policy: Literal["queue", "latest", "reject"] = "queue"
    absent: Literal["keep", "cancel"] = field(default="keep", name="disc")


class Cancel(FromDevice, frozen=True, kw_only=True, tag="cancel"):
    """Stop; with no ``attempt``, whichever it is."""

    rid: Id
    attempt: MaybeId = field(default="", name="e")


class Credit(FromDevice, frozen=True, kw_only=True, tag="credit"):
    """Everything before ``offset`` of the channel has arrived."""

    rid: Id
    attempt: MaybeId = field(default="", name="e")
    offset: Count = field(name="o")
    channel: Channel = field(default=TEXT, name="ch")


class Resume(FromDevice, frozen=True, kw_only=True, tag="resume"):
    """Go on from ``offset`` of the channel, and say the end again if it was said."""

    rid: Id
    attempt: MaybeId = field(default="", name="e")
    offset: Count = field(name="o")
    channel: Channel = field(default=TEXT, name="ch")


class Done(FromDevice, frozen=True, kw_only=True, tag="done"):
    """The end has arrived and everything before it: the node may forget the text."""

    rid: Id
    attempt: MaybeId = field(default="", name="e")


class Forget(FromDevice, frozen=True, kw_only=True, tag="forget"):
    """Forget a session."""

    session: Id = field(name="sid")


class List(FromDevice, frozen=True, kw_only=True, tag="list"):
    """Ask what there is."""

    what: Literal["models", "sessions", "streams", "health"]


class Hello(FromDevice, frozen=True, kw_only=True, tag="hello"):
    """The first word on a connection that has no broker between."""

    client: Id
    versions: Annotated[tuple[int, ...], Meta(min_length=1, max_length=16)] = field(default_factory=lambda: (VERSION,))
    format: Format = field(default="msgpack", name="fmt")


class Ping(FromDevice, frozen=True, kw_only=True, tag="ping"):
    """Are you there."""


class Bye(FromDevice, frozen=True, kw_only=True, tag="bye"):
    """The last word on a connection, from either side."""


class Accept(FromNode, frozen=True, kw_only=True, tag="acc"):
    """The request has its place; exactly one end or error follows for this ``attempt``.

    ``window`` is what was granted of the bytes asked for; ``offset`` where the text (channel 0) starts.
    """

    rid: Id
    attempt: Id = field(name="e")
    node: Id
    boot: Id
    position: Count = field(default=0, name="pos")
    estimate_ms: Count | None = field(default=None, name="eta_ms")
    window: Window = field(default=4096, name="win")
    offset: Count = field(default=0, name="o")


class Progress(FromNode, frozen=True, kw_only=True, tag="prog"):
    """A sign of life while no text flows."""

    rid: Id
    attempt: Id = field(name="e")
    state: Literal["queued", "loading", "prefill", "gen"] = field(name="st")
    position: Count = field(default=0, name="pos")
    percent: Annotated[int, Meta(ge=0, le=100)] | None = field(default=None, name="pct")


class Chunk(FromNode, frozen=True, kw_only=True, tag="tok"):
    """Text from ``offset`` (UTF-8 bytes since the channel's beginning); ``tokens``: how many were made so far."""

    rid: Id
    attempt: Id = field(name="e")
    offset: Count = field(name="o")
    text: str = field(name="d")
    channel: Channel = field(default=TEXT, name="ch")
    tokens: Count = field(default=0, name="n")


class Usage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens of the prompt and of the answer, how many of the first were known already, and the seed."""

    prompt: Count = field(default=0, name="in")
    answer: Count = field(default=0, name="out")
    cached: Count = 0
    seed: Count | None = None


class Timing(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Milliseconds in the queue and to the first token; tokens per second from there."""

    queued_ms: Annotated[float, Meta(ge=0, le=1e15)] = field(default=0.0, name="q")
    first_token_ms: Annotated[float, Meta(ge=0, le=1e15)] = field(default=0.0, name="ttft")
    tokens_s: Annotated[float, Meta(ge=0, le=1e15)] = field(default=0.0, name="tps")


class End(FromNode, frozen=True, kw_only=True, tag="end"):
    """The answer is complete: bytes and CRC-32 (zlib's) of each channel that said anything, and why it ended.

    ``result``: the answer's object where the request had a schema.
    """

    rid: Id
    attempt: Id = field(name="e")
    lengths: dict[ChannelKey, Count] = field(name="len")
    checksums: dict[ChannelKey, Annotated[int, Meta(ge=0, le=2**32 - 1)]] = field(name="crc")
    reason: Reason | Literal["tool"] = field(name="fin")
    usage: Usage | None = field(default=None, name="use")
    timing: Timing | None = field(default=None, name="tm")
    result: Any = field(default=None, name="obj")


class Failure(FromNode, frozen=True, kw_only=True, tag="err"):
    """The end without an answer, or the refusal of a message that could not be served.

    ``rid`` is empty if it could not be read, ``attempt`` if nothing was accepted.  ``kind`` is the code of
    arenite's own error, finer than ``code``, and ``details`` its attributes.
    """

    rid: MaybeId = ""
    attempt: MaybeId = field(default="", name="e")
    code: Code
    message: str = field(default="", name="msg")
    retry_ms: Annotated[int, Meta(ge=0, le=DAY_MS)] | None = None
    kind: MaybeId = ""
    details: dict[str, Any] = field(default_factory=dict, name="info")


class Listed(FromNode, frozen=True, kw_only=True, tag="listed"):
    """The answer to `List`."""

    what: Literal["models", "sessions", "streams", "health"]
    items: tuple[dict[str, Any], ...] = ()


class Pong(FromNode, frozen=True, kw_only=True, tag="pong"):
    """Here."""
