"""What systemd is told, against a socket of our own; pings stop when a source stands still and go on when it moves."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from arenite.adapters.notify import STATUS_CHARS, Notifier, Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WAIT_S = 30.0  # generous: a busy machine is no failure


class Manager:
    """A service manager: reads datagrams at an address."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(WAIT_S)

    def read(self) -> dict[str, str]:
        """Return the fields of the next message."""
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().split("\n"))

    def waiting(self) -> list[dict[str, str]]:
        """Return all messages that have come."""
        self._socket.setblocking(False)
        found = []
        try:
            while True:
                found.append(self.read())
        except BlockingIOError:
            return found
        finally:
            self._socket.settimeout(WAIT_S)

    def until(self, good: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Return the first message that is good; all before it are dropped."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            if good(message := self.read()):
                return message
        raise AssertionError("no such message came")

    def close(self) -> None:
        """Go away."""
        self._socket.close()


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """Give a manager at a path, and one at an abstract name."""
    abstract = request.param == "abstract"
    found = Manager(f"@arenite-test-{os.getpid()}-{time.monotonic_ns()}" if abstract else str(tmp_path / "notify"))
    yield found
    found.close()


def asked(manager: Manager, seconds: float | None = 2.0) -> Notifier:
    return Notifier(manager.address, seconds)


def test_the_life_of_a_service_in_messages(manager: Manager) -> None:
    notifier = Notifier.take({"NOTIFY_SOCKET": manager.address})
    assert notifier.active
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    for said in (notifier.status("listeners"), notifier.extend(20), notifier.ready("1 model"), notifier.ping(),
                 notifier.reloading(), notifier.degraded("b.gguf: damaged"), notifier.stopping("draining 3 streams")):
        assert said
    assert manager.read() == {"STATUS": "listeners"}
    assert manager.read() == {"EXTEND_TIMEOUT_USEC": "20000000"}
    assert manager.read() == {"READY": "1", "STATUS": "1 model"}
    assert manager.read() == {"WATCHDOG": "1"}
    reload = manager.read()
    assert reload.pop("RELOADING") == "1"
    assert int(reload.pop("MONOTONIC_USEC")) >= before
    assert not reload
    assert manager.read() == {"READY": "1", "STATUS": "degraded: b.gguf: damaged"}
    assert manager.read() == {"STOPPING": "1", "STATUS": "draining 3 streams"}


def test_a_status_is_one_line_and_never_a_field_of_its_own(manager: Manager) -> None:
    notifier = asked(manager)
    notifier.status("two\nREADY=1\n lines")
    assert manager.read() == {"STATUS": "two READY=1 lines"}
    notifier.status("x" * 9000)
    assert len(manager.read()["STATUS"]) == STATUS_CHARS


def test_the_environment_is_taken_and_not_left_to_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/nobody")
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier = Notifier.take()
    assert (notifier.address, notifier.watchdog_s) == ("/run/nobody", 30.0)
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
    assert not Notifier.take().active


@pytest.mark.parametrize(("usec", "pid", "wanted"), [
    ("30000000", "", 30.0), ("30000000", "1", None), ("0", "", None), ("", "", None), ("soon", "", None),
    ("-5", "", None), ("30000000", "me", None),
])
def test_the_watchdog_is_fed_only_by_whom_systemd_means(usec: str, pid: str, wanted: float | None) -> None:
    assert Notifier.take({"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}).watchdog_s == wanted


@pytest.mark.parametrize("address", ["", "@", "vsock:2:1", "relative"])
def test_outside_systemd_nothing_happens(address: str) -> None:
    notifier = Notifier(address)
    assert not notifier.active
    assert not notifier.ready("up")
    assert not notifier.stopping()
    with Watchdog(notifier) as watchdog:
        watchdog.watch("engine", 5.0)
        assert not watchdog.standing()


def test_a_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    notifier = asked(manager)
    manager.close()
    assert not notifier.ready()
    (tmp_path / "notify").unlink()
    assert not notifier.ready()


def test_pings_stop_when_a_source_stands_still_and_go_on_when_it_moves(manager: Manager) -> None:
    clock, notifier = Clock(), asked(manager, 20.0)
    watchdog = Watchdog(notifier, clock)
    engine, loop = watchdog.watch("engine", 12.0), watchdog.watch("event loop", 5.0)
    notifier.ready("2 models")
    watchdog.look()
    assert manager.waiting() == [{"READY": "1", "STATUS": "2 models"}, {"WATCHDOG": "1"}]
    for _ in range(10):  # ten seconds of health: one ping, at half the interval
        clock.now += 1.0
        engine.beat()
        loop.beat()
        watchdog.look()
    assert manager.waiting() == [{"WATCHDOG": "1"}]
    for _ in range(60):
        clock.now += 1.0
        loop.beat()
        watchdog.look()
    said = manager.waiting()
    assert said[0] == {"WATCHDOG": "1"}, "12 seconds are allowed"
    words = "standing still: engine for 13 s; the watchdog is not fed"
    assert said[1:] == [{"STATUS": words}], "said once, and no ping after it"
    assert watchdog.standing() == {"engine": 60.0}
    engine.beat()
    watchdog.look()
    assert manager.waiting() == [{"STATUS": "2 models"}, {"WATCHDOG": "1"}]
    assert not watchdog.standing()


def test_each_source_has_its_own_bound_and_all_are_named(manager: Manager) -> None:
    clock = Clock()
    watchdog = Watchdog(asked(manager), clock)
    link = watchdog.watch("link mqtt", 3.0)
    watchdog.watch("engine", 6.0)
    clock.now += 4.0
    watchdog.look()
    clock.now += 3.0
    watchdog.look()
    assert [message["STATUS"] for message in manager.waiting()] == [
        "standing still: link mqtt for 4 s; the watchdog is not fed",
        "standing still: link mqtt for 7 s, engine for 7 s; the watchdog is not fed",
    ]
    watchdog.forget(link)
    assert set(watchdog.standing()) == {"engine"}


def test_a_probe_moves_when_its_number_changes_or_it_says_so(manager: Manager) -> None:
    clock = Clock()
    answers: list[int | None] = [0, 1, 1, True, True, False, None, 1, 1]
    watchdog = Watchdog(asked(manager), clock)
    watchdog.watch("engine", 1.0, lambda: answers.pop(0))
    still = []
    while answers:
        clock.now += 2.0
        still.append(bool(watchdog.standing()))
    assert still == [False, False, True, False, False, True, False, False, True]


def test_a_probe_that_fails_has_not_moved(manager: Manager) -> None:
    clock = Clock()

    def broken() -> int:
        raise RuntimeError("no engine")

    watchdog = Watchdog(asked(manager), clock)
    watchdog.watch("engine", 1.0, broken)
    clock.now += 2.0
    assert watchdog.standing() == {"engine": 2.0}


def test_while_a_model_loads_no_progress_is_expected(manager: Manager) -> None:
    clock = Clock()
    watchdog = Watchdog(asked(manager), clock)
    engine = watchdog.watch("engine", 5.0)
    engine.allow(60.0)
    clock.now += 64.0
    assert not watchdog.standing(), "the bound counts from the end of what was allowed"
    clock.now += 2.0
    assert watchdog.standing()
    engine.allow(60.0)
    assert not watchdog.standing()
    engine.allow(0.0)
    clock.now += 6.0
    assert watchdog.standing()


def test_a_frozen_event_loop_is_seen_from_the_thread(manager: Manager) -> None:
    """The real thing: a thread, an event loop that blocks, and a loop that turns again."""
    watchdog = Watchdog(asked(manager, 0.4))
    freeze, frozen, thaw, end = (threading.Event() for _ in range(4))

    async def serve() -> None:
        beats = asyncio.create_task(watchdog.watch("event loop", 0.5).keep(0.02))
        await asyncio.to_thread(freeze.wait, WAIT_S)
        frozen.set()
        thaw.wait(WAIT_S)  # nothing turns
        await asyncio.to_thread(end.wait, WAIT_S)
        beats.cancel()

    server = threading.Thread(target=lambda: asyncio.run(serve()))
    with watchdog:
        server.start()
        for _ in range(3):
            manager.until(lambda message: message == {"WATCHDOG": "1"})
        freeze.set()
        assert frozen.wait(WAIT_S)
        while not watchdog.standing():
            time.sleep(0.05)
        time.sleep(0.5)
        assert any(message.get("STATUS", "").startswith("standing still: event loop") for message in manager.waiting())
        time.sleep(1.0)
        assert not manager.waiting(), "no ping while it stands still"
        thaw.set()
        manager.until(lambda message: message == {"WATCHDOG": "1"})
        end.set()
        server.join(WAIT_S)
    assert not server.is_alive()
    assert "arenite-watchdog" not in {thread.name for thread in threading.enumerate()}


def test_without_a_watchdog_what_stands_still_is_said_all_the_same(manager: Manager) -> None:
    clock = Clock()
    watchdog = Watchdog(asked(manager, None), clock)
    engine = watchdog.watch("engine", 1.0)
    clock.now += 2.0
    watchdog.look()
    engine.beat()
    watchdog.look()
    assert [list(message) for message in manager.waiting()] == [["STATUS"], ["STATUS"]]
