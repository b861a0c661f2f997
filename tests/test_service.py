"""The service over real sockets: several clients, what dies on the way, and what nobody may see of the others."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
import pytest
import zmq

import arenite
from arenite.adapters import guests
from arenite.adapters.client import AT_ONCE, Client, connect, connect_async
from arenite.adapters.frames import Frames
from arenite.adapters.limits import LIMITS, Welcome
from arenite.adapters.messages import (
    Accept,
    Cancel,
    Chunk,
    Credit,
    Done,
    End,
    Failure,
    Generate,
    Hello,
    Ping,
    Pong,
    Resume,
    new_request_id,
)
from arenite.adapters.receiver import Deliver, Finished, Receiver, Send
from arenite.adapters.service import Service
from arenite.adapters.settings import Settings, load
from arenite.runtime.errors import Busy, ConfigError, EngineClosed, EngineFailed, ModelNotFound, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from arenite.adapters.notify import Notifier
    from arenite.adapters.wire import ToDevice, ToNode

WAIT_S = 30.0
LONG = 6000  # tokens: about as many seconds as a test may take are never needed
ENVIRONMENT = {**os.environ, "GOMP_SPINCOUNT": "1000"}


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"waited for {what} in vain"
        time.sleep(0.005)


def write(folder: Path, more: str = "", *, models: str = "", zeromq: str = "") -> Path:
    """Write a settings file with the null model, an ipc and a tcp listener."""
    path = folder / "arenite.toml"
    models = models or '[[model]]\npath = "null:"\ncontext = 65536\nstreams = 16\n'
    new = folder / "new.toml"
    new.write_text(
        f'{models}\n[zeromq]\nlisten = ["ipc://{folder}/a.sock", "tcp://127.0.0.1:*"]\n'
        f'status = "ipc://{folder}/s.sock"\n{zeromq}\n{more}\n', encoding="utf-8",
    )
    new.replace(path)  # a service may read it at any moment
    return path


class Running:
    """A service in a thread of this process."""

    def __init__(self, path: Path, notifier: Notifier | None = None) -> None:
        self.path, self.settings = path, load(path)
        self.folder = path.parent
        self._notifier, self._ready = notifier, threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(WAIT_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.service = Service(self.settings, self.path, self._notifier)
        self.loop.call_later(0.01, self._ready.set)
        await self.service.run()

    @property
    def url(self) -> str:
        return f"ipc://{self.folder}/a.sock"

    @property
    def tcp(self) -> str:
        return next(place for place in self.service.node.endpoints if place.startswith("tcp"))

    def connect(self, url: str = "", **more: Any) -> Client:
        client = connect(url or self.url, timeout=WAIT_S, **more)
        until(lambda: all(model["state"] != "loading" for model in client.models()), "the models")
        return client

    def call(self, function: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.call(self.service.stop)
            self._thread.join(WAIT_S)
            assert not self._thread.is_alive()

    def kill_engine(self) -> None:
        runtime = self.service.runtime
        assert runtime is not None
        engine = runtime.status().engine
        assert engine is not None
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.call(self.service.stop)
            self.call(self.service.stop)
        self.stop()


class Raw:
    """A client that speaks frames, well or badly."""

    def __init__(self, url: str, *, high_water: int = 1000) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvhwm = high_water
        self.socket.connect(url)
        self.frames = Frames(msgspec.structs.replace(LIMITS, reply_bytes=1 << 20))
        self.secret = ""

    def hello(self, secret: str = "") -> Welcome:
        self.secret = secret
        self.say(Hello(client="raw"))
        welcome = self.hear()
        assert isinstance(welcome, Welcome)
        return welcome

    def say(self, message: ToNode) -> None:
        frames = self.frames.write(message)
        self.socket.send_multipart(guests.with_secret(frames, self.secret) if self.secret else frames)

    def hear(self, timeout: float = WAIT_S) -> ToDevice | None:
        if not self.socket.poll(int(1e3 * timeout)):
            return None
        frames, secret = guests.take_secret(self.socket.recv_multipart())
        self.secret = secret or self.secret
        return self.frames.to_device(frames)

    def hear_a(self, kind: type[Any]) -> Any:
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            message = self.hear()
            if isinstance(message, kind):
                return message
        raise AssertionError(f"no {kind.__name__} came")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.destroy(linger=0)


def serve(path: Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "arenite", "serve", "--config", str(path)], stderr=subprocess.PIPE,
                            env={**ENVIRONMENT, **environment})


def end(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> str:
    """End a service; returns what it logged."""
    process.send_signal(how)
    try:
        return process.communicate(timeout=WAIT_S)[1].decode()
    finally:
        process.kill()
        process.wait()


def ask(prompt: str = "hello", **more: Any) -> Generate:
    return Generate(rid=new_request_id(), prompt=prompt, **{"max_tokens": 50, "chunk": AT_ONCE, **more})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = '[limits]\nstreams_per_client = 8\nqueued_per_client = 16\noutbound = "8KiB"\n'
    with Running(write(tmp_path_factory.mktemp("service"), limits, zeromq="hwm_send = 10")) as service:
        yield service


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[Client]:
    with running.connect() as one:
        yield one


# ---- answers ----


def test_several_clients_get_the_same_answers_over_ipc_and_tcp(running: Running, client: Client) -> None:
    with running.connect(running.tcp) as other:
        tickets = [(one, n, one.submit(f"prompt {n}", max_tokens=80)) for n in range(8) for one in (client, other)]
        texts = {(n, one is client): ticket.result(WAIT_S).text for one, n, ticket in tickets}
    assert all(texts[n, True] == texts[n, False] for n in range(8))
    assert len(set(texts.values())) == 8
    assert all(len(text) == 80 for text in texts.values())


def test_a_stream_is_its_result_and_the_ticket_is_the_runtimes(client: Client) -> None:
    ticket = client.stream("stream", max_tokens=60, temperature=0.8, seed=3)
    assert isinstance(ticket, arenite.Ticket)
    pieces = list(ticket)
    answer = ticket.result(WAIT_S)
    assert "".join(pieces) == answer.text == ticket.partial()
    assert len(pieces) > 1
    assert ticket.state == "succeeded"
    assert (answer.reason, answer.usage.answer_tokens, answer.usage.prompt_tokens) == ("length", 60, 6)
    assert client.generate("stream", max_tokens=60, temperature=0.8, seed=3).text == answer.text


def test_a_schema_gives_an_object_and_a_type_gives_one_of_it(client: Client) -> None:
    kind = {"type": "object", "properties": {"a": {"enum": ["on", "off"]}}, "required": ["a"],
            "additionalProperties": False}
    assert client.generate("x", schema=kind, max_tokens=40).json()["a"] in {"on", "off"}
    assert client.generate("x", schema=bool, max_tokens=40) in {True, False}


def test_an_event_loop_awaits_and_iterates(running: Running) -> None:
    async def talk() -> tuple[str, str, list[dict[str, Any]], dict[str, Any]]:
        async with await connect_async(running.url) as one:
            pieces = [piece async for piece in one.stream("async", max_tokens=20)]
            answer = await one.generate("async", max_tokens=20)
            return "".join(pieces), answer.text, await one.models(), await one.health()

    streamed, whole, models, health = asyncio.run(talk())
    assert streamed == whole
    assert [model["id"] for model in models] == ["null"]
    assert health["state"] == "ready"


def test_cancel_ends_the_answer_and_frees_the_place(running: Running, client: Client) -> None:
    ticket = client.submit("cancel", max_tokens=LONG)
    until(ticket.partial, "text")
    ticket.cancel(wait=WAIT_S)
    assert ticket.state == "canceled"
    assert ticket.result(0).reason == "cancelled"
    until(lambda: running.service.bridge.unfinished == 0, "the place")


def test_the_newest_of_a_key_wins_and_keys_of_others_do_not_count(running: Running, client: Client) -> None:
    with running.connect() as other:
        theirs = other.submit("theirs", max_tokens=300, key="nav", policy="latest")
        old = client.submit("old", max_tokens=LONG, key="nav", policy="latest")
        until(old.partial, "text")
        new = client.submit("new", max_tokens=20, key="nav", policy="latest")
        assert len(new.result(WAIT_S).text) == 20
        assert old.result(WAIT_S).reason == "superseded"
        assert theirs.result(WAIT_S).reason == "length"


def test_a_deadline_ends_with_what_there_is_and_an_expired_request_never_begins(client: Client) -> None:
    answer = client.generate("deadline", max_tokens=60_000, deadline=0.3)
    assert answer.reason == "deadline"
    assert 0 < len(answer.text) < 60_000


def test_errors_have_type_request_id_and_partial_answer(client: Client) -> None:
    ticket = client.submit("x", model="nobody")
    with pytest.raises(ModelNotFound, match="nobody") as caught:
        ticket.result(WAIT_S)
    assert caught.value.__dict__["rid"] == ticket.rid
    assert caught.value.__dict__["partial"] == ""
    with pytest.raises(arenite.ContextOverflow):
        client.generate("x", max_tokens=1 << 20)
    with pytest.raises(arenite.InvalidRequest, match="top_k"):
        client.submit("x", top_k=3)
    with pytest.raises(arenite.InvalidRequest):
        client.submit("x" * 100_000)


# ---- what is lost ----


def test_the_engine_is_killed_and_eight_streams_see_a_pause(running: Running, client: Client) -> None:
    """The receiver checks length and CRC of every answer."""
    asked = [{"prompt": f"survive {n}", "max_tokens": 1000, "temperature": 0.9, "seed": n} for n in range(8)]
    calm = [ticket.result(WAIT_S).text for ticket in [client.submit(**one) for one in asked]]
    tickets = [client.submit(**one) for one in asked]
    until(lambda: all(ticket.partial() for ticket in tickets), "text of all streams")
    running.kill_engine()
    assert [ticket.result(WAIT_S).text for ticket in tickets] == calm
    until(lambda: client.health()["engine"]["restarts"] >= 1, "the restart to be told")


CLIENT = """
import sys, time
from arenite.adapters.client import connect
client = connect(sys.argv[1], timeout=30)
ticket = client.submit("killed", max_tokens=2000)
while len(ticket.partial()) < 100:
    time.sleep(0.002)
print(client.secret, ticket.rid, flush=True)
time.sleep(60)
"""


def test_a_client_that_was_killed_finds_its_answer_again(running: Running, client: Client) -> None:
    process = subprocess.Popen([sys.executable, "-c", CLIENT, running.url], stdout=subprocess.PIPE, env=ENVIRONMENT)
    with process:
        assert process.stdout is not None
        secret, rid = process.stdout.readline().decode().split()
        process.kill()
    with running.connect(secret=secret) as again:
        assert again.resume(rid).result(WAIT_S).text == client.generate("killed", max_tokens=2000).text
    with running.connect() as stranger, pytest.raises(EngineClosed, match="no such request"):
        stranger.resume(rid).result(WAIT_S)


def test_a_request_that_is_said_twice_runs_once(running: Running) -> None:
    with Raw(running.url) as raw:
        raw.hello()
        request = ask()
        raw.say(request)
        first = raw.hear_a(Accept)
        end = raw.hear_a(End)
        raw.say(request)
        assert raw.hear_a(Accept).attempt == first.attempt
        assert raw.hear_a(End) == end
        raw.say(msgspec.structs.replace(request, prompt="something else"))
        assert raw.hear_a(Failure).code == "conflict"


def test_a_resume_gives_the_bytes_from_there_on(running: Running) -> None:
    with Raw(running.url) as raw:
        raw.hello()
        request = ask(window=0)
        raw.say(request)
        raw.hear_a(End)
        raw.say(Resume(rid=request.rid, offset=20))
        first = raw.hear_a(Chunk)
        assert first.offset == 20
        raw.hear_a(End)
        raw.say(Done(rid=request.rid))
        raw.say(Resume(rid=request.rid, offset=20))
        assert raw.hear_a(Failure).code == "expired"


def test_credit_bounds_what_is_under_way(running: Running) -> None:
    with Raw(running.url) as raw:
        raw.hello()
        request = ask(window=64, max_tokens=500)
        raw.say(request)
        raw.hear_a(Accept)
        sizes = []
        while (message := raw.hear(0.5)) is not None:
            sizes += [len(message.text.encode())] if isinstance(message, Chunk) else []
        assert sum(sizes) in range(60, 65)
        raw.say(Credit(rid=request.rid, offset=sum(sizes)))
        assert raw.hear_a(Chunk).offset == sum(sizes)
        raw.say(Cancel(rid=request.rid))


def test_a_slow_client_stalls_itself_only_and_within_a_bound(running: Running, client: Client) -> None:
    bound = running.settings.limits.outbound
    with Raw(running.url, high_water=1) as slow:
        slow.hello()
        requests = [ask(f"slow {n}", window=0, max_tokens=2500) for n in range(4)]
        for request in requests:
            slow.say(request)
        node, most = running.service.node, 0
        until(lambda: node.waiting() > bound // 2, "a full queue")
        for n in range(10):
            assert len(client.generate(f"fast {n}", max_tokens=100).text) == 100
            most = max(most, node.waiting())
        until(lambda: running.service.bridge.unfinished == 0, "the engine, which nobody keeps waiting")
        assert max(most, node.waiting()) <= 2 * bound + LIMITS.chunk_bytes
        received = {request.rid: Receiver(request.rid, time.monotonic(), window=0) for request in requests}
        texts, ended = dict.fromkeys(received, ""), set[str]()
        while len(ended) < len(requests):
            message = slow.hear()
            assert message is not None
            for rid, receiver in received.items():
                for action in receiver.take(message, time.monotonic()):
                    texts[rid] += action.text if isinstance(action, Deliver) else ""
                    ended |= {rid} if isinstance(action, Finished) else set()
                    if isinstance(action, Send):
                        slow.say(action.message)
    assert texts == {request.rid: client.generate(str(request.prompt), raw=True, max_tokens=2500).text
                     for request in requests}


def test_the_service_is_killed_and_its_client_goes_on_with_the_next(tmp_path: Path) -> None:
    path = write(tmp_path)
    process = serve(path)
    client = connect(f"ipc://{tmp_path}/a.sock", timeout=WAIT_S)
    try:
        until(lambda: all(model["loaded"] for model in client.models()), "the models")
        ticket = client.submit("restart", max_tokens=3000)
        until(lambda: len(ticket.partial()) > 100, "text")
    finally:
        end(process, signal.SIGKILL)
    heard = ticket.partial()
    with Running(path) as second, client:
        text = ticket.result(WAIT_S).text
        assert text.startswith(heard)
        assert len(text) == 3000
        assert second.service.bridge.counters["accepted"] >= 1


def test_an_answer_that_nobody_is_there_for_goes_on_or_ends_as_was_asked(running: Running) -> None:
    bridge, reasons = running.service.bridge, []
    for absent in ("keep", "cancel"):
        with running.connect() as leaves:
            ticket = leaves.submit("leave", max_tokens=LONG, absent=absent)
            until(ticket.partial, "text")
            stream = next(stream for key, stream in bridge._open.items() if key[1] == ticket.rid)
        with pytest.raises(EngineClosed):
            ticket.result(WAIT_S)
        until(lambda: bridge.unfinished == 0, "the end")
        assert isinstance(stream.sender.terminal, End)
        reasons.append(stream.sender.terminal.reason)
    assert reasons == ["length", "cancelled"]
    assert not bridge.busy


# ---- who may see what ----


def test_nobody_reads_resumes_or_cancels_the_requests_of_others(running: Running) -> None:
    with Raw(running.url) as owner, Raw(running.url) as thief:
        owner.hello()
        request = ask(max_tokens=400, window=0)
        owner.say(request)
        owner.hear_a(Chunk)
        thief.say(Ping())
        assert thief.hear_a(Failure).code == "unauthorized"
        thief.hello()
        thief.say(Resume(rid=request.rid, offset=0))
        assert thief.hear_a(Failure).code == "node_lost"
        thief.say(Cancel(rid=request.rid))
        thief.say(msgspec.structs.replace(request, max_tokens=400))  # an id of its own, though it is the same
        assert thief.hear_a(End).reason == "length"
        thief.secret = "0" * 32
        thief.say(Cancel(rid=request.rid))
        assert thief.hear_a(Failure).code == "unauthorized"
        assert owner.hear_a(End).reason == "length"


def test_what_is_no_message_is_refused_and_harms_nobody(running: Running, client: Client) -> None:
    with Raw(running.url) as raw:
        for frames in ([b"x"], [b"ARN1"] * 4, [b"ARN2", b"\x01", b"", b"\x80"], [b"", b"", b"", b"", b"", b""],
                       [b"ARN1", b"\x10", b"", b"\xdf\xff\xff\xff\xff"]):
            raw.socket.send_multipart(frames)
            assert isinstance(raw.hear(), Failure)
        raw.hello()
        raw.say(Ping())
        assert isinstance(raw.hear(), Pong)
    assert client.generate("still there", max_tokens=5).reason == "length"


def test_a_wrong_curve_key_gets_no_data(tmp_path: Path) -> None:
    public, secret = zmq.curve_keypair()
    ours, own = (key.decode() for key in zmq.curve_keypair())
    theirs, other = (key.decode() for key in zmq.curve_keypair())
    (tmp_path / "secret").write_bytes(secret)
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "allow").write_text(f"# robots\n{ours} robot\n", encoding="ascii")
    path = write(tmp_path, zeromq='curve_secret = "file:secret"\nallow = "allow"\n')
    with Running(path) as running:
        server = public.decode()
        with running.connect(running.tcp, server_key=server, public_key=ours, secret_key=own) as robot:
            assert len(robot.generate("hello", max_tokens=10).text) == 10
            with pytest.raises(RequestError, match="allow-list"):
                connect(running.tcp, server_key=server, public_key=theirs, secret_key=other, timeout=WAIT_S)
            with pytest.raises(EngineFailed, match="does not answer"):
                connect(running.tcp, timeout=1.0)
            (tmp_path / "allow").write_text(f"{theirs}\n", encoding="ascii")
            running.call(running.service.reload)
            until(lambda: running.service.node._doors and theirs in running.service.node._doors.allowed, "new keys")
            connect(running.tcp, server_key=server, public_key=theirs, secret_key=other, timeout=WAIT_S).close()
            ticket = robot.submit("I was removed", max_tokens=10)
            time.sleep(0.3)
            assert not ticket.partial()
        with running.connect() as local:  # ipc is guarded by the permissions of its socket
            assert local.health()["link"]["refused_keys"] >= 1


def test_tcp_beyond_loopback_is_refused_without_keys(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("127.0.0.1", "*"), encoding="utf-8")
    with pytest.raises(ConfigError, match="curve_secret"):
        load(path)


def test_the_socket_has_the_mode_that_was_asked_for_and_one_owner(running: Running, tmp_path: Path) -> None:
    assert stat.S_IMODE((running.folder / "a.sock").stat().st_mode) == 0o660
    path = write(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace(f"{tmp_path}/a.sock", f"{running.folder}/a.sock"),
                    encoding="utf-8")
    second = Running(path)
    second.stop()
    assert isinstance(second.error, ConfigError)


# ---- bounds, and the end ----


def test_a_full_queue_answers_busy(tmp_path: Path) -> None:
    limits = "[limits]\nstreams_per_client = 1\nqueued_per_client = 2\nqueued = 2\n"
    with Running(write(tmp_path, limits)) as running, running.connect() as client:
        first = client.submit("first", max_tokens=LONG)
        until(first.partial, "text")
        waiting = [client.submit("waits", max_tokens=5) for _ in range(2)]
        with pytest.raises(Busy) as caught:
            client.submit("too many").result(WAIT_S)
        assert caught.value.retry_ms > 0
        first.cancel()
        assert [len(ticket.result(WAIT_S).text) for ticket in waiting] == [5, 5]


def test_draining_refuses_new_requests_and_every_running_one_gets_its_end(tmp_path: Path) -> None:
    path = write(tmp_path, '[engine]\ngrace = "700ms"\n')
    with Running(path) as running, running.connect() as client:
        short, long = client.submit("short", max_tokens=200), client.submit("long", max_tokens=60_000)
        until(lambda: short.partial() and long.partial(), "text")
        running.call(running.service.stop)
        until(lambda: running.service.bridge.draining, "the drain")
        with pytest.raises(Busy, match="stopping"):
            client.submit("late").result(WAIT_S)
        assert short.result(WAIT_S).reason == "length"
        assert long.result(WAIT_S).reason == "cancelled"
        running.stop()
        assert running.error is None


def test_status_gives_the_last_values_to_newcomers(running: Running, client: Client) -> None:
    assert client.node
    with zmq.Context() as context, context.socket(zmq.SUB) as listener:
        listener.linger = 0
        listener.subscribe("")
        listener.connect(f"ipc://{running.folder}/s.sock")
        told: dict[str, Any] = {}
        while not {"state", "models", "health"} <= set(told):
            assert listener.poll(int(1e3 * WAIT_S))
            topic, raw = listener.recv_multipart()
            told[topic.decode()] = json.loads(raw)
    assert told["state"]["state"] == "ready"
    assert told["models"][0]["id"] == "null"
    assert told["health"]["engine"]["pid"]


def test_a_reload_adds_changes_and_removes_models_and_a_bad_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    one = '[[model]]\npath = "null:"\nname = "one"\ncontext = 65536\n'
    path = write(tmp_path, models=one)
    with Running(path) as running, running.connect() as client:
        ticket = client.submit("goes on", max_tokens=1500, model="one")
        until(ticket.partial, "text")
        write(tmp_path, models=one + '[[model]]\npath = "null:"\nname = "two"\n')
        running.call(running.service.reload)
        until(lambda: [m["id"] for m in client.models() if m["loaded"]] == ["one", "two"], "the second model")
        assert len(client.generate("x", model="two", max_tokens=5).text) == 5
        assert len(ticket.result(WAIT_S).text) == 1500
        (tmp_path / "bad.toml").write_text("nonsense = 1\n", encoding="utf-8")
        (tmp_path / "bad.toml").replace(path)
        running.call(running.service.reload)
        until(lambda: "not reloaded" in caplog.text, "the refusal")
        write(tmp_path, "[limits]\nqueued_per_client = 1\n", models='[[model]]\npath = "null:"\nname = "two"\n')
        running.call(running.service.reload)
        until(lambda: [m["id"] for m in client.models()] == ["two"], "the first to go")
        with pytest.raises(ModelNotFound):
            client.generate("x", model="one")
        assert running.service.bridge.limits.queued_per_device == 1


# ---- the process ----


def hears(sock: socket.socket, expected: str, said: list[str]) -> None:
    end = time.monotonic() + WAIT_S
    while not any(expected in line for line in said):
        assert time.monotonic() < end, f"{expected} was not said: {said}"
        sock.settimeout(WAIT_S)
        said += sock.recv(4096).decode().splitlines()


def test_systemd_hears_ready_status_watchdog_reload_and_stop(tmp_path: Path) -> None:
    models = '[[model]]\npath = "null:"\n[[model]]\npath = "missing.gguf"\n'
    path, said = write(tmp_path, models=models), list[str]()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        process = serve(path, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="600000")
        try:
            hears(manager, "READY=1", said)
            hears(manager, "STATUS=degraded: missing", said)
            hears(manager, "WATCHDOG=1", said)
            with connect(f"ipc://{tmp_path}/a.sock") as client:
                with pytest.raises(arenite.ModelError, match="missing"):
                    client.generate("x", model="missing")
                said.clear()
                write(tmp_path)
                process.send_signal(signal.SIGHUP)
                hears(manager, "RELOADING=1", said)
                hears(manager, "READY=1", said)
                hears(manager, "STATUS=ready", said)
                assert len(client.generate("x", max_tokens=5).text) == 5
        finally:
            errors = end(process)
        hears(manager, "STOPPING=1", said)
    assert process.returncode == 0
    assert all(json.loads(line)["logger"].startswith("arenite") for line in errors.splitlines())


@pytest.mark.parametrize("text", ["nonsense = 1\n", "no toml", None])
def test_a_bad_configuration_exits_with_78(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "bad.toml").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "arenite", "serve", "--config", str(tmp_path / "bad.toml")], env=ENVIRONMENT,
        capture_output=True, text=True, timeout=WAIT_S, check=False,
    )
    assert done.returncode == 78
    assert len(done.stderr.splitlines()) == 1


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "arenite", *words], env=ENVIRONMENT, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=WAIT_S, check=False)


def test_run_asks_a_service_and_top_shows_it(running: Running, client: Client) -> None:
    text = client.generate("command", max_tokens=12).text
    told = command("run", "null", "command", "--max-tokens", "12", "--connect", running.url)
    assert (told.stdout, told.returncode) == (text + "\n", 0)
    told = command("run", "null", "command", "--max-tokens", "12", "--connect", running.url, "--json")
    assert json.loads(told.stdout)["text"] == text
    assert command("run", "null", "x", "--top-k", "3", "--connect", running.url).returncode == 2
    assert command("run", "nobody", "x", "--connect", running.url).returncode == 1
    told = command("run", "null:", "command", "--max-tokens", "12")
    assert (told.stdout, told.returncode) == (text + "\n", 0)
    shown = command("top", f"ipc://{running.folder}/s.sock", "--once")
    assert shown.returncode == 0
    assert "is ready" in shown.stdout
    assert "null: loaded" in shown.stdout
    assert command("top", f"ipc://{running.folder}/nobody.sock", "--once", "--wait", "0.1").returncode == 1


def test_connect_is_a_public_name(running: Running) -> None:
    with arenite.connect(running.url) as client:
        assert client.node
    with pytest.raises(AttributeError):
        arenite.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_a_client_needs_no_libllama() -> None:
    """What the client's modules import, followed through the package, never reaches the engine."""
    root, found, open_ = Path(arenite.__file__).parent, set[str](), ["adapters.client"]
    while open_:
        name = open_.pop()
        path = root / f"{name.replace('.', '/')}.py"
        if name in found or not path.exists():
            continue
        found.add(name)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                base = ".".join(name.split(".")[: -node.level])
                start = ".".join(filter(None, (base, node.module)))
                open_ += [start, *(f"{start}.{alias.name}" for alias in node.names)]
    assert {name for name in found if name.startswith("runtime")} <= {
        f"runtime.{name}" for name in ("errors", "events", "request", "ticket", "sampling", "forms", "typed")}


def test_settings_and_wire_agree_about_limits() -> None:
    assert Settings().limits.queued == LIMITS.queued
