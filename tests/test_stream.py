from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from arenite.adapters.limits import LIMITS, Limits
from arenite.adapters.messages import (
    REASONING,
    TEXT,
    TOOL,
    Accept,
    Cancel,
    Channel,
    Chunk,
    Coalesce,
    Credit,
    Done,
    End,
    Failure,
    Generate,
    Pong,
    Progress,
    Resume,
    Usage,
)
from arenite.adapters.quota import Outbound, Quota, Rate
from arenite.adapters.receiver import (
    Action,
    Broken,
    Deliver,
    Failed,
    Finished,
    Receiver,
    Restart,
    Send,
)
from arenite.adapters.refused import Refused
from arenite.adapters.replay import Deduplicator, fingerprint
from arenite.adapters.stream import Sender
from arenite.adapters.wire import Codec, ToDevice

RID = "0123456789abcdef0123456789abcdef"
AT_ONCE = Coalesce(ms=0)
CODEC = Codec()
Word = Credit | Resume | Done | Cancel
pieces = st.lists(st.tuples(st.sampled_from([TEXT, TEXT, TEXT, REASONING, TOOL]), st.text(max_size=30)), max_size=30)


def sender(**more: Any) -> Sender:
    return Sender(RID, "a1", **{"chunk": AT_ONCE, **more})


def chunk(offset: int, text: str, channel: Channel = TEXT, attempt: str = "a1") -> Chunk:
    return Chunk(rid=RID, attempt=attempt, offset=offset, text=text, channel=channel)


def end(text: str, **more: Any) -> End:
    raw = text.encode()
    return msgspec.structs.replace(
        End(rid=RID, attempt="a1", lengths={"0": len(raw)}, checksums={"0": zlib.crc32(raw)}, reason="stop"), **more)


def accept(attempt: str = "a1", node: str = "box1", boot: str = "b1", window: int = 4096) -> Accept:
    return Accept(rid=RID, attempt=attempt, node=node, boot=boot, window=window)


def resume(offset: int, channel: Channel = TEXT) -> Send:
    return Send(Resume(rid=RID, attempt="a1", offset=offset, channel=channel))


def credit(offset: int, channel: Channel = TEXT) -> Send:
    return Send(Credit(rid=RID, attempt="a1", offset=offset, channel=channel))


DONE = Send(Done(rid=RID, attempt="a1"))


def receiver(window: int = 4096, **more: Any) -> Receiver:
    made = Receiver(RID, 0.0, window=window, **more)
    assert made.take(accept(window=window), 0.0) == []
    return made


def refused(code: str) -> Any:
    return pytest.raises(Refused, match=f"^{code}")


def heard(sent: Sender, said: Word) -> list[ToDevice]:
    """Tell the sender what the device said, as a node does; returns the refusal if it is one."""
    try:
        sent.hear(said)
    except Refused as error:
        return [error.reply]
    return []


@dataclass
class Device:
    """A receiver with what it delivered."""

    receiver: Receiver = field(default_factory=receiver)
    text: dict[Channel, str] = field(default_factory=lambda: {0: "", 1: "", 2: ""})
    last: list[Action] = field(default_factory=list)

    def do(self, actions: list[Action]) -> list[Word]:
        """Carry the actions out; returns what is to be said."""
        for action in actions:
            assert not self.last or isinstance(action, Send), "nothing but words to the node after the last action"
            if isinstance(action, Deliver):
                self.text[action.channel] += action.text
            elif isinstance(action, Finished | Failed | Broken):
                self.last.append(action)
        return [action.message for action in actions if isinstance(action, Send)]


# Both ends over a bad link

class Link(RuleBasedStateMachine):
    """A sender and a receiver; messages may be lost, repeated and overtaken in both directions at any time."""

    @initialize(window=st.sampled_from([0, 64, 200, 4096]), packet=st.sampled_from([160, 200, 512]),
                keep=st.sampled_from([600, 1 << 18]))
    def start(self, window: int, packet: int, keep: int) -> None:
        self.codec = Codec(Limits(chunk_bytes=packet))
        self.now = 0.0
        self.sender = sender(window=window, limits=self.codec.limits, keep=keep)
        self.device = Device(receiver(window, silence_s=None))
        self.text: dict[Channel, str] = {0: "", 1: "", 2: ""}
        self.down: list[ToDevice] = []
        self.up: list[Word] = []
        self.window, self.keep = window, keep

    def pull(self) -> None:
        going = self.sender.take(self.now)
        for message in going:
            assert len(self.codec.write(message)) <= self.codec.limits.reply_bytes
        self.down.extend(going)

    @precondition(lambda self: self.sender.terminal is None)
    @rule(channel=st.sampled_from([TEXT, TEXT, REASONING, TOOL]), text=st.text(max_size=40) | st.text('\0"\\é😀'))
    def push(self, channel: Channel, text: str) -> None:
        try:
            self.sender.push(text, self.now, channel=channel)
        except Refused as error:
            assert error.code == "stalled"  # noqa: PT017
        else:
            self.text[channel] += text
        self.pull()

    @rule(passed=st.floats(0, 3))
    def wait(self, passed: float) -> None:
        self.now += passed
        self.pull()
        self.up.extend(self.device.do(self.device.receiver.poll(self.now)))

    @precondition(lambda self: self.down)
    @rule(at=st.integers(0, 1 << 20), stays=st.booleans())
    def arrive_down(self, at: int, stays: bool) -> None:
        at %= len(self.down)
        message = self.down[at] if stays else self.down.pop(at)
        self.up.extend(self.device.do(self.device.receiver.take(message, self.now)))

    @precondition(lambda self: self.up)
    @rule(at=st.integers(0, 1 << 20), stays=st.booleans())
    def arrive_up(self, at: int, stays: bool) -> None:
        at %= len(self.up)
        said = self.up[at] if stays else self.up.pop(at)
        self.down.extend(heard(self.sender, said))  # an old word may be late: its text is forgotten
        self.pull()

    @precondition(lambda self: self.down)
    @rule(at=st.integers(0, 1 << 20))
    def lose_down(self, at: int) -> None:
        self.down.pop(at % len(self.down))

    @precondition(lambda self: self.up)
    @rule(at=st.integers(0, 1 << 20))
    def lose_up(self, at: int) -> None:
        self.up.pop(at % len(self.up))

    @rule()
    def finish(self) -> None:
        self.sender.finish("stop")
        self.pull()

    @rule()
    def rewind(self) -> None:
        self.sender.rewind()
        self.pull()

    @invariant()
    def bounds_hold_and_text_is_never_wrong(self) -> None:
        if not hasattr(self, "sender"):
            return
        assert self.sender.kept <= self.keep
        if self.window:
            assert 0 <= self.sender.under_way <= self.window
        for channel, text in self.device.text.items():
            assert self.text[channel].startswith(text)
        assert all(isinstance(action, Finished) for action in self.device.last)

    def teardown(self) -> None:
        """Once the link is good again everything arrives, without help."""
        if not hasattr(self, "sender"):
            return
        self.sender.finish("stop")
        for _ in range(3000):
            if self.device.last:
                break
            self.now += 0.5
            self.pull()
            self.up.extend(self.device.do(self.device.receiver.poll(self.now)))
            down, self.down = self.down, []
            for message in down:
                self.up.extend(self.device.do(self.device.receiver.take(message, self.now)))
            up, self.up = self.up, []
            for said in up:
                self.down.extend(heard(self.sender, said))
        assert [type(action) for action in self.device.last] == [Finished]
        assert self.device.text == self.text


TestLink = Link.TestCase
TestLink.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@settings(max_examples=100, deadline=None)
@given(pieces, st.data())
def test_any_subset_order_and_repetition_of_chunks_gives_a_beginning_of_the_text_or_asks_to_resume(
    said: list[tuple[Channel, str]], data: st.DataObject
) -> None:
    sent = sender(window=0)
    for channel, text in said:
        sent.push(text, 0.0, channel=channel)
    sent.finish("stop")
    messages: list[ToDevice] = list(sent.take(0.0))
    whole: dict[Channel, str] = {at: "".join(text for channel, text in said if channel == at) for at in (0, 1, 2)}
    device = Device()
    asked = 0
    for number, message in enumerate(data.draw(st.lists(st.sampled_from(messages), max_size=40))):
        asked += len([word for word in device.do(device.receiver.take(message, float(number)))
                      if isinstance(word, Resume)])
        assert all(whole[channel].startswith(text) for channel, text in device.text.items())
    if device.last:
        assert isinstance(device.last[0], Finished)
        assert device.text == whole
    else:
        now = 1e3
        missing = device.text != whole
        asked += len([word for word in device.do(device.receiver.take(messages[-1], now)) if isinstance(word, Resume)])
        assert (asked > 0) if missing else device.last


def test_a_lossy_link_carries_a_long_answer_exactly() -> None:
    chance = random.Random(3)
    text = "".join(chance.choice(["wort ", "é", "😀", "\n", "\0"]) for _ in range(8000))
    sent, device, now = sender(window=512), Device(receiver(512)), 0.0
    for at in range(0, len(text), 40):
        now += 0.05
        sent.push(text[at:at + 40], now)
        words: list[Word] = []
        for message in sent.take(now):
            for _ in range(chance.choice((0, 1, 1, 1, 1, 1, 2))):
                words += device.do(device.receiver.take(message, now))
        words += device.do(device.receiver.poll(now))
        for word in words:
            if chance.random() > 0.1:
                heard(sent, word)
    sent.finish("length")
    for _ in range(2000):
        now += 0.3
        words = [word for message in sent.take(now) if chance.random() > 0.1
                 for word in device.do(device.receiver.take(message, now))]
        words += device.do(device.receiver.poll(now))
        for word in words:
            if chance.random() > 0.1:
                heard(sent, word)
    assert isinstance(device.last[0], Finished)
    assert device.text[TEXT] == text


# Sender

def test_the_first_text_goes_at_once_and_the_rest_in_chunks() -> None:
    sent = sender(chunk=Coalesce(ms=60, bytes=20))
    sent.push("The", 1.0)
    assert sent.take(1.0) == [msgspec.structs.replace(chunk(0, "The"), tokens=1)]
    sent.push(" cat", 1.01)
    assert sent.take(1.02) == []
    assert sent.due() == pytest.approx(1.07)
    sent.push(" sat", 1.03)
    (second,) = sent.take(sent.due() or 0.0)
    assert isinstance(second, Chunk)
    assert (second.offset, second.text, second.tokens) == (3, " cat sat", 3)
    assert sent.due() is None
    sent.push("x" * 20, 1.08)
    assert len(sent.take(1.08)) == 1  # bytes are enough


def test_a_sentence_can_be_what_is_waited_for() -> None:
    sent = sender(chunk=Coalesce(ms=10_000, bytes=9000, flush="sentence"))
    sent.push("a", 0.0)
    sent.take(0.0)
    sent.push(" cat", 0.0)
    assert sent.take(1.0) == []
    sent.push(" sat. ", 1.0)
    assert [message.text for message in sent.take(1.0) if isinstance(message, Chunk)] == [" cat sat. "]


def test_chunks_end_where_characters_end_and_fit_their_packet_in_both_formats() -> None:
    text = '\0\1é😀"\\' * 300
    sent = sender(window=0, limits=Limits(chunk_bytes=170))
    sent.push(text, 0.0)
    codec = Codec(Limits(chunk_bytes=170))
    got = [message for message in sent.take(0.0) if isinstance(message, Chunk)]
    assert "".join(message.text for message in got) == text
    assert all(codec.write(message, "json") and codec.write(message, "msgpack") for message in got)
    with pytest.raises(Refused, match="packets of"):
        sender(limits=Limits(chunk_bytes=100))


def test_credit_is_never_exceeded_and_lets_more_through() -> None:
    sent = sender(window=100)
    sent.push("x" * 250, 0.0)
    assert sum(len(message.text) for message in sent.take(0.0) if isinstance(message, Chunk)) == 100
    assert (sent.take(5.0), sent.under_way, sent.starved_s(30.0), sent.due()) == ([], 100, 30.0, None)
    sent.credit(60)
    (more,) = sent.take(6.0)
    assert isinstance(more, Chunk)
    assert (more.offset, len(more.text), sent.under_way) == (100, 60, 100)
    sent.credit(160)
    sent.take(7.0)
    assert (sent.under_way, sent.starved_s(9.0)) == (90, 0.0)


@pytest.mark.parametrize("offset", [-1, 4, 1 << 60])
def test_credit_and_resume_for_what_was_never_sent_are_refused(offset: int) -> None:
    sent = sender()
    sent.push("abc", 0.0)
    sent.take(0.0)
    for tell in (sent.credit, sent.resume):
        with refused("bad_request"):
            tell(offset)
    with refused("bad_request"):
        sent.resume(1, TOOL)


def test_late_credit_skips_what_a_resume_would_have_said_again() -> None:
    sent = sender(window=100)
    sent.push("x" * 250, 0.0)
    sent.take(0.0)
    sent.resume(0)
    sent.credit(60)
    assert sent.under_way == 0
    (more,) = sent.take(0.0)
    assert isinstance(more, Chunk)
    assert (more.offset, len(more.text)) == (60, 100)


def test_an_offset_inside_a_character_is_refused() -> None:
    sent = sender()
    sent.push("é😀", 0.0)
    sent.take(0.0)
    for offset in (1, 3, 4, 5):
        with refused("bad_request"):
            sent.resume(offset)
    sent.resume(2)
    assert [message.text for message in sent.take(0.0) if isinstance(message, Chunk)] == ["😀"]


def test_what_is_unacknowledged_is_kept_within_a_bound() -> None:
    sent = sender(window=0, keep=100)
    sent.push("x" * 100, 0.0)
    sent.take(0.0)
    with refused("stalled"):
        sent.push("y", 0.0)
    sent.credit(30)
    sent.push("y" * 20, 0.0)
    assert sent.kept == 100
    sent.resume(20)
    with refused("expired"):
        sent.resume(19)
    sent.take(0.0)
    sent.push("", 0.0)
    with refused("stalled"):
        sent.push("z", 0.0)
    sent.finish("stop")
    assert isinstance(sent.take(0.0)[-1], End)


def test_there_is_one_terminal_after_the_text_and_it_is_repeated_only_when_asked() -> None:
    sent = sender(window=64)
    sent.push("x" * 100, 0.0)
    sent.finish("stop", usage=Usage(answer=1), result={"a": 1})
    sent.finish("length")
    sent.fail(Failure(code="internal"))
    assert len(sent.take(0.0)) == 1
    sent.credit(64)
    *_, last = sent.take(0.0)
    assert last == end("x" * 100, usage=Usage(answer=1), result={"a": 1})
    assert sent.take(1.0) == []
    sent.resume(100)
    assert sent.take(1.0) == [last]
    sent.rewind()
    assert sent.take(1.0) == [last]
    with refused("internal"):
        sent.push("more", 0.0)
    sent.done()
    assert (sent.take(2.0), sent.kept, sent.settled) == ([], 0, True)
    sent.resume(100)
    assert sent.take(2.0) == [last]


def test_a_failure_ends_at_once_and_unsent_text_is_not_sent() -> None:
    sent = sender(window=64)
    sent.push("x" * 100, 0.0)
    sent.take(0.0)
    sent.fail(Failure(code="node_lost", message="restarted"))
    assert sent.take(0.0) == [Failure(rid=RID, attempt="a1", code="node_lost", message="restarted")]
    sent.resume(0)
    assert sent.take(0.0) == [sent.terminal]


def test_an_answer_of_no_text_has_an_end_too() -> None:
    sent = sender()
    sent.done()  # before the end it means nothing
    sent.finish("deadline")
    assert sent.take(0.0) == [End(rid=RID, attempt="a1", lengths={}, checksums={}, reason="deadline")]
    got = receiver()
    assert isinstance(got.take(sent.terminal, 0.0)[-1], Finished) if sent.terminal else False


def test_what_is_said_of_another_attempt_is_not_heard() -> None:
    sent = sender(window=64)
    sent.push("x" * 100, 0.0)
    sent.take(0.0)
    sent.hear(Credit(rid=RID, attempt="a0", offset=99))
    sent.hear(Resume(rid="other", attempt="a1", offset=99))
    assert sent.under_way == 64
    sent.hear(Credit(rid=RID, offset=64))
    assert sent.under_way == 0


# Receiver

def test_the_receive_rule() -> None:
    got = receiver()
    assert got.take(chunk(0, "The cat"), 0.0) == [Deliver("The cat")]
    assert got.take(chunk(4, "cat sat"), 0.0) == [Deliver(" sat")]  # cut otherwise
    assert got.take(chunk(20, "later"), 0.1) == [resume(11)]
    assert got.take(chunk(25, "later"), 0.5) == []  # asked 0.4 s ago
    assert got.take(chunk(25, "later"), 0.6) == [resume(11)]
    assert got.take(chunk(11, "!"), 0.7) == [Deliver("!")]
    assert got.take(chunk(0, "The"), 0.8) == [credit(12)]  # the credit may have been lost
    assert got.take(chunk(0, "The"), 0.9) == []
    assert got.take(end("The cat sat!"), 1.0) == [DONE, Finished(end("The cat sat!"))]
    assert got.take(end("The cat sat!"), 1.1) == [DONE]  # it was lost
    assert got.take(chunk(12, "more"), 1.2) == []
    assert (got.closed, got.due(), got.poll(1e9)) == (True, None, [])


def test_credit_is_given_after_half_a_window_over_all_channels() -> None:
    got = receiver(100)
    assert got.take(chunk(0, "x" * 49), 0.0) == [Deliver("x" * 49)]
    assert got.take(chunk(0, "y", TOOL), 0.0) == [Deliver("y", TOOL), credit(49), credit(1, TOOL)]
    unlimited = receiver(0)
    assert unlimited.take(chunk(0, "x" * 16383), 0.0) == [Deliver("x" * 16383)]
    assert unlimited.take(chunk(16383, "x"), 0.0) == [Deliver("x"), credit(16384)]


def test_an_end_before_its_text_asks_for_the_rest_of_each_channel() -> None:
    got = receiver()
    got.take(chunk(0, "ab"), 0.0)
    last = end("abcd", lengths={"0": 4, "2": 1}, checksums={"0": zlib.crc32(b"abcd"), "2": zlib.crc32(b"{")})
    assert got.take(last, 1.0) == [resume(2), resume(0, TOOL)]
    assert got.take(chunk(2, "cd"), 1.0) == [Deliver("cd")]
    assert got.take(chunk(0, "{", TOOL), 1.0) == [Deliver("{", TOOL), DONE, Finished(last)]


@pytest.mark.parametrize("last", [
    end("abx"), end("ab"), end("abc", lengths={}), end("abc", checksums={}), end("abc", lengths={"1": 3}),
])
def test_a_text_that_is_not_what_the_end_says_is_broken(last: End) -> None:
    got = receiver()
    got.take(chunk(0, "abc"), 0.0)
    (broken,) = got.take(last, 0.0)
    assert isinstance(broken, Broken)
    assert got.take(end("abc"), 0.0) == [DONE]


def test_a_chunk_that_cuts_a_character_of_another_text_is_broken_and_cancelled() -> None:
    got = receiver()
    got.take(chunk(0, "ab"), 0.0)
    cancel, broken = got.take(chunk(0, "é😀"[1:] + "x"), 0.0)
    assert cancel == Send(Cancel(rid=RID, attempt="a1"))
    assert isinstance(broken, Broken)


def test_what_belongs_to_others_is_ignored() -> None:
    got = receiver()
    others: list[ToDevice] = [
        Pong(), msgspec.structs.replace(chunk(0, "x"), rid="other"), chunk(0, "x", attempt="a2"),
        end("", attempt="a2"), Failure(rid=RID, code="busy"), Progress(rid=RID, attempt="a2", state="gen"),
    ]
    assert [got.take(message, 0.0) for message in others] == [[]] * len(others)
    assert got.delivered() == 0


def test_of_two_nodes_that_accept_the_first_counts_and_the_other_is_cancelled() -> None:
    got = receiver()
    assert got.take(accept("a2", node="box2"), 0.1) == [Send(Cancel(rid=RID, attempt="a2"))]
    assert got.take(accept(), 0.2) == []
    got.take(end(""), 0.3)
    assert got.take(accept("a3", node="box3"), 0.4) == [Send(Cancel(rid=RID, attempt="a3"))]
    assert got.take(accept(), 0.4) == []


def test_text_may_come_before_its_accept() -> None:
    got = Receiver(RID, 0.0)
    assert got.take(chunk(0, "ab"), 0.0) == [Deliver("ab")]
    assert got.take(accept(), 0.0) == []
    assert (got.attempt, got.node, got.boot, got.delivered()) == ("a1", "box1", "b1", 2)


@pytest.mark.parametrize("told", [True, False])
def test_a_node_that_restarted_begins_anew(told: bool) -> None:
    got = receiver()
    got.take(chunk(0, "ab"), 0.0)
    if told:
        got.lose(0.0)
        assert got.take(chunk(2, "cd"), 0.0) == []
        assert got.take(Failure(rid=RID, attempt="a1", code="node_lost"), 0.0) == []
    assert got.take(accept("a2", boot="b2"), 1.0) == [Restart()]
    assert got.take(accept(), 1.0) == []  # late, of the lost attempt
    assert got.take(chunk(0, "AB", attempt="a2"), 1.0) == [Deliver("AB")]
    assert got.take(chunk(2, "cd"), 1.0) == []


def test_failures_end_the_request_before_and_after_it_was_accepted() -> None:
    fresh = Receiver(RID, 0.0)
    assert fresh.take(Failure(rid=RID, code="busy"), 0.0) == [Failed(Failure(rid=RID, code="busy"))]
    assert fresh.take(Failure(rid=RID, code="busy"), 0.0) == []
    got = receiver()
    failure = Failure(rid=RID, attempt="a1", code="internal")
    assert got.take(failure, 0.0) == [DONE, Failed(failure)]
    assert got.take(failure, 0.0) == [DONE]


def test_silence_is_asked_about_ever_more_rarely_and_ends_in_broken() -> None:
    got = receiver()
    assert got.due() == 1.5
    assert got.poll(1.4) == []
    assert got.poll(1.5) == [resume(0)]
    assert got.due() == 4.5
    assert got.poll(4.5) == [resume(0)]
    assert got.take(chunk(0, "a"), 5.0) == [Deliver("a")]
    assert got.due() == 6.5
    assert got.resume(5.1) == [resume(1)]
    for second in range(6, 60):
        got.poll(float(second))
    cancel, broken = got.poll(65.0)
    assert isinstance(broken, Broken)
    assert cancel == Send(Cancel(rid=RID, attempt="a1"))
    patient = Receiver(RID, 0.0, silence_s=None)
    assert (patient.poll(1e9), patient.due()) == ([], None)


def test_an_old_resume_that_was_refused_does_not_end_a_stream_that_goes_well() -> None:
    expired = Failure(rid=RID, attempt="a1", code="expired")
    got = receiver(64)
    assert got.take(chunk(0, "x" * 40), 0.0) == [Deliver("x" * 40), credit(40)]
    assert got.take(expired, 0.0) == []
    assert got.take(chunk(40, "y"), 0.0) == [Deliver("y")]
    late = receiver(64)
    assert late.take(chunk(40, "y"), 0.0) == [resume(0)]
    assert late.take(expired, 0.0) == [DONE, Failed(expired)]


# Deduplicator

def request(rid: str = RID, prompt: str = "hi", **more: Any) -> Generate:
    return Generate(rid=rid, prompt=prompt, **more)


def test_a_request_is_known_by_device_and_id_and_another_body_is_a_conflict() -> None:
    known: Deduplicator[str] = Deduplicator()
    assert known.find("lamp", request(), 0.0) is None
    known.add("lamp", request(), "stream", 0.0)
    assert known.find("lamp", request(lifetime_ms=5, deadline_ms=7, sent=9.0), 1.0) == "stream"
    assert known.find("door", request(), 1.0) is None
    with refused("conflict"):
        known.find("lamp", request(prompt="ho"), 1.0)
    with refused("conflict"):
        known.add("lamp", request(), "x", 1.0)
    assert (known.get("lamp", RID), known.get("lamp", "other")) == ("stream", None)


def test_a_body_has_one_print_in_both_formats() -> None:
    made = request(schema={"b": 1, "a": [1.5]})
    prints = {fingerprint(read) for form in ("json", "msgpack")
              if isinstance(read := CODEC.to_node(CODEC.write(made, form)), Generate)}
    assert prints == {fingerprint(made)}


def test_finished_requests_are_kept_for_a_time_and_running_ones_for_ever() -> None:
    known: Deduplicator[str] = Deduplicator(Limits(replay_s=900, replay_done_s=300))
    for rid in ("run", "end", "done"):
        known.add("d", request(rid), rid, 0.0)
    known.finished("d", "end", 100, 0.0)
    known.finished("d", "done", 100, 0.0)
    known.done("d", "done", 0.0, size=10)
    assert (len(known), known.bytes) == (3, 110)
    known.sweep(300.0)
    assert (known.get("d", "done"), known.get("d", "end"), known.bytes) == (None, "end", 100)
    known.sweep(900.0)
    assert (known.get("d", "end"), known.get("d", "run"), known.bytes) == (None, "run", 0)
    known.forget("d", "run")
    assert len(known) == 0


def test_the_store_is_bounded_by_number_and_by_bytes_and_settled_ones_go_first() -> None:
    known: Deduplicator[int] = Deduplicator(Limits(replay_requests=3, replay_bytes=100))
    for number in range(3):
        known.add("d", request(str(number)), number, 0.0)
    with refused("busy") as caught:
        known.add("d", request("3"), 3, 0.0)
    assert caught.value.retry_ms > 0
    for number in range(3):
        known.finished("d", str(number), 30, 0.0)
    known.done("d", "2", 0.0)
    known.add("d", request("3"), 3, 0.0)
    known.finished("d", "3", 30, 0.0)
    assert [known.get("d", str(number)) for number in range(4)] == [0, 1, None, 3]
    known.add("d", request("4"), 4, 0.0)
    known.finished("d", "4", 60, 0.0)
    assert [known.get("d", str(number)) for number in range(5)] == [None, None, None, 3, 4]
    assert known.bytes == 90


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["add", "end", "done", "forget"]), st.integers(0, 60))))
def test_the_store_keeps_its_books(steps: list[tuple[int, str, int]]) -> None:
    known: Deduplicator[int] = Deduplicator(Limits(replay_requests=4, replay_bytes=100, replay_s=9, replay_done_s=3))
    for now, (number, step, size) in enumerate(steps):
        rid = str(number)
        if step == "add" and known.get("d", rid) is None:
            try:
                known.add("d", request(rid), number, float(now))
            except Refused as error:
                assert error.code == "busy"  # noqa: PT017
        elif step == "end":
            known.finished("d", rid, size, float(now))
        elif step == "done":
            known.done("d", rid, float(now))
        else:
            known.forget("d", rid)
        assert 0 <= known.bytes <= 100
        assert len(known) <= 8
    known.sweep(1e9)
    assert known.bytes == 0


# Quotas

def test_the_node_and_each_device_have_room_for_so_many_requests() -> None:
    quota = Quota(Limits(queued=5, queued_per_device=2, active_per_device=1))
    for device in ("a", "a", "b", "b", "c"):
        quota.enter(device)
    for device in ("c", "d"):
        with refused("busy") as caught:
            quota.enter(device, rid=RID, retry_ms=70)
        assert (caught.value.retry_ms, caught.value.rid) == (70, RID)
    quota.leave("c")
    with refused("busy"):
        quota.enter("a")
    assert [quota.start("a"), quota.start("a")] == [True, False]
    quota.enter("a")
    quota.end("a")
    assert quota.start("a")
    assert quota.queued == 3


def test_controls_have_a_rate() -> None:
    rate = Rate()
    assert sum(rate.allow(0.0) for _ in range(50)) == LIMITS.controls_per_s
    assert [rate.allow(0.049), rate.allow(0.051), rate.allow(0.052)] == [False, True, False]
    assert sum(rate.allow(100.0) for _ in range(50)) == LIMITS.controls_per_s
    assert not rate.allow(0.0)  # a clock that goes back gives nothing


def test_what_waits_for_a_device_is_bounded_and_ends_always_fit() -> None:
    outbound = Outbound(100)
    assert outbound.put(b"x" * 60, chunk=True)
    assert not outbound.put(b"x" * 41, chunk=True)
    assert outbound.put(b"end" * 30)
    assert outbound.full
    assert (outbound.first(), len(outbound), outbound.bytes) == (b"x" * 60, 2, 150)
    outbound.sent()
    outbound.sent()
    assert (outbound.first(), outbound.bytes, outbound.full) == (None, 0, False)
