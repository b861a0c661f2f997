"""What the service tells everybody who listens: the last value of each topic at once, then every new one.

Two frames each, the topic and JSON: ``state`` (ready, degraded, draining, offline), ``models``, ``health``, ``event``.
A PUB socket would leave a newcomer without a word until the next change; an XPUB hears who comes and says it again.
"""

from __future__ import annotations

import json
from typing import Any

import zmq

TOPICS = ("state", "models", "health")
KEPT = frozenset(TOPICS)


class Board:
    """The XPUB socket.  Call `answer` when it may be read; belongs to one thread."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self.last: dict[str, bytes] = {}

    def tell(self, topic: str, value: dict[str, Any] | list[Any]) -> bool:
        """Publish a value; one of `TOPICS` is kept for newcomers, and not repeated while it is the same."""
        raw = json.dumps(value, separators=(",", ":"), default=str).encode()
        if self.last.get(topic) == raw:
            return False
        if topic in KEPT:
            self.last[topic] = raw
        self._send(topic, raw)
        return True

    def answer(self) -> None:
        """Say the last values to those who have just come."""
        while True:
            try:
                said = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if said[:1] == b"\x01":
                for topic, raw in self.last.items():
                    if topic.encode().startswith(said[1:]):
                        self._send(topic, raw)

    def _send(self, topic: str, raw: bytes) -> None:
        try:
            self.socket.send_multipart([topic.encode(), raw], zmq.NOBLOCK)
        except zmq.Again:  # XPUB drops for slow listeners by itself; this is the socket's own end
            return
