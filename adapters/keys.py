"""Who may connect over tcp: CURVE keys of clients in a file, asked for by libzmq through ZAP (rfc.zeromq.org/spec/27).

The file has one public key a line, as ``zmq.curve_keypair`` and ``arenite`` write them (40 characters of Z85); what
follows on the line is a name for people, and ``#`` begins a comment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import zmq
from zmq.utils import z85

from ..runtime.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

KEY_CHARS = 40
LARGEST_FILE = 1 << 20
DOMAIN = b"arenite"
ENDPOINT = "inproc://zeromq.zap.01"


def read_allowed(path: Path | None) -> frozenset[str]:
    """Return the public keys of a file.  Raises ConfigError, with the line that holds none."""
    if path is None:
        return frozenset()
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE).decode("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        raise ConfigError(f"zeromq.allow: {path} can not be read: {reason}") from None
    found = set()
    for number, line in enumerate(text.splitlines(), 1):
        words = [] if line.lstrip().startswith("#") else line.split(maxsplit=1)
        if words:
            check_key(words[0], f"zeromq.allow: {path}, line {number}")
            found.add(words[0])
    return frozenset(found)


def check_key(key: str, where: str) -> bytes:
    """Return the 32 bytes of a key.  Raises ConfigError if it is none; the message does not show it."""
    try:
        raw = z85.decode(key.encode("ascii")) if len(key) == KEY_CHARS else b""
    except (ValueError, KeyError, OverflowError):
        raw = b""
    if len(raw) != KEY_CHARS * 4 // 5:
        raise ConfigError(f"{where}: this is no CURVE key: it has 40 characters of Z85")
    return bytes(raw)


class Doorkeeper:
    """Answers libzmq's questions about keys; ``allowed`` may be replaced at any time.

    Must be there before anything is bound with CURVE.  Call `answer` when its socket may be read, on one thread.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allowed: frozenset[str]) -> None:
        self.allowed, self.refused = allowed, 0
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(ENDPOINT)

    def answer(self) -> None:
        """Answer every question that waits."""
        while True:
            try:
                asked = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.socket.send_multipart(self._reply(asked))

    def _reply(self, asked: list[bytes]) -> list[bytes]:
        version, number = asked[:2]
        key = ""
        if len(asked) == 7 and asked[2] == DOMAIN and asked[5] == b"CURVE" and len(asked[6]) == 32:
            key = z85.encode(asked[6]).decode("ascii")
        if key in self.allowed:
            return [version, number, b"200", b"OK", key.encode("ascii"), b""]
        self.refused += 1
        return [version, number, b"400", b"this key is not allowed", b"", b""]
