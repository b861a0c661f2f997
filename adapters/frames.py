"""ARN1 in ZeroMQ's multipart messages, behind the ROUTER's identity frame.

::

    "ARN1" | type, 1 byte | rid, 16 bytes or none | header, a msgpack map | text, with a chunk only

The header is the message's map without what the other frames say.  A request id is 16 bytes here and 32 hexadecimal
digits everywhere else, as `new_request_id` makes them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from .limits import LIMITS, Limits, Welcome
from .messages import (
    Accept,
    Bye,
    Cancel,
    Chunk,
    Credit,
    Done,
    End,
    Failure,
    Forget,
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
from .wire import BROKEN, Codec, Message, ToDevice, ToNode

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC = b"ARN1"
CHUNK, RID = 0x12, 16
HEX = re.compile(r"[0-9a-f]{32}")
TYPES: dict[int, type[Message]] = {
    0x01: Hello, 0x02: Welcome, 0x10: Generate, 0x11: Accept, CHUNK: Chunk, 0x13: End, 0x14: Failure, 0x15: Progress,
    0x16: Listed, 0x20: Cancel, 0x21: Credit, 0x22: Resume, 0x23: Done, 0x24: Forget, 0x25: List, 0x30: Ping,
    0x31: Pong, 0x3F: Bye,
}
NUMBERS = {kind: bytes([number]) for number, kind in TYPES.items()}
TAGS = {number: str(kind.__struct_config__.tag) for number, kind in TYPES.items()}


class Frames:
    """Reads and writes messages as frames (without the identity); refuses as `Codec` does."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._codec = Codec(limits)

    def write(self, message: Message) -> list[bytes]:
        """Return a message's frames.  Refused if its request id is not 32 hexadecimal digits."""
        body: dict[str, object] = msgspec.msgpack.decode(self._codec.write(message, "msgpack"))
        del body["t"]
        rid = _to_bytes(str(body.pop("rid", "")))
        text = [str(body.pop("d")).encode()] if isinstance(message, Chunk) else []
        return [MAGIC, NUMBERS[type(message)], rid, msgspec.msgpack.encode(body), *text]

    def to_node(self, frames: Sequence[bytes]) -> ToNode:
        """Read what a device said."""
        return self._codec.to_node(_joined(frames, self._codec.limits.request_bytes))

    def to_device(self, frames: Sequence[bytes]) -> ToDevice:
        """Read what a node said."""
        return self._codec.to_device(_joined(frames, self._codec.limits.reply_bytes))


def _joined(frames: Sequence[bytes], size: int) -> bytes:
    """Return the frames as the one msgpack map that they are a spelling of."""
    if frames and frames[0] != MAGIC and len(frames[0]) == len(MAGIC) and frames[0].startswith(MAGIC[:3]):
        raise Refused("unsupported_version", "this side speaks ARN1")
    if len(frames) not in {4, 5} or frames[0] != MAGIC:
        raise Refused("bad_request", "not a message of ARN1: it has 4 or 5 frames, the first is ARN1")
    _, kind, rid, header, *text = frames
    name = rid.hex() if len(rid) == RID else ""
    tag = TAGS.get(kind[0]) if len(kind) == 1 else None
    if tag is None or len(rid) not in {0, RID} or bool(text) != (tag == TAGS[CHUNK]):
        raise Refused("bad_request", "its frames are not those of a type of ARN1", rid=name)
    if sum(map(len, frames)) > size:
        raise Refused("too_large", f"at most {size:,} bytes are taken", rid=name)
    said: dict[str, object] = {"t": tag, **({"rid": name} if rid else {})}
    try:
        said.update({"d": text[0].decode()} if text else {})
        body = msgspec.msgpack.decode(header, type=dict[str, msgspec.Raw])
        if not said.keys().isdisjoint(body):
            raise ValueError("the header repeats what another frame says")
        return msgspec.msgpack.encode(said | body)
    except BROKEN as error:
        raise Refused("bad_request", str(error), rid=name) from error


def _to_bytes(rid: str) -> bytes:
    if rid and not HEX.fullmatch(rid):
        raise Refused("bad_request", "over ZeroMQ a request id is 32 hexadecimal digits", rid=rid)
    return bytes.fromhex(rid)
