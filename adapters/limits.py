"""The bounds of ARN1, as a node states them in ``info.limits`` and in `Welcome`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from .messages import FromNode, Id

Bytes = Annotated[int, Meta(ge=1, le=1 << 32)]
Number = Annotated[int, Meta(ge=1, le=1 << 20)]
Seconds = Annotated[float, Meta(gt=0)]


class Limits(Struct, frozen=True, kw_only=True):
    """How much of everything; the defaults are for a box that serves microcontrollers.

    ``request_bytes``     a whole request; brokers and senders have bounds of that size
    ``control_bytes``     any other message of a device
    ``reply_bytes``       any message of a node but a chunk
    ``chunk_bytes``       a whole chunk with its envelope: MQTT clients on microcontrollers have buffers of 256 to 1024
                          bytes, and a broker drops in silence what is longer than a client's MaximumPacketSize
    ``depth``             lists and mappings within each other in schemas, messages and results
    ``queued``, ``queued_per_device``   requests that wait; then `busy`
    ``active_per_device``               answers in the making
    ``transcript_bytes``  kept of one answer for replay; ``token_bytes`` for each token that was asked for, if less
    ``replay_bytes``, ``replay_requests``, ``replay_done_s``, ``replay_s``   finished answers kept for repeated
                          requests: so many bytes, so many of them, so long after `done`, so long without
    ``outbound_bytes``    waiting for one device; beyond it chunks wait, ends do not
    ``sessions``, ``session_idle_s``, ``session_turns``   conversations kept
    ``controls_per_s``    `credit` and `resume` of one device
    ``stall_s``           out of credit for so long: the answer is stalled
    ``health_period_s``   between two reports of a node's health
    """

    request_bytes: Bytes = 64 << 10
    control_bytes: Bytes = 1 << 10
    reply_bytes: Bytes = 512 << 10
    chunk_bytes: Bytes = 512
    depth: Annotated[int, Meta(ge=1, le=200)] = 32
    queued: Number = 64
    queued_per_device: Number = 4
    active_per_device: Number = 2
    transcript_bytes: Bytes = 256 << 10
    token_bytes: Bytes = 16
    replay_bytes: Bytes = 32 << 20
    replay_requests: Number = 1000
    replay_done_s: Seconds = 300.0
    replay_s: Seconds = 900.0
    outbound_bytes: Bytes = 256 << 10
    sessions: Number = 256
    session_idle_s: Seconds = 86400.0
    session_turns: Number = 64
    controls_per_s: Number = 20
    stall_s: Seconds = 30.0
    health_period_s: Seconds = 30.0

    def transcript(self, max_tokens: int | None) -> int:
        """Bytes that may be kept of an answer of so many tokens."""
        return min(self.transcript_bytes, (max_tokens or self.transcript_bytes) * self.token_bytes)


LIMITS = Limits()


class Welcome(FromNode, frozen=True, kw_only=True, tag="welcome"):
    """The answer to `Hello`: who this is, since which start, the version chosen, and its limits."""

    node: Id
    boot: Id
    version: int = field(default_factory=lambda: 1)
    limits: Limits = field(default_factory=Limits)
