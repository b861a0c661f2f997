from __future__ import annotations

import math
import random
import tracemalloc
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arenite.adapters.frames import TYPES, Frames
from arenite.adapters.limits import LIMITS, Limits, Welcome
from arenite.adapters.messages import (
    CODES,
    SAFE,
    Accept,
    Bye,
    Cancel,
    Chunk,
    Coalesce,
    Code,
    Credit,
    Done,
    End,
    Failure,
    Forget,
    Format,
    FromNode,
    Generate,
    Hello,
    List,
    Listed,
    Ping,
    Pong,
    Progress,
    Resume,
    Timing,
    Usage,
    new_request_id,
)
from arenite.adapters.refused import KINDS, PLAIN, WIRE, Refused, error_of, failure_of
from arenite.adapters.wire import (
    Codec,
    Message,
    ToDevice,
    ToNode,
    format_of,
    head,
    priority_name,
    priority_number,
)
from arenite.runtime import errors
from arenite.runtime.request import PRIORITIES

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
CODEC, FRAMES = Codec(), Frames()
FORMATS: tuple[Format, ...] = ("json", "msgpack")
RID = "0123456789abcdef0123456789abcdef"

ids = st.text("abcXYZ019_.-", min_size=1, max_size=64)
rids = st.binary(min_size=16, max_size=16).map(bytes.hex)
texts = st.text(max_size=12)
counts = st.integers(0, SAFE)
windows = st.just(0) | st.integers(64, 1 << 24)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6,
)
objects = st.dictionaries(texts, plain, max_size=3)
clock = st.none() | st.floats(0, 1e12)
channels = st.sampled_from([0, 1, 2])
whats = st.sampled_from(["models", "sessions", "streams", "health"])
sums = st.dictionaries(st.sampled_from(["0", "1", "2"]), st.integers(0, 2**32 - 1), max_size=3)
answered = {"rid": rids, "attempt": ids}
followed = {"rid": rids, "attempt": ids | st.just(""), "sent": clock}
asked = {
    "rid": rids, "model": texts, "session": ids | st.just(""), "max_tokens": st.none() | st.integers(1, 1 << 24),
    "temperature": st.none() | st.floats(0, 100), "seed": st.none() | st.integers(0, 2**32 - 1), "sent": clock,
    "stop": st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple), "schema": st.none() | objects,
    "tools": st.lists(objects, max_size=2).map(tuple), "stream": st.booleans(), "window": windows,
    "format": st.none() | st.sampled_from(FORMATS), "deadline_ms": st.none() | st.integers(1, 86_400_000),
    "chunk": st.builds(Coalesce, ms=st.integers(0, 10_000), bytes=st.integers(1, 65536),
                       flush=st.sampled_from(["none", "sentence"])),
    "lifetime_ms": st.none() | st.integers(1, 86_400_000), "priority": st.integers(0, 9),
    "key": st.none() | st.text(min_size=1, max_size=9), "policy": st.sampled_from(["queue", "latest", "reject"]),
    "absent": st.sampled_from(["keep", "cancel"]),
}
from_device: st.SearchStrategy[Any] = st.one_of(
    st.builds(Generate, prompt=texts, **asked),
    st.builds(Generate, messages=st.lists(objects, max_size=3).map(tuple), **asked),
    st.builds(Cancel, **followed), st.builds(Done, **followed), st.builds(Forget, session=ids),
    st.builds(Credit, offset=counts, channel=channels, **followed),
    st.builds(Resume, offset=counts, channel=channels, **followed),
    st.builds(List, what=whats, sent=clock), st.builds(Ping, sent=clock), st.builds(Bye),
    st.builds(Hello, client=ids, versions=st.just((1, 2)), format=st.sampled_from(FORMATS)),
)
numbers = st.floats(0, 1e9)
from_node: st.SearchStrategy[Any] = st.one_of(
    st.builds(Accept, node=ids, boot=ids, position=counts, estimate_ms=st.none() | counts, window=windows,
              offset=counts, **answered),
    st.builds(Progress, state=st.sampled_from(["queued", "loading", "prefill", "gen"]), position=counts,
              percent=st.none() | st.integers(0, 100), **answered),
    st.builds(Chunk, offset=counts, text=texts, channel=channels, tokens=counts, **answered),
    st.builds(End, lengths=sums, checksums=sums, result=plain,
              reason=st.sampled_from(["stop", "length", "tool", "cancelled", "deadline", "superseded"]),
              usage=st.none() | st.builds(Usage, prompt=counts, answer=counts, cached=counts, seed=st.none() | counts),
              timing=st.none() | st.builds(Timing, queued_ms=numbers, first_token_ms=numbers, tokens_s=numbers),
              **answered),
    st.builds(Failure, rid=rids | st.just(""), attempt=ids | st.just(""), code=st.sampled_from(CODES), message=texts,
              retry_ms=st.none() | st.integers(0, 86_400_000), kind=ids | st.just(""), details=objects),
    st.builds(Listed, what=whats, items=st.lists(objects, max_size=3).map(tuple)),
    st.builds(Welcome, node=ids, boot=ids), st.builds(Pong), st.builds(Bye),
)


def refusal(raw: bytes, codec: Codec = CODEC) -> Refused:
    with pytest.raises(Refused) as caught:
        codec.to_node(raw)
    assert caught.value.code in CODES
    return caught.value


def gen(**more: Any) -> dict[str, Any]:
    return {"t": "gen", "v": 1, "rid": RID, "prompt": "hi", **more}


def both(body: dict[str, Any]) -> tuple[bytes, bytes]:
    return msgspec.json.encode(body), msgspec.msgpack.encode(body)


# Reading and writing

@given(from_device, st.sampled_from(FORMATS))
def test_what_a_device_says_is_what_the_node_hears(message: ToNode, form: Format) -> None:
    raw = CODEC.write(message, form)
    assert format_of(raw) == form
    assert CODEC.to_node(raw) == message
    assert FRAMES.to_node(FRAMES.write(message)) == message


@given(from_node, st.sampled_from(FORMATS))
def test_what_a_node_says_is_what_the_device_hears(message: ToDevice, form: Format) -> None:
    raw = CODEC.write(message, form)
    assert format_of(raw) == form
    assert CODEC.to_device(raw) == message
    assert FRAMES.to_device(FRAMES.write(message)) == message


def test_the_short_keys_are_those_of_the_contract() -> None:
    raw = CODEC.write(Chunk(rid=RID, attempt="7f3a", offset=345, text=" the cat", tokens=87))
    assert msgspec.json.decode(raw) == {"t": "tok", "rid": RID, "e": "7f3a", "o": 345, "d": " the cat", "n": 87}
    end = CODEC.to_device(b'{"t":"end","rid":"r","e":"7f","len":{"0":1234},"crc":{"0":3735928559},"fin":"stop",'
                          b'"use":{"in":31,"out":256},"tm":{"q":3,"ttft":120,"tps":48.1},"obj":{"a":[1]}}')
    assert end == End(
        rid="r", attempt="7f", lengths={"0": 1234}, checksums={"0": 3735928559}, reason="stop", result={"a": [1]},
        usage=Usage(prompt=31, answer=256), timing=Timing(queued_ms=3, first_token_ms=120, tokens_s=48.1),
    )
    assert b'"v":1' in CODEC.write(Generate(rid=RID, prompt="hi"))


def test_an_unknown_key_is_refused_by_name_from_a_device_and_ignored_from_a_node() -> None:
    for raw in both(gen(max_tokens=5)):
        refused = refusal(raw)
        assert (refused.code, refused.rid) == ("bad_request", RID)
        assert "max_tokens" in str(refused)
    assert CODEC.to_device(b'{"t":"pong","future":{"a":[1]}}') == Pong()


@pytest.mark.parametrize("more", [
    {"prompt": 5}, {"prompt": None}, {"msgs": []}, {"rid": ""}, {"rid": "a b"}, {"rid": "a\n"}, {"rid": "x" * 65},
    {"max": 0}, {"max": 1.0}, {"max": True}, {"temp": -1}, {"temp": "hot"}, {"stop": [""]}, {"stop": ["x"] * 17},
    {"win": -1}, {"win": 63}, {"win": 1 << 25}, {"prio": 10}, {"deadline_ms": 0}, {"policy": "newest"},
    {"schema": []}, {"tools": [1]}, {"key": "k" * 257}, {"sid": "+/#"}, {"chunk": {"ms": -1}}, {"ts": -1},
    {"v": "1"}, {"max": 2**70}, {"schema": {"a": 10**400}}, {"schema": {"a": -(10**30)}}, {"t": "tok"}, {"t": None},
])
def test_a_value_out_of_its_range_is_a_bad_request(more: dict[str, Any]) -> None:
    refused = refusal(msgspec.json.encode(gen(**more)))
    assert refused.code == "bad_request"
    assert refused.rid == ("" if "rid" in more else RID)
    assert refused.message


def test_another_version_is_refused_as_such() -> None:
    refused = refusal(msgspec.json.encode(gen(v=2)))
    assert (refused.code, refused.rid) == ("unsupported_version", RID)


@pytest.mark.parametrize("raw", [
    b"", b" {}", b"\xef\xbb\xbf{}", b"[]", b"null", b"{", b"{}", b"\x80", b"\x81", b"\xde\xff\xff",
    b"\xdf\x00\x00\x00\x00",
    b'{"t":"ping"}x', b'{"t":"ping","ts":NaN}', b'{"t":"ping","ts":1e999}', b'{"t":"ping","ts":Infinity}',
    b'{"t":"gen","rid":"r","prompt":"\xff"}', b'{"t":"gen","rid":"r","prompt":"\\ud800"}',
    b'{"\xff":1,"t":"ping"}', b"\x83\xa1t\xa3gen\xa3rid\xa1r\xa6prompt\xa1\xff",
    b"\x83\xa1t\xa3gen\xa3rid\xa1r\xa6prompt\xa3\xed\xa0\x80",
    b"\x82\xa1t\xa4ping\xa2ts\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"\x82\xa1t\xa4ping\xa2ts\xdd\xff\xff\xff\xff", b"\x82\xa1t\xa4ping\xa2ts\xdb\xff\xff\xff\xff",
    b'{"t":"gen","rid":"r","prompt":"","schema":{"a":' + b"9" * 20000 + b"}}",
], ids=repr)
def test_what_is_no_message_is_a_bad_request(raw: bytes) -> None:
    assert refusal(raw).code == "bad_request"


@pytest.mark.parametrize("value", [
    math.nan, math.inf, b"bytes", {1: 2}, {(1, 2): 3}, msgspec.msgpack.Ext(5, b"x"), 2**70,
], ids=repr)
def test_what_json_has_no_word_for_is_refused_in_msgpack_too_and_never_written(value: Any) -> None:
    if value != 2**70:  # msgpack itself has no word for it
        assert refusal(msgspec.msgpack.encode(gen(schema={"a": [value]}))).code == "bad_request"
    for form in FORMATS:
        with pytest.raises(Refused, match=r"bad_request"):
            CODEC.write(Generate(rid=RID, prompt="", schema={"a": [value]}), form)


def test_what_the_other_side_would_refuse_is_not_written() -> None:
    wrong: list[Message] = [
        Generate(rid="a b", prompt=""), Generate(rid=RID), Generate(rid=RID, prompt="", temperature=math.nan),
        Generate(rid=RID, prompt="\ud800"), Credit(rid=RID, offset=-1),
        Chunk(rid=RID, attempt="e", offset=0, text="\ud800"),
    ]
    for message in wrong:
        for form in FORMATS:
            with pytest.raises(Refused, match=r"bad_request"):
                CODEC.write(message, form)


@pytest.mark.parametrize("depth", [200, 20_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    raw = b'{"t":"gen","rid":"r","prompt":"","schema":{"a":' + b"[" * depth + b"]" * depth + b"}}"
    assert refusal(raw).code == "bad_request"
    assert refusal(b"\x84\xa1t\xa3gen\xa3rid\xa1r\xa6prompt\xa0\xa6schema\x81\xa1a" + b"\x91" * depth
                   + b"\xc0").code == "bad_request"
    assert refusal(b'{"t":"gen","rid":"r","prompt":"","x":' + b"[" * depth + b"]" * depth + b"}").code == "bad_request"


# Limits

def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def test_each_size_has_its_limit_and_is_met_exactly() -> None:
    base = len(CODEC.write(Generate(rid=RID, prompt="")))
    longest = Generate(rid=RID, prompt="x" * (LIMITS.request_bytes - base))
    raw = CODEC.write(longest)
    assert CODEC.to_node(raw) == longest
    refused = refusal(raw[:-2] + b'x"}')
    assert (refused.code, refused.rid) == ("too_large", RID)
    with pytest.raises(Refused, match="too_large"):
        CODEC.write(msgspec.structs.replace(longest, prompt=longest.prompt + "x"))  # type: ignore[operator]
    small = Codec(Limits(control_bytes=64, chunk_bytes=128, reply_bytes=256))
    assert refusal(b'{"t":"cancel","rid":"' + b"r" * 64 + b'"}', small).code == "too_large"
    for message in (Cancel(rid="r" * 60), Chunk(rid=RID, attempt="e", offset=0, text="x" * 80),
                    Listed(what="models", items=({"a": "x" * 300},))):
        with pytest.raises(Refused, match="too_large"):
            small.write(message)
    with pytest.raises(Refused, match="too_large"):
        small.to_device(CODEC.write(Listed(what="models", items=({"a": "x" * 300},))))


def test_the_depth_of_a_schema_has_its_limit() -> None:
    for depth, allowed in ((LIMITS.depth, True), (LIMITS.depth + 1, False)):
        for raw in both(gen(schema=nested(depth))):
            if allowed:
                assert isinstance(CODEC.to_node(raw), Generate)
            else:
                assert "deeply" in str(refusal(raw))


def test_limits_are_checked_and_travel_in_welcome() -> None:
    limits = Limits(chunk_bytes=1024)
    raw = CODEC.write(Welcome(node="box1", boot="b", limits=limits))
    assert CODEC.to_device(raw) == Welcome(node="box1", boot="b", limits=limits)
    with pytest.raises(Refused):
        CODEC.write(Welcome(node="box1", boot="b", limits=Limits(chunk_bytes=0)))
    assert LIMITS.transcript(10) == 160
    assert LIMITS.transcript(None) == LIMITS.transcript(1 << 20) == 256 << 10


# Refusals and errors

def test_a_refusal_knows_the_request_where_it_can_be_read() -> None:
    assert head(b'{"rid":"r1","e":"7f","x":[1,{}]}') == ("r1", "7f")
    assert head(b'{"rid":"not an id"}') == head(b'{"rid":5}') == head(b"{") == head(b"\xff") == ("", "")
    reply = refusal(msgspec.json.encode({"t": "credit", "rid": "r1", "e": "7f", "o": -1})).reply
    assert (reply.rid, reply.attempt, reply.code) == ("r1", "7f", "bad_request")
    assert isinstance(CODEC.to_device(CODEC.write(reply)), Failure)


def test_a_refusal_is_short_whatever_was_sent() -> None:
    reply = refusal(msgspec.json.encode(gen(**{"é" * 20_000: 1}))).reply
    assert len(CODEC.write(reply)) < 1500


def every_error() -> list[errors.Error]:
    special: list[errors.Error] = [
        errors.Busy("full", 70), errors.ContextOverflow(9, 8, 7), errors.DeadlineMissed(0.25, 1.5),
        errors.BadAnswer("no object", "text"), errors.BadModel("broken", "reason"),
        errors.ArenaTooSmall(9, 8, {"weights": 9}),
    ]
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Error)}
    return [*special, *(kind("said so") for kind in kinds - {type(error) for error in special})]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_an_error_crosses_the_wire_with_its_type_its_message_and_its_attributes(error: errors.Error) -> None:
    for form in FORMATS:
        failure = CODEC.to_device(CODEC.write(failure_of(error, rid=RID, attempt="7f"), form))
        assert isinstance(failure, Failure)
        assert failure.code in CODES
        back = error_of(failure)
        assert (type(back), str(back), back.__dict__) == (type(error), str(error), error.__dict__)


@pytest.mark.parametrize("code", CODES)
def test_each_code_of_the_wire_alone_becomes_an_error_with_all_attributes(code: Code) -> None:
    error = error_of(Failure(code=code, message="said so", retry_ms=5, kind="of_the_future", details={"text": 5}))
    assert (type(error), str(error)) == (PLAIN[code], "said so")
    if isinstance(error, errors.Busy):
        assert error.retry_ms == 5
    if isinstance(error, errors.DeadlineMissed):
        assert error.estimate_s == 0
    assert type(error_of(Failure(code=code, kind="context_overflow"))) in {PLAIN[code], errors.ContextOverflow}


def test_the_tables_know_every_error_and_every_code() -> None:
    ours = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Error)}
    assert set(WIRE) == ours
    assert len(KINDS) == len(ours)
    assert set(PLAIN) == set(CODES) == set(get_args(Code))


def test_a_foreign_error_shows_nothing_of_itself_and_a_refusal_stays_what_it_is() -> None:
    failure = failure_of(OSError("/secret/path"), rid=RID)
    assert failure.code == "internal"
    assert "secret" not in failure.message
    refused = Refused("busy", "full", retry_ms=9)
    assert failure_of(refused, rid=RID) == Failure(rid=RID, code="busy", message="full", retry_ms=9)
    assert isinstance(error_of(refused), errors.Busy)

    class Finer(errors.Busy):
        pass

    assert failure_of(Finer("full", 5)).kind == "busy"


def test_priorities_have_numbers_and_names() -> None:
    assert [priority_name(number) for number in range(10)] == (
        ["background"] * 4 + ["interactive"] * 4 + ["control"] * 2)
    assert all(priority_name(priority_number(name)) == name for name in PRIORITIES)


def test_request_ids_are_random_and_fit_everywhere() -> None:
    made = {new_request_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(len(bytes.fromhex(rid)) == 16 for rid in made)
    varied = [len({rid[place] for rid in made}) for place in range(32)]
    assert min(varied) == 16  # no digit is fixed: 128 random bits


# ZeroMQ's frames

def test_a_chunk_in_frames() -> None:
    assert FRAMES.write(Chunk(rid=RID, attempt="e", offset=3, text="hé")) == [
        b"ARN1", b"\x12", bytes.fromhex(RID), b"\x82\xa1e\xa1e\xa1o\x03", "hé".encode()]
    assert {kind.__struct_config__.tag for kind in TYPES.values()} == {
        kind.__struct_config__.tag for kind in (*get_args(ToNode), *get_args(ToDevice))}


@pytest.mark.parametrize(("frames", "code"), [
    ([], "bad_request"), ([b"ARN1"], "bad_request"), ([b"ARN2", b"\x30", b"", b"\x80"], "unsupported_version"),
    ([b"HTTP", b"\x30", b"", b"\x80"], "bad_request"), ([b"ARN1", b"\x7f", b"", b"\x80"], "bad_request"),
    ([b"ARN1", b"", b"", b"\x80"], "bad_request"), ([b"ARN1", b"\x30", b"123", b"\x80"], "bad_request"),
    ([b"ARN1", b"\x30", b"", b"\x80", b"text"], "bad_request"), ([b"ARN1", b"\x30", b"", b"\xc0"], "bad_request"),
    ([b"ARN1", b"\x30", b"", b"\x81\xa1t\xa3bye"], "bad_request"),
    ([b"ARN1", b"\x12", b"", b"\x80", b"x"], "bad_request"),
    ([b"ARN1", b"\x30", b"", b"\x81\xa1x" + b"\x91" * 5000], "bad_request"),
    ([b"ARN1", b"\x30", b"", b"\x80" * (65 << 10)], "too_large"),
    ([b"ARN1", b"\x30", b"", b"\x80", b"", b""], "bad_request"),
])
def test_frames_that_are_none_are_refused(frames: list[bytes], code: str) -> None:
    with pytest.raises(Refused) as caught:
        FRAMES.to_node(frames)
    assert caught.value.code == code


def test_over_zeromq_a_request_id_is_16_bytes() -> None:
    with pytest.raises(Refused, match="32 hexadecimal"):
        FRAMES.write(Cancel(rid="night-light-1"))
    with pytest.raises(Refused) as caught:
        FRAMES.to_device([b"ARN1", b"\x12", bytes.fromhex(RID), b"\x82\xa1e\xa1e\xa1o\x03", b"\xff"])
    assert (caught.value.code, caught.value.rid) == ("bad_request", RID)


# Fuzz

SEEDS: list[Message] = [
    Generate(rid=RID, messages=({"role": "user", "content": "licht an é😀"},), schema={"type": "object", "n": [1, 2.5]},
             stop=("\n",), deadline_ms=900, key="nav", sent=17.5),
    Cancel(rid=RID, attempt="7f"), Credit(rid=RID, attempt="7f", offset=1 << 40), Resume(rid=RID, offset=9, channel=2),
    Hello(client="c"), List(what="models"), Accept(rid=RID, attempt="7f", node="n", boot="b"),
    Chunk(rid=RID, attempt="7f", offset=345, text="é😀 \u0000", channel=1), Failure(rid=RID, code="busy", retry_ms=5),
    End(rid=RID, attempt="7f", lengths={"0": 5}, checksums={"0": 7}, reason="stop", result={"a": [None, True]}),
    Welcome(node="n", boot="b"),
]


def attempt(read: Callable[[T], Message], said: T) -> Message | Refused:
    try:
        result = read(said)
    except Refused as error:
        return error
    assert isinstance(result, ToNode | ToDevice)
    return result


def mutated(raw: bytes, chance: random.Random) -> bytes:
    out = bytearray(raw)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(6):
            case 0:
                out[at:at + 1] = bytes([chance.randrange(256)])
            case 1:
                del out[at:at + chance.randrange(1, 9)]
            case 2:
                out[at:at] = chance.randbytes(chance.randrange(1, 9))
            case 3:
                out[at:at] = out[at:at + chance.randrange(40)] * chance.randrange(1, 5)
            case 4:
                out[at:at] = chance.choice((b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xdb\xff\xff\xff\xf0",
                                            b"\xc6\xff\xff\xff\xff", b"[" * 3000, b"\x91" * 3000, b"9" * 500, b"NaN",
                                            b"\xdc\xff\xff" * 500))
            case _:
                del out[at:]
    return bytes(out)


def test_20_000_damaged_messages_give_a_message_or_a_refusal_and_take_little_memory() -> None:
    chance = random.Random(20)
    raws = [CODEC.write(message, form) for message in SEEDS for form in FORMATS]
    heard = refused = 0
    tracemalloc.start()
    try:
        for number in range(20_000):
            raw = mutated(chance.choice(raws), chance)
            read = CODEC.to_node if number % 2 else CODEC.to_device
            result = attempt(read, raw)
            if isinstance(result, Refused):
                assert CODEC.write(result.reply)
                refused += 1
            else:
                heard += 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert heard > 200
    assert refused > 10_000
    assert peak < 8 << 20, f"{peak:,} bytes"


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=40), max_size=6), st.sampled_from(SEEDS), st.integers(0, 4), st.binary(max_size=20))
def test_damaged_frames_give_a_message_or_a_refusal(
    wild: list[bytes], message: Message, place: int, other: bytes
) -> None:
    whole = FRAMES.write(message)
    whole[place % len(whole)] = other
    for frames in (wild, whole):
        for read in (FRAMES.to_node, FRAMES.to_device):
            result = attempt(read, frames)
            assert not isinstance(result, Refused) or result.code in CODES


def test_a_full_request_of_the_smallest_values_takes_memory_in_proportion() -> None:
    inside = b'{"t":"gen","rid":"r","prompt":"","schema":{"a":[' + b",".join([b"{}"] * 21_000) + b"]}}"
    assert len(inside) < LIMITS.request_bytes
    tracemalloc.start()
    try:
        CODEC.to_node(inside)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * len(inside)


def test_messages_of_a_node_and_of_a_device_are_told_apart() -> None:
    assert issubclass(Chunk, FromNode)
    with pytest.raises(Refused):
        CODEC.to_node(CODEC.write(Chunk(rid=RID, attempt="e", offset=0, text="x")))
    with pytest.raises(Refused):
        CODEC.to_device(CODEC.write(Cancel(rid=RID)))
