"""Log lines: native fields at a journal of our own, JSON elsewhere, a request id in each, and no prompts."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import sys
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest

from arenite.adapters import logs
from arenite.adapters.logs import Private, request, set_up
from arenite.runtime.errors import BadAnswer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOG = logging.getLogger("arenite.test")


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """Put logging back as it was."""
    root, ours = logging.getLogger(), logging.getLogger("arenite")
    levels = root.level, ours.level
    yield
    for handler in [handler for handler in root.handlers if handler.name == "arenite"]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    logging.captureWarnings(capture=False)


class Journald:
    """A journal: reads datagrams and takes their fields apart as journald does."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(30.0)

    def read(self) -> dict[str, str]:
        """Return the fields of the next entry."""
        data, fields = self._socket.recv(1 << 20), {}
        while data:
            line, _, rest = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if not equals:  # NAME, length, value
                size = int.from_bytes(rest[:8], "little")
                value, end, rest = rest[8:8 + size], rest[8 + size:9 + size], rest[9 + size:]
                assert end == b"\n"
            fields[name.decode()] = value.decode()
            data = rest
        return fields

    def close(self) -> None:
        """Go away."""
        self._socket.close()


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    """Give a journal."""
    found = Journald(tmp_path / "socket")
    yield found
    found.close()


@pytest.fixture
def stderr(tmp_path: Path) -> Iterator[Any]:
    """Give a file that plays the stream to the journal."""
    with (tmp_path / "stderr").open("w+", encoding="utf-8") as file:
        yield file


def stream_of(file: Any) -> dict[str, str]:
    """Return the environment in which that file is the journal's."""
    found = os.fstat(file.fileno())
    return {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_native_fields_go_to_the_journal(journald: Journald, stderr: Any) -> None:
    set_up(stream=stderr, environ=stream_of(stderr), journal=journald.path)
    with request("01J9Z3"):
        LOG.warning("queue of %d is full", 64, extra={"device": "lamp-7", "ttft-ms": 12.5})
    entry = journald.read()
    assert entry["MESSAGE"] == "queue of 64 is full"
    assert entry["PRIORITY"] == "4"
    assert entry["ARENITE_REQUEST_ID"] == "01J9Z3"
    assert entry["ARENITE_DEVICE"] == "lamp-7"
    assert entry["ARENITE_TTFT_MS"] == "12.5"
    assert entry["SYSLOG_IDENTIFIER"] == "arenite"
    assert entry["ARENITE_LOGGER"] == "arenite.test"
    assert entry["CODE_FILE"] == __file__
    assert entry["CODE_FUNC"] == "test_native_fields_go_to_the_journal"
    assert int(entry["CODE_LINE"]) > 0
    stderr.seek(0)
    assert not stderr.read(), "nothing is said twice"


@pytest.mark.parametrize("text", ["one\ntwo", "\n", "a=b\nMESSAGE=c\n\n", "Zürich\n中", "", "x" * 300])
def test_values_of_several_lines_arrive_whole(journald: Journald, stderr: Any, text: str) -> None:
    set_up(stream=stderr, environ=stream_of(stderr), journal=journald.path)
    LOG.info("%s", "said", extra={"note": text})
    assert journald.read()["ARENITE_NOTE"] == text


def test_a_traceback_is_a_part_of_the_message(journald: Journald, stderr: Any) -> None:
    set_up(stream=stderr, environ=stream_of(stderr), journal=journald.path)
    try:
        raise RuntimeError("no memory")
    except RuntimeError:
        LOG.exception("a step failed")
    message = journald.read()["MESSAGE"].splitlines()
    assert message[0] == "a step failed"
    assert message[-1] == "RuntimeError: no memory"


def test_levels_are_those_of_syslog(journald: Journald, stderr: Any) -> None:
    set_up("debug", stream=stderr, environ=stream_of(stderr), journal=journald.path)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        LOG.log(level, "x")
    assert [journald.read()["PRIORITY"] for _ in range(5)] == ["7", "6", "4", "3", "2"]


def test_a_journal_that_goes_away_loses_nothing(journald: Journald, stderr: Any) -> None:
    set_up(stream=stderr, environ=stream_of(stderr), journal=journald.path)
    journald.close()
    LOG.error("the engine died")
    stderr.seek(0)
    line = stderr.read()
    assert line.startswith("<3>{")
    assert json.loads(line[3:])["message"] == "the engine died"


def test_very_long_values_are_cut_between_characters(journald: Journald, stderr: Any) -> None:
    set_up(stream=stderr, environ=stream_of(stderr), journal=journald.path)
    LOG.info("%s", "x" + "é" * logs.VALUE_BYTES)
    message = journald.read()["MESSAGE"]
    assert logs.VALUE_BYTES - 2 <= len(message.encode()) <= logs.VALUE_BYTES


def test_where_standard_error_is_not_the_journal_lines_are_json(journald: Journald, stderr: Any) -> None:
    for environ in ({}, {"JOURNAL_STREAM": "1:2"}, {"JOURNAL_STREAM": "soon"}):
        stream = io.StringIO()
        set_up(stream=stream, environ=environ, journal=journald.path)
        LOG.info("up")
        assert lines(stream)[0]["message"] == "up"
    assert not logs.is_journal(stream_of(sys.__stdin__ or stderr), -1)


def test_a_json_line_has_its_fields() -> None:
    stream = io.StringIO()
    set_up(stream=stream, environ={})
    LOG.info("done\nwell", extra={"request_id": "r1", "fin": "stop", "path": os.PathLike, "time": "mine"})
    LOG.info("idle")
    first, second = lines(stream)
    assert first["request_id"] == "r1"
    assert first["message"] == "done\nwell"
    assert (first["level"], first["logger"], first["fin"]) == ("info", "arenite.test", "stop")
    assert first["time"].endswith("Z")
    assert "PathLike" in first["path"], "what JSON does not know is written as text"
    assert second["request_id"] is None


def test_the_request_id_follows_the_context_and_ends_with_it() -> None:
    stream = io.StringIO()
    set_up(stream=stream, environ={})
    with request("outer"):
        with request("inner"):
            LOG.info("a")
            inside = copy_context()
        LOG.info("b")
    LOG.info("c")
    inside.run(LOG.info, "d")
    assert [line["request_id"] for line in lines(stream)] == ["inner", "outer", None, "inner"]


def test_prompts_are_a_length_unless_asked_for(journald: Journald, stderr: Any) -> None:
    secret = Private("my diary")
    assert f"{secret}" == repr(secret) == "<8 characters>"
    for prompts in (False, True):
        set_up(stream=stderr, environ=stream_of(stderr), journal=journald.path, prompts=prompts)
        LOG.info("asked %s", secret, extra={"prompt": secret})
        LOG.info("asked %(what)s", {"what": secret})
        LOG.info(secret)
        first, second, third = (journald.read() for _ in range(3))
        shown = "my diary" if prompts else "<8 characters>"
        assert first["MESSAGE"] == second["MESSAGE"] == f"asked {shown}"
        assert first["ARENITE_PROMPT"] == third["MESSAGE"] == shown


@pytest.mark.parametrize("prompts", [False, True])
def test_an_error_that_quotes_an_answer_is_shortened(prompts: bool) -> None:
    stream = io.StringIO()
    set_up(stream=stream, environ={}, prompts=prompts)
    error = BadAnswer("the answer is not JSON: 'my diary'", "my diary")
    LOG.warning("refused: %s", error)
    try:
        raise RuntimeError("outer") from error
    except RuntimeError:
        LOG.exception("failed")
    assert ("my diary" in stream.getvalue()) == prompts
    assert "outer" in stream.getvalue()


def test_setting_up_again_replaces_the_handler_and_levels_hold() -> None:
    first, second = io.StringIO(), io.StringIO()
    set_up(stream=first, environ={})
    set_up("warning", stream=second, environ={})
    LOG.info("unheard")
    LOG.warning("heard")
    logging.getLogger("paho").info("unheard")
    logging.getLogger("paho").warning("heard")
    assert not first.getvalue()
    assert [line["logger"] for line in lines(second)] == ["arenite.test", "paho"]


def test_a_line_that_can_not_be_formatted_is_no_error_of_the_caller(
    journald: Journald, stderr: Any, capsys: pytest.CaptureFixture[str],
) -> None:
    handler = set_up(stream=stderr, environ=stream_of(stderr), journal=journald.path)
    secret = Private("42" * 4)
    handler.handle(LOG.makeRecord(LOG.name, logging.INFO, __file__, 1, "%d", (secret,), None))
    said = capsys.readouterr().err
    assert "<8 characters>" in said
    assert secret.text not in said
    LOG.info("next")
    assert journald.read()["MESSAGE"] == "next"
