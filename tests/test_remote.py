"""The engine in a process of its own: what was said survives its death, and a hang counts as one."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import arenite
from arenite.runtime import remote
from arenite.runtime.config import ModelOptions
from arenite.runtime.errors import ArenaTooSmall, Busy, EngineClosed, EngineFailed
from arenite.runtime.events import Accepted, Failed, Finished, Progress
from arenite.runtime.journal import Journal
from arenite.runtime.request import Request, Sampling
from arenite.runtime.worker import read_value

from . import checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from arenite.runtime.events import Event
    from arenite.runtime.ticket import Ticket

NULL = {"context": 8192, "streams": 8, "batch": 64}
EXACT = {"context": 2048, "streams": 8, "threads": 1, "kv_type": "f32", "flash_attention": False}
FORM = {"type": "object", "properties": {"action": {"enum": ["turn_on", "turn_off"]}, "room": {"enum": ["kitchen"]}},
        "required": ["action", "room"], "additionalProperties": False}
WAIT_S = 60.0


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"waited for {what} in vain"
        time.sleep(0.002)


def pid(runtime: arenite.Runtime) -> int:
    engine = runtime.status().engine
    assert engine is not None
    assert engine.pid is not None
    return engine.pid


def kill(runtime: arenite.Runtime, how: signal.Signals = signal.SIGKILL) -> int:
    victim = pid(runtime)
    os.kill(victim, how)
    return victim


@pytest.fixture(scope="module")
def isolated() -> Iterator[arenite.Runtime]:
    with arenite.Runtime(isolated=True) as runtime:
        yield runtime


def asked(seed: int) -> list[dict[str, Any]]:
    """Eight streams of all kinds: sampled, greedy, with a form, with stop texts that hold text back."""
    choose = random.Random(seed)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.9, "seed": seed}, {}, {"schema": FORM}, {"temperature": 0.7, "seed": 7, "schema": FORM},
        {"stop": ["never said", "aaaaaaaaaaaa"], "temperature": 1.0, "seed": seed + 1}, {"temperature": 0.5, "seed": 3},
        {"stop": [" the end of it"], "temperature": 0.9, "seed": 11}, {"temperature": 1.2, "seed": seed, "logprobs": 2},
    ]
    return [
        {"max_tokens": 100, "ignore_end": "schema" not in kind, **kind,
         "prompt": [choose.randint(97, 122) for _ in range(choose.randint(4, 400))]}
        for kind in kinds
    ]


def submit(model: Any, requests: list[dict[str, Any]]) -> list[Ticket]:
    return [model.submit(request["prompt"], **{k: v for k, v in request.items() if k != "prompt"})
            for request in requests]


@pytest.mark.parametrize("moment", range(20))
def test_what_was_said_survives_a_kill_at_any_moment(isolated: arenite.Runtime, moment: int) -> None:
    """Sampled answers of the fake model are equal to undisturbed ones: 0 to 6 in prefill, 7 to 9 while it restarts."""
    model = isolated.load("null:", name=f"null-{moment}", **NULL)
    requests = asked(moment)
    calm = [ticket.result() for ticket in submit(model, requests)]
    tickets = submit(model, requests)
    if moment > 6:
        at = random.Random(moment).randint(1, 120)
        until(lambda: sum(len(ticket.partial()) for ticket in tickets) >= at, "tokens")
    heard = [ticket.partial() for ticket in tickets]
    victim = kill(isolated)
    if moment in (7, 8, 9):  # the next one dies before it is ready
        until(lambda: bool(children(os.getpid()) - {victim}), "another process")
        for child in children(os.getpid()) - {victim}:
            os.kill(child, signal.SIGKILL)
    for ticket, before, expected in zip(tickets, heard, calm, strict=True):
        answer = ticket.result(WAIT_S)
        assert answer.text.startswith(before), "what was sent is not changed"
        assert (answer.text, answer.tokens, answer.reason) == (expected.text, expected.tokens, expected.reason)
        assert "".join(ticket) == answer.text
        assert answer.usage.draws == expected.usage.draws
        assert answer.logprobs == expected.logprobs
    model.close()


def children(parent: int) -> set[int]:
    """Return the engine processes of a process; its helpers that examine files are others."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text(encoding="ascii", errors="replace").rsplit(")", 1)[1].split()
            command = (status.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z" and b"runtime.worker" in command:
            found.add(int(status.parent.name))
    return found


@pytest.mark.reference
@pytest.mark.skipif("ARENITE_REFERENCE_MODELS" not in os.environ, reason="ARENITE_REFERENCE_MODELS is not set")
def test_a_real_model_goes_on_with_the_very_text_of_the_undisturbed_run(stories: Path) -> None:
    prompts = [f"Once upon a time, there was a {what}" for what in ("girl", "dog", "car", "tree", "boat", "king")]
    with arenite.Runtime(isolated=True) as runtime:
        model = runtime.load(stories, **EXACT)
        calm = [t.result(WAIT_S).text for t in [model.submit(p, max_tokens=200) for p in prompts]]
        for at in (1, 60, 300):
            tickets = [model.submit(prompt, max_tokens=200) for prompt in prompts]
            until(lambda: sum(len(t.partial()) for t in tickets) >= at, "tokens")  # noqa: B023
            kill(runtime)
            assert [ticket.result(WAIT_S).text for ticket in tickets] == calm
        status = runtime.status()
        assert status.engine is not None
        assert status.engine.restarts == 3
        assert status.allocations_after_seal == 0
        assert status.engine.rss_bytes > 0


def test_an_engine_that_stands_still_is_replaced_within_the_bound() -> None:
    events: list[Event] = []
    engine = remote.Engine("auto", "auto", events.extend, isolation=remote.Isolation(hang_s=1.5))
    try:
        model = engine.load(ModelOptions("null:", **NULL)).number  # type: ignore[arg-type]
        engine.submit(engine.next_ticket(), model, Request((97, 98), max_tokens=6000, ignore_end=True))
        until(lambda: any(isinstance(event, Progress) for event in events), "a token")
        before = engine.status().engine
        assert before is not None
        assert before.pid is not None
        os.kill(before.pid, signal.SIGSTOP)
        until(lambda: any(isinstance(event, Finished) for event in events), "the rest of the answer")
        after = engine.status()
        assert after.engine is not None
        assert after.engine.pid != before.pid
        assert after.engine.restarts == 1
        assert not Path(f"/proc/{before.pid}").exists()
    finally:
        engine.close()


def test_a_request_that_is_there_at_two_deaths_is_given_up_and_the_rest_go_on(isolated: arenite.Runtime) -> None:
    model = isolated.load("null:", name="two-deaths", **NULL)
    doomed = model.submit([100] * 4, max_tokens=7000, ignore_end=True)
    until(lambda: len(doomed.partial()) > 0, "a token")
    victim = kill(isolated)
    until(lambda: (engine := isolated.status().engine) is not None and engine.pid not in (victim, None), "another one")
    said = len(doomed.partial())
    until(lambda: len(doomed.partial()) > said, "it goes on")
    later = model.submit([101] * 4, max_tokens=500, ignore_end=True)
    until(lambda: len(later.partial()) > 0, "a token")
    text = doomed.partial()
    kill(isolated)
    with pytest.raises(EngineFailed, match="died 2 times"):
        doomed.result(WAIT_S)
    assert doomed.partial().startswith(text), "with what there was"
    assert later.result(WAIT_S).usage.answer_tokens == 500
    model.close()


def test_cancels_and_deadlines_count_while_no_engine_runs() -> None:
    with arenite.Runtime(isolated=arenite.Isolation(first_pause_s=1.5)) as runtime:
        model = runtime.load("null:", **NULL)
        settings: dict[str, Any] = {"max_tokens": 7000, "ignore_end": True}
        late = model.submit([99] * 3, deadline=0.8, **settings)
        gone, stays = (model.submit([97 + n] * 3, **settings) for n in range(2))
        until(lambda: all(len(t.partial()) for t in (late, gone, stays)), "tokens")
        kill(runtime)
        until(lambda: (found := runtime.status()).state == "degraded" and "SIGKILL" in found.reason, "the status")
        gone.cancel()
        until(lambda: gone.done and late.done, "both ends")
        assert (gone.completion().reason, late.completion().reason) == ("cancelled", "deadline")
        fresh = model.submit([120] * 3, max_tokens=5, ignore_end=True)
        assert fresh.result(WAIT_S).usage.answer_tokens == 5, "what comes meanwhile waits"
        assert stays.result(WAIT_S).usage.answer_tokens == 7000
        assert runtime.status().state == "ready"


def test_a_full_journal_answers_busy_and_drops_nothing() -> None:
    ends: list[Event] = []
    engine = remote.Engine("auto", "auto", ends.extend, isolation=remote.Isolation(journal_bytes=200_000))
    try:
        model = engine.load(ModelOptions("null:", **NULL)).number  # type: ignore[arg-type]
        request, taken = Request((97,) * 50, max_tokens=2000, ignore_end=True), 200_000 // (4096 + 36 * 50 + 5 * 2000)
        for _ in range(taken):
            engine.submit(engine.next_ticket(), model, request)
        with pytest.raises(Busy, match="journal"):
            engine.submit(engine.next_ticket(), model, request)
        until(lambda: sum(isinstance(event, Finished) for event in ends) == taken, "all answers")
        engine.submit(engine.next_ticket(), model, Request((97,), max_tokens=1))
    finally:
        engine.close()


def test_a_model_that_can_not_be_loaded_again_ends_its_own_requests_only(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    shutil.copy(checkpoints.gguf_file("tiny", "f16"), path)
    with arenite.Runtime("64MiB", isolated=True) as runtime:
        real = runtime.load(path, context=512, streams=2, threads=1)
        fake = runtime.load("null:", **NULL)
        lost = [real.submit([1, 2, 3], max_tokens=250, ignore_end=True) for _ in range(60)][-1]
        kept = fake.submit([97] * 3, max_tokens=3000, ignore_end=True)
        until(lambda: bool(kept.partial()), "a token")
        path.unlink()
        kill(runtime)
        with pytest.raises(arenite.ModelNotFound):
            lost.result(WAIT_S)
        assert kept.result(WAIT_S).usage.answer_tokens == 3000
        with pytest.raises(EngineClosed):
            real.submit([1], max_tokens=1).result(WAIT_S)


def test_a_model_that_kills_whoever_loads_it_again_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    shutil.copy(checkpoints.gguf_file("tiny", "f16"), path)
    with arenite.Runtime("64MiB", isolated=True) as runtime:
        real = runtime.load(path, context=512, streams=2, threads=1)
        fake = runtime.load("null:", **NULL)
        lost = [real.submit([1, 2, 3], max_tokens=250, ignore_end=True) for _ in range(60)][-1]
        kept = fake.submit([97] * 3, max_tokens=6000, ignore_end=True)
        until(lambda: bool(kept.partial()), "a token")
        ask = remote.Engine._ask_child

        def deadly(self: remote.Engine, child: Any, name: str, arguments: tuple[Any, ...]) -> Any:
            if name == "load" and arguments[0].path == str(path):
                child.kill()
            return ask(self, child, name, arguments)

        monkeypatch.setattr(remote.Engine, "_ask_child", deadly)
        kill(runtime)
        with pytest.raises(EngineFailed, match="over loading"):
            lost.result(WAIT_S)
        assert kept.result(WAIT_S).usage.answer_tokens == 6000


def test_whoever_hears_of_an_end_may_call_the_engine(isolated: arenite.Runtime) -> None:
    path = checkpoints.gguf_file("tiny", "f16")
    model = isolated.load(path, name="calls", context=256, streams=2, threads=1)
    heard: list[Any] = []
    ticket = model.submit("a", max_tokens=3, ignore_end=True)
    ticket.on_done(lambda _: heard.append((model.tokenize("b c"), model.submit("d", max_tokens=2, ignore_end=True))))
    until(lambda: bool(heard), "the callback")
    assert heard[0][1].result(WAIT_S).usage.answer_tokens == 2
    model.close()


def test_what_a_stopped_engine_never_heard_holds_for_the_next_one() -> None:
    """Cancels, unloading, and the policies of keys, sent to a process that dies before it reads them."""
    with arenite.Runtime(isolated=True) as runtime:
        model, other = (runtime.load("null:", name=name, **NULL) for name in ("a", "b"))
        long: dict[str, Any] = {"max_tokens": 4000, "ignore_end": True}
        gone, first = model.submit([97], **long), model.submit([98], key="k", **long)
        dropped = other.submit([99], **long)
        until(lambda: all(ticket.partial() for ticket in (gone, first, dropped)), "tokens")
        victim = kill(runtime, signal.SIGSTOP)
        gone.cancel()
        second = model.submit([100], max_tokens=5, ignore_end=True, key="k", policy="latest")
        third = model.submit([101], max_tokens=5, ignore_end=True, key="k", policy="reject")
        closing = threading.Thread(target=other.close)
        closing.start()
        time.sleep(0.3)
        os.kill(victim, signal.SIGKILL)
        closing.join(WAIT_S)
        with pytest.raises(EngineClosed):
            dropped.result(WAIT_S)
        assert second.result(WAIT_S).usage.answer_tokens == 5
        with pytest.raises(arenite.KeyTaken):
            third.result(WAIT_S)
        until(lambda: gone.done and first.done, "their ends")
        assert (gone.completion().reason, first.completion().reason) == ("cancelled", "superseded")
        assert model.generate([97], max_tokens=3, ignore_end=True).usage.answer_tokens == 3
        assert [each.info.name for each in runtime.status().models] == ["a"]


def test_calls_right_after_a_death_wait_for_the_next_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoints.gguf_file("tiny", "f16")
    shutil.copy(path, tmp_path / "m.gguf")
    monkeypatch.chdir(tmp_path)
    made: list[arenite.Runtime] = []
    maker = threading.Thread(target=lambda: made.append(arenite.Runtime("64MiB", isolated=True)))
    maker.start()
    maker.join()
    with made[0] as runtime:  # the thread that made it has ended
        model = runtime.load("m.gguf", context=256, streams=2, threads=1)
        tokens = model.tokenize("a b")
        monkeypatch.chdir("/")
        for restarts in range(1, 4):
            kill(runtime)
            assert model.tokenize("a b") == tokens
            assert model.generate("a b", max_tokens=3, ignore_end=True).usage.answer_tokens == 3
            engine = runtime.status().engine
            assert engine is not None
            assert engine.restarts == restarts
        assert runtime.status().state == "ready"


def test_many_forms_survive_a_death() -> None:
    with arenite.Runtime(isolated=True) as runtime:
        model = runtime.load("null:", **NULL)
        tickets = [model.submit([97], schema={"enum": [f"w{n}", f"v{n}"]}, max_tokens=9) for n in range(40)]
        until(lambda: any(ticket.done for ticket in tickets), "an answer")
        more = [model.submit([97], schema={"enum": [f"x{n}", f"y{n}"]}, max_tokens=9) for n in range(40)]
        until(lambda: all(ticket.state != "accepted" or ticket.done for ticket in tickets), "they run")
        kill(runtime)
        for ticket in (*tickets, *more):
            with contextlib.suppress(Busy):  # refused before the death, for too many forms at once
                assert len(ticket.result(WAIT_S).text) >= 2


def test_a_follower_that_fails_harms_nobody_else() -> None:
    heard: list[Event] = []

    def follow(events: list[Event]) -> None:
        if any(event.ticket == 1 for event in events):
            raise ValueError("a bug of the follower")
        heard.extend(events)

    engine = remote.Engine("auto", "auto", follow)
    try:
        model = engine.load(ModelOptions("null:", **NULL)).number  # type: ignore[arg-type]
        for _ in range(2):
            engine.submit(engine.next_ticket(), model, Request((97,), max_tokens=3, ignore_end=True))
        until(lambda: any(isinstance(event, Finished) and event.ticket == 2 for event in heard), "the other's end")
    finally:
        engine.close()


def test_an_engine_can_be_started_again_when_descriptors_ran_out() -> None:
    with arenite.Runtime(isolated=True) as runtime:
        model = runtime.load("null:", **NULL)
        ticket = model.submit([97], max_tokens=4000, ignore_end=True)
        until(lambda: bool(ticket.partial()), "a token")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        held = []
        victim = pid(runtime)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.open(os.devnull, os.O_RDONLY))
            os.kill(victim, signal.SIGKILL)
            time.sleep(1.0)
        finally:
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert ticket.result(WAIT_S).usage.answer_tokens == 4000


def test_texts_chats_and_forms_work_as_in_process() -> None:
    path = checkpoints.gguf_file("tiny", "f32")
    said = []
    for isolated in (False, True):
        with arenite.Runtime(isolated=isolated) as runtime:
            model = runtime.load(path, **EXACT)
            said.append((
                model.generate("hello there", max_tokens=12, ignore_end=True).text,
                model.chat([{"role": "user", "content": "hi"}], max_tokens=12, ignore_end=True).text,
                model.generate("go", schema={"enum": ["left", "right"]}, max_tokens=9).text,
                model.tokenize("a b c"), model.detokenize([5, 6, 7]), model.info, runtime.status().models[0].plan,
            ))
            with pytest.raises(arenite.BadSchema):
                model.generate("x", schema={"type": "nothing"})
            with pytest.raises(arenite.InvalidRequest):
                model.generate([9**9], max_tokens=1)
            model.close()
            with pytest.raises(arenite.EngineError):
                model.generate("x", max_tokens=1)
    assert said[0] == said[1]


def test_the_child_starts_clean_and_ends_with_its_parent() -> None:
    code = (
        "import arenite, os, sys, time\n"
        "held = open(__file__ if '__file__' in globals() else sys.executable)\n"
        "os.set_inheritable(held.fileno(), True)\n"
        "runtime = arenite.Runtime(isolated=True)\n"
        "pid = runtime.status().engine.pid\n"
        "links = [os.readlink(f'/proc/{pid}/fd/{n}') for n in os.listdir(f'/proc/{pid}/fd') if n != '2']\n"
        "spin = b'GOMP_SPINCOUNT=' in open(f'/proc/{pid}/environ', 'rb').read()\n"
        "others = [l for l in links if not l.startswith(('socket:', '/dev/', 'pipe:', 'anon_inode:'))]\n"
        "print(pid, sum(l.startswith('socket:') for l in links), len(others), spin, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        try:
            assert parent.stdout is not None
            child, sockets, others, spin = parent.stdout.readline().split()
            assert (sockets, others, spin) == ("1", "0", "True"), "its own socket and no file of ours"
        finally:
            parent.kill()
    until(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text(), "its end")


def test_errors_of_the_start_come_from_the_constructor() -> None:
    with pytest.raises(ArenaTooSmall):
        arenite.Runtime("900TiB", isolated=True)
    with pytest.raises(arenite.ConfigError):
        arenite.Runtime("some", isolated=True)
    for wrong in ({"hang_s": 0}, {"journal_bytes": "64MiB"}, {"start_s": float("nan")}, {"load_s": True}):
        with pytest.raises(arenite.ConfigError, match=next(iter(wrong))):
            arenite.Isolation(**wrong)
    with pytest.raises(arenite.InvalidRequest):
        arenite.Runtime(isolated="yes")  # type: ignore[arg-type]
    runtime = arenite.Runtime(isolated=True)
    model = runtime.load("null:", **NULL)
    ticket = model.submit([97], max_tokens=8000, ignore_end=True)
    runtime.close()
    runtime.close()
    with pytest.raises(EngineClosed):
        ticket.result(WAIT_S)
    with pytest.raises(EngineClosed):
        model.submit([97])


class Trap:
    """A value that would run a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


@pytest.mark.parametrize("value", [Trap(), subprocess.Popen, os.getcwd, Path(), remote.Engine])
def test_nothing_but_values_of_ours_is_read_from_the_child(value: object) -> None:
    with pytest.raises(pickle.UnpicklingError):
        read_value(pickle.dumps(("answer", 1, value)))
    event = Failed(3, Busy("full", 20))
    assert read_value(pickle.dumps(("events", [event])))[1][0].error.retry_ms == 20


def test_the_journal_counts_its_bytes_and_gives_continuations() -> None:
    journal = Journal(100_000)
    entry = journal.add(1, 1, Request((1, 2, 3), max_tokens=10, sampling=Sampling(temperature=1.0)), 0.0, 4096)
    assert entry.request.sampling.seed is not None, "a real seed, so that another engine draws the same"
    assert entry.continuation() == entry.request
    journal.note(Progress(1, (5, 6), "ab", draws=2), 1.0)
    entry.deaths = 1
    assert entry.continuation().resume is None, "what was never accepted keeps its key and policy"
    journal.note(Accepted(1), 1.0)
    resume = entry.continuation().resume
    assert resume is not None
    assert (resume.tokens, resume.draws) == ((5, 6), 2)
    journal.drop(1)
    journal.drop(1)
    assert (journal.used, len(journal)) == (0, 0)
    assert journal.note(Progress(1, (7,), "c"), 2.0) is None, "nobody waits for it"
