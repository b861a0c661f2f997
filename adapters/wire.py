"""ARN1's codec: bytes to messages and back, without a socket, a thread or a clock.

A message is one map, in JSON (it begins with ``{``) or msgpack (0x80 to 0x8f, 0xde): the first byte tells.  Whatever
comes in, `Codec` gives a message or raises `Refused`, and takes memory in proportion to the bytes that came.
"""

from __future__ import annotations

import math
import re
from typing import TypeVar

import msgspec

from ..runtime.request import PRIORITIES, Priority
from .limits import LIMITS, Limits, Welcome
from .messages import (
    SMALLEST_WINDOW,
    VERSION,
    Accept,
    Bye,
    Cancel,
    Chunk,
    Credit,
    Done,
    End,
    Failure,
    Forget,
    Format,
    Generate,
    Hello,
    List,
    Listed,
    Ping,
    Pong,
    Progress,
    Resume,
)
from .refused import Refused

ToNode = Generate | Cancel | Credit | Resume | Done | Forget | List | Hello | Ping | Bye
ToDevice = Accept | Progress | Chunk | End | Failure | Listed | Welcome | Pong | Bye
Message = ToNode | ToDevice
T = TypeVar("T")
Decoders = tuple[msgspec.json.Decoder[T], msgspec.msgpack.Decoder[T]]

BROKEN = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, TypeError)  # what the libraries say
NUMBERS = {"background": 2, "interactive": 5, "control": 8}
ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
LARGEST, SMALLEST = 2**64 - 1, -(2**63)  # msgpack's whole numbers


def priority_name(number: int) -> Priority:
    """Return the class of a priority on the wire: 0-3 background, 4-7 interactive, 8-9 control."""
    return PRIORITIES[0] if number >= 8 else PRIORITIES[1] if number >= 4 else PRIORITIES[2]


def priority_number(name: Priority) -> int:
    """Return the number that stands for a class on the wire."""
    return NUMBERS[name]


def format_of(raw: bytes) -> Format | None:
    """Return the format that the first byte announces, or None."""
    first = raw[0] if raw else -1
    if first == 0x7B:
        return "json"
    return "msgpack" if 0x80 <= first <= 0x8F or first == 0xDE else None


class _Head(msgspec.Struct):
    """As much of a message as a refusal wants to know; everything else is skipped unread."""

    rid: str | None = None
    e: str | None = None


class Codec:
    """Reads and writes ARN1 within limits.  Holds nothing between calls; any thread may use it.

    Reading raises `Refused`: `bad_request` (not a message, or a value out of its range), `unsupported_version`,
    `too_large`.  It carries the request's id where that could be read.
    """

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self._node: Decoders[ToNode] = (msgspec.json.Decoder(ToNode), msgspec.msgpack.Decoder(ToNode))
        self._device: Decoders[ToDevice] = (msgspec.json.Decoder(ToDevice), msgspec.msgpack.Decoder(ToDevice))
        self._json = msgspec.json.Encoder()
        self._msgpack = msgspec.msgpack.Encoder()

    def to_node(self, raw: bytes) -> ToNode:
        """Read what a device said."""
        self._fits(raw, max(self.limits.request_bytes, self.limits.control_bytes))
        message = self._read(raw, self._node)
        if not isinstance(message, Generate):
            self._fits(raw, self.limits.control_bytes)
        return checked(message, self.limits.depth)

    def to_device(self, raw: bytes) -> ToDevice:
        """Read what a node said.  A chunk may be longer than this side's ``chunk_bytes``: that is for writing."""
        self._fits(raw, self.limits.reply_bytes)
        return checked(self._read(raw, self._device), self.limits.depth)

    def write(self, message: Message, form: Format = "json") -> bytes:
        """Return the bytes of a message; `Refused` as above if it is none that the other side would read."""
        if not isinstance(message, Chunk):
            self._prove(message)
        try:
            raw = self._json.encode(message) if form == "json" else self._msgpack.encode(message)
        except BROKEN as error:
            raise Refused("bad_request", f"this can not be written: {error}", rid=rid_of(message)) from error
        size = self.size(message)
        if len(raw) > size:
            raise _too_large(len(raw), size, rid_of(message))
        return raw

    def size(self, message: Message) -> int:
        """Return how many bytes a message of this type may have."""
        if isinstance(message, Generate):
            return self.limits.request_bytes
        if isinstance(message, Chunk):
            return self.limits.chunk_bytes
        return self.limits.reply_bytes if isinstance(message, ToDevice) else self.limits.control_bytes

    def _prove(self, message: Message) -> None:
        """Read it as the other side will: frozen values are not checked when they are made."""
        decoder = self._device[1] if isinstance(message, ToDevice) else self._node[1]
        try:
            checked(decoder.decode(self._msgpack.encode(message)), self.limits.depth)
        except BROKEN as error:
            raise Refused("bad_request", f"this can not be written: {error}", rid=rid_of(message)) from error

    @staticmethod
    def _fits(raw: bytes, size: int) -> None:
        if len(raw) > size:
            raise _too_large(len(raw), size, head(raw)[0])

    @staticmethod
    def _read(raw: bytes, decoders: Decoders[T]) -> T:
        form = format_of(raw)
        if form is None:
            raise Refused("bad_request", "neither JSON nor msgpack: a message is one map")
        try:
            return decoders[form == "msgpack"].decode(raw)
        except BROKEN as error:
            rid, attempt = head(raw)
            said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise Refused("bad_request", said, rid=rid, attempt=attempt) from error


def checked(message: T, depth: int) -> T:
    """Return the message if its free parts (schemas, results) hold only what both formats can carry."""
    try:
        if isinstance(message, Generate):
            _check_request(message, depth)
        elif isinstance(message, End):
            _check_plain(message.result, depth)
        elif isinstance(message, Failure):
            _check_plain(message.details, depth)
        elif isinstance(message, Listed):
            _check_plain(message.items, depth)
    except ValueError as error:
        raise Refused("bad_request", str(error), rid=rid_of(message)) from error
    return message


def _check_request(request: Generate, depth: int) -> None:
    if request.v != VERSION:
        raise Refused("unsupported_version", f"version {request.v}: this node speaks {VERSION}", rid=request.rid)
    if (request.prompt is None) == (request.messages is None):
        raise ValueError("give exactly one of prompt and msgs")
    if 0 < request.window < SMALLEST_WINDOW:
        raise ValueError(f"win is {request.window}: give 0 (no limit) or at least {SMALLEST_WINDOW} bytes")
    for part in (request.messages, request.schema, request.tools):
        _check_plain(part, depth)


def _check_plain(value: object, depth: int) -> None:
    """Raise ValueError for what JSON has no word for, whatever msgpack says, and for lists in lists beyond depth."""
    level = [value]
    while level:
        below: list[object] = []
        for part in level:
            if depth < 1 and isinstance(part, dict | list | tuple):
                raise ValueError("nested too deeply")
            if isinstance(part, dict):
                if not all(type(key) is str for key in part):
                    raise ValueError("a key is no text")
                below.extend(part.values())
            elif isinstance(part, (list, tuple)):
                below.extend(part)
            else:
                _check_scalar(part)
        level, depth = below, depth - 1


def _check_scalar(value: object) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is not finite")
    elif isinstance(value, int):
        if not SMALLEST <= value <= LARGEST:
            raise ValueError("a whole number is out of range: 64 bits hold it")
    elif value is not None and not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} is no value of JSON")


def head(raw: bytes) -> tuple[str, str]:
    """Return request id and attempt of bytes that may be no message, empty where they can not be read."""
    decode = msgspec.json.decode if format_of(raw) == "json" else msgspec.msgpack.decode
    try:
        found = decode(raw, type=_Head)
    except BROKEN:
        return "", ""
    return _id(found.rid), _id(found.e)


def rid_of(message: object) -> str:
    """Return a message's request id if it has one that may be repeated, else an empty text."""
    return _id(getattr(message, "rid", ""))


def _id(value: object) -> str:
    return value if isinstance(value, str) and ID.fullmatch(value) else ""


def _too_large(size: int, limit: int, rid: str) -> Refused:
    return Refused("too_large", f"{size:,} bytes: at most {limit:,} are taken", rid=rid)
