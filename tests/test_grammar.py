"""Grammars and matchers: what a mask lets through fits the form, what is forced is what would have come anyway."""

from __future__ import annotations

import gc
import json
import os
import random
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import arenite
from arenite.examples.assistant.corpus import held_out
from arenite.examples.assistant.demo import SCHEMA, assistant
from arenite.examples.assistant.home import compact
from arenite.quantize import convert
from arenite.runtime.backends import ggml, libllama
from arenite.runtime.backends.null import END, VOCABULARY, NullVocabulary
from arenite.runtime.config import ModelOptions
from arenite.runtime.forms import Form
from arenite.runtime.grammar import Compiler, Grammar, Matcher
from arenite.runtime.typed import form_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from arenite.runtime.backends.base import Vocabulary

ACTION = {
    "type": "object",
    "properties": {
        "action": {"enum": ["turn_on", "turn_off"]}, "room": {"enum": ["kitchen", "living_room"]},
        "value": {"type": "integer", "minimum": 0, "maximum": 100},
    },
    "required": ["action", "room", "value"], "additionalProperties": False,
}
NULL = NullVocabulary()
CLOSING = frozenset(b'"]}')


@pytest.fixture(scope="module")
def null() -> Iterator[Compiler]:
    compiler = Compiler(NULL)
    yield compiler
    compiler.close()


def opened(path: Path) -> Iterator[libllama.LlamaVocabulary]:
    model = libllama.open_model(ModelOptions(str(path), weights="mapped"))
    vocabulary = libllama.LlamaVocabulary(model)
    yield vocabulary
    vocabulary.close()
    ggml.L.llama_model_free(model)


@pytest.fixture(scope="module")
def assistant_words(cache: Path) -> Iterator[libllama.LlamaVocabulary]:
    assert cache.exists()
    yield from opened(assistant("q8_0"))


@pytest.fixture(scope="module")
def stories_words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[libllama.LlamaVocabulary]:
    source = Path(os.environ["ARENITE_REFERENCE_MODELS"]) / "stories260k"
    yield from opened(convert(source, tmp_path_factory.mktemp("stories") / "stories.gguf", type="f32").path)


needs_stories = [
    pytest.mark.reference,
    pytest.mark.skipif("ARENITE_REFERENCE_MODELS" not in os.environ, reason="ARENITE_REFERENCE_MODELS is not set"),
]
VOCABULARIES = ["assistant_words", pytest.param("stories_words", marks=needs_stories)]


def allowed(matcher: Matcher, size: int = VOCABULARY) -> list[int]:
    logits = np.zeros(size, np.float32)
    matcher.mask(logits)
    assert set(np.unique(logits)) <= {0.0, -np.inf}
    return [int(token) for token in np.flatnonzero(logits == 0)]


def text_of(vocabulary: Vocabulary, tokens: list[int]) -> str:
    return b"".join(map(vocabulary.piece, tokens)).decode()


def walk(matcher: Matcher, choose: random.Random, *, forced: bool = True, steps: int = 2_000) -> list[int] | None:
    """Write a random answer; None if it has no end after so many steps."""
    answer: list[int] = []
    for _ in range(steps):
        if matcher.stopped:
            return answer
        run = matcher.forced() if forced else []
        if not run:
            possible = allowed(matcher)
            if END in possible and (len(possible) == 1 or choose.random() < 0.3):
                return answer
            closing = [token for token in possible if token in CLOSING] if choose.random() < 0.4 else []
            run = [choose.choice(closing or [token for token in possible if token != END])]
        matcher.accept(run)
        answer += run
    return None


SCALARS: list[dict[str, Any]] = [
    {"type": "boolean"}, {"type": "null"}, {"type": "integer", "minimum": -5, "maximum": 1200},
    {"type": "number", "minimum": 0, "maximum": 1.5}, {"type": "string", "maxLength": 6}, {"type": "string"},
    {"enum": ["a", "ab", "b\u00e9", 1, None]}, {"const": {"x": [1, "y"]}},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 99}, {"type": "string", "format": "date"},
]


def containers(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "ab", "room", "\u00fc", "x y"])

    def record(properties: dict[str, Any], needed: int) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": list(properties)[:needed],
                "additionalProperties": False}

    return (
        st.builds(record, st.dictionaries(names, inner, max_size=4), st.integers(0, 4))
        | st.builds(lambda item: {"type": "array", "items": item, "maxItems": 3}, inner)
        | st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3))
    )


SCHEMAS = st.recursive(st.sampled_from(SCALARS), containers, max_leaves=8)
RELAXED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@RELAXED
@given(schema=SCHEMAS, seed=st.integers(0, 1 << 30))
def test_whatever_is_chosen_under_the_mask_fits_the_schema(null: Compiler, schema: dict[str, Any], seed: int) -> None:
    form, decode = form_of(schema)
    grammar = null.compile(form)
    answer = walk(grammar.matcher(), random.Random(seed))
    if answer is None:
        return  # a very long text
    text = text_of(NULL, answer)
    value = decode(text)
    jsonschema.validate(value, schema)
    assert text == json.dumps(value, separators=(",", ":"), ensure_ascii=False) or "\\" in text or "." in text
    again = grammar.matcher()
    again.accept(answer)
    assert again.complete, "fed at once it stands where it stood step by step"
    assert again.stopped or END in allowed(again)


@RELAXED
@given(schema=SCHEMAS, seed=st.integers(0, 1 << 30), cut=st.floats(0, 1))
def test_one_call_or_many_copies_and_forced_runs_lead_to_the_same_state(
    null: Compiler, schema: dict[str, Any], seed: int, cut: float
) -> None:
    grammar = null.compile(Form.json_schema(schema))
    answer = walk(grammar.matcher(), random.Random(seed), forced=False)
    if not answer:
        return
    part = answer[: int(len(answer) * cut)]
    stepwise, at_once = grammar.matcher(), grammar.matcher()
    for token in part:
        stepwise.accept([token])
    at_once.accept(part)
    twin = at_once.copy()
    run = at_once.forced()
    assert run == stepwise.forced()
    for token in run:  # each of them is the only one possible
        assert allowed(twin) == [token]
        twin.accept([token])
    assert (at_once.stopped, at_once.complete) == (stepwise.stopped, stepwise.complete)
    if not at_once.stopped:
        possible = allowed(at_once)
        assert possible == allowed(stepwise)
        assert (END in possible) == at_once.complete
        for token in {*possible, *range(0, VOCABULARY, 7)} - {END}:
            if token in possible:
                at_once.copy().accept([token])
            else:
                with pytest.raises(arenite.GrammarError):
                    at_once.copy().accept([token])


def test_patterns_and_grammars(null: Compiler) -> None:
    whole = null.compile(Form.regex("(on|off) at [0-9]{2}%")).matcher()
    assert text_of(NULL, whole.forced()) == "o"
    whole.accept(list(b"off at 40%"))
    assert whole.complete
    assert whole.stopped
    assert whole.forced() == []
    sums = null.compile(Form.lark('start: sum\nsum: sum "+" NUMBER | NUMBER\nNUMBER: /[0-9]+/')).matcher()
    sums.accept(list(b"12+3"))
    assert (sums.complete, sums.stopped) == (True, False)
    assert text_of(NULL, allowed(sums)) == "+0123456789"
    brace = null.compile(Form.lark('{"grammars":[{"rx":"a"}]}'.replace('{"grammars"', 'start: "{"\n//'))).matcher()
    assert brace.forced() == list(b"{")
    with pytest.raises(arenite.BadSchema):
        null.compile(Form.lark('{"grammars":[{"json_schema":{}}]}'))  # what llguidance would take instead of Lark


def test_a_forbidden_token_ends_it_for_good(null: Compiler) -> None:
    grammar = null.compile(Form.json_schema({**ACTION, "title": "spoilt"}))
    matcher, other = grammar.matcher(), grammar.matcher()
    with pytest.raises(arenite.GrammarError, match="can not go on") as caught:
        matcher.accept(list(b'{"a"'))
    assert "\n" not in str(caught.value)
    logits = np.zeros(VOCABULARY, np.float32)
    for use in (matcher.forced, lambda: matcher.mask(logits), lambda: matcher.accept([1]), lambda: matcher.complete,
                lambda: matcher.stopped):
        with pytest.raises(arenite.GrammarError):
            use()
    assert other.forced() == list(b'{"action":"turn_o'), "its siblings go on"
    assert grammar.worn
    assert null.compile(grammar.form) is not grammar


def test_states_beyond_the_limit_end_an_answer_and_the_next_begins_afresh(null: Compiler) -> None:
    form, choose = Form.regex("(.*a.{14}b)*"), random.Random(1)

    def exhaust() -> Grammar:
        grammar = null.compile(form)
        for _ in range(200):
            matcher = grammar.matcher()
            for _ in range(300):
                matcher.accept([choose.choice(b"abc")])
        return grammar

    with pytest.raises(arenite.GrammarError, match=r"too many|fuel"):
        exhaust()
    answer = null.compile(form).matcher()
    answer.accept(list(b"abc" * 6))


def test_a_dead_end_is_an_error_not_a_free_choice(null: Compiler) -> None:
    matcher = null.compile(Form.lark('start: "a" <[256]> "b"')).matcher()  # demands the end token in the middle
    matcher.accept(list(b"a"))
    assert matcher.forced() == []
    with pytest.raises(arenite.GrammarError, match="no token may come next"):
        allowed(matcher)


BAD = {
    "a type": {"type": "text"}, "a number as type": {"type": 5}, "an unknown reference": {"$ref": "#/$defs/none"},
    "a reference elsewhere": {"$ref": "https://example.com/a.json"}, "only itself": {"$ref": "#"},
    "an endless object": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"],
                          "additionalProperties": False},
    "a circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "a negative length": {"type": "string", "minLength": -1}, "not": {"not": {}}, "nothing": {"enum": []},
    "an empty range": {"type": "integer", "minimum": 2, "maximum": 1},
    "a bad pattern": {"type": "string", "pattern": "(a"}, "a multiple of nothing": {"type": "integer", "multipleOf": 0},
}


@pytest.mark.parametrize("schema", BAD.values(), ids=list(BAD))
def test_a_schema_that_is_none_is_refused_with_the_reason(null: Compiler, schema: dict[str, Any]) -> None:
    with pytest.raises(arenite.BadSchema, match=r"can not be compiled: .") as caught:
        null.compile(Form.json_schema(schema))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def chain(links: int) -> dict[str, Any]:
    parts: dict[str, Any] = {f"a{i}": {"type": "array", "items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(links)}
    return {"$defs": {**parts, f"a{links}": {"type": "integer"}}, "$ref": "#/$defs/a0"}


def doubling(levels: int) -> dict[str, Any]:
    parts: dict[str, Any] = {
        f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}, {"type": "array", "items": {"$ref": f"#/$defs/a{i + 1}"}}]}
        for i in range(levels)
    }
    return {"$defs": {**parts, f"a{levels}": {"type": "integer"}}, "$ref": "#/$defs/a0"}


BOMBS = {
    "nested stars": Form.regex("((a|a)*){1000}"),
    "nested counts": Form.regex("((((a{1,99}){1,99}){1,99}){1,99}){1,99}"),
    "nested exact counts": Form.regex("((((a{99}){99}){99}){99}){99}"),
    "alternatives": Form.regex("|".join(f"w{i * 7919 % 1000003}" for i in range(4_000))),
    "optional letters": Form.regex("a?" * 5_000 + "a" * 5_000),
    "far back": Form.regex("(.*a.{30}b.*){9}"),
    "conjunction": Form.lark("start: T\nT: /(.*a.{15})/ & /(.*b.{16})/ & ~/(.*c.{17})/"),
    "ambiguity": Form.lark('start: s\ns: s s s | s s | "a" | '),
    "a chain of rules": Form.lark("start: r0\n" + "\n".join(f"r{i}:r{i + 1}" for i in range(2_400)) + '\nr2400: "x"'),
    "a chain of terminals": Form.lark("start: T0\n" + "\n".join(f'T{i}:"a"T{i + 1}' for i in range(2_000))
                                      + '\nT2000: "x"'),
    "endless": Form.lark('start: "a" start'),
    "a chain of references": Form.json_schema(chain(2_400)),
    "references that double": Form.json_schema(doubling(400)),
    "a recursive conjunction": Form.json_schema({"$defs": {
        "a": {"type": "object", "properties": {"x": {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}}},
        "b": {"type": "object", "properties": {"x": {"allOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/a"}]}}},
    }, "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}),
    "a product": Form.json_schema({"allOf": [
        {"anyOf": [{"type": "object", "properties": {f"p{i}": {"const": j}}} for j in range(2)]} for i in range(30)
    ]}),
    "a huge enum": Form.json_schema({"enum": [f"value {i * 7919 % 1000003}" for i in range(12_000)]}),
    "many properties": Form.json_schema({"type": "object", "properties": {f"p{i}": {} for i in range(1_000)}}),
    "a multiple": Form.json_schema({"type": "integer", "multipleOf": 99_991}),
    "an endless array": Form.json_schema({"type": "array", "items": {"const": "abc"}, "minItems": 1_000_000}),
}


@pytest.mark.parametrize("form", BOMBS.values(), ids=list(BOMBS))
def test_a_bomb_compiles_or_is_refused_and_costs_no_more_than_its_limit(form: Form) -> None:
    compiler, choose = Compiler(NULL), random.Random(3)
    start = time.monotonic()
    try:
        matcher = compiler.compile(form).matcher()
        walk(matcher, choose, steps=100)
    except (arenite.BadSchema, arenite.GrammarError) as error:
        assert "\n" not in str(error)  # noqa: PT017 - either may come, or neither
    assert time.monotonic() - start < 30, "no measurement: the limit is 5 s, and slower machines are"
    assert compiler.compile(Form.json_schema(ACTION)).matcher().forced()
    compiler.close()


def test_what_takes_too_long_is_refused_and_the_others_are_served() -> None:
    compiler = Compiler(NULL, limit_s=0.02)
    quick = Form.json_schema({"type": "boolean"})
    compiler.compile(quick)
    slow = [Form.json_schema({"type": "integer", "multipleOf": 99_991, "title": title}) for title in "ab"]
    for form in slow:
        with pytest.raises(arenite.BadSchema, match=r"takes longer than 0\.02 s"):
            compiler.compile(form)
    start = time.monotonic()
    with pytest.raises(arenite.BadSchema, match="takes longer"):
        compiler.compile(slow[0])
    assert time.monotonic() - start < 0.02, "it is not tried again"
    assert compiler.compile(quick).matcher()
    with pytest.raises(arenite.Busy):
        compiler.compile(Form.json_schema({"type": "null"}))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            compiler.compile(Form.json_schema({"type": "null"}))
            break
        except arenite.Busy:
            time.sleep(0.05)
    else:
        pytest.fail("it never came back")
    compiler.close()


def test_forms_are_compiled_once_and_the_least_used_is_forgotten() -> None:
    compiler = Compiler(NULL, kept=2)
    forms = [Form.regex(pattern) for pattern in "abc"]
    first, second = compiler.compile(forms[0]), compiler.compile(forms[1])
    assert compiler.compile(Form.regex("a")) is first
    assert compiler.submit(forms[0]).done()
    compiler.compile(forms[2])
    assert compiler.compile(forms[0]) is first
    assert compiler.compile(forms[1]) is not second
    errors = []
    for _ in range(2):
        with pytest.raises(arenite.BadSchema) as caught:
            compiler.compile(Form.regex("(a"))
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert str(errors[0]) == str(errors[1])
    assert "unclosed group" in str(errors[0])
    compiler.close()


def test_many_threads_ask_at_once() -> None:
    compiler = Compiler(NULL)
    forms = [Form.json_schema({"enum": [f"{i} {k}" for k in range(50)]}) for i in range(8)] * 4
    futures: list[Future[Grammar]] = []
    threads = [threading.Thread(target=lambda form=form: futures.append(compiler.submit(form))) for form in forms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {future.result(30).form for future in futures} == set(forms)
    assert futures[0].cancel() is False
    compiler.close()


def test_after_closing_nothing_is_compiled_and_no_tokenizer_is_asked() -> None:
    compiler = Compiler(NULL)
    matcher = compiler.compile(Form.json_schema(ACTION)).matcher()
    waiting = [compiler.submit(Form.regex(f"a{i}")) for i in range(5)]
    compiler.close()
    for future in waiting:
        assert future.exception(5) is None or isinstance(future.exception(), arenite.EngineClosed)
    with pytest.raises(arenite.EngineClosed):
        matcher.forced()
    with pytest.raises(arenite.EngineClosed):
        compiler.compile(Form.regex("b"))
    compiler.close()
    Compiler(NULL).close()


def test_a_compile_lets_other_threads_run() -> None:
    compiler, turns = Compiler(NULL), 0
    future = compiler.submit(Form.json_schema({"type": "integer", "multipleOf": 99_991}))
    while not future.done():
        turns += 1
        time.sleep(0.001)
    assert turns > 20, "a compile of half a second and more holds the GIL for little of it"
    compiler.close()


def test_matchers_leave_no_memory_behind(null: Compiler) -> None:
    grammar, before = null.compile(Form.json_schema(ACTION)), 0
    with arenite.Runtime() as runtime:
        for turn in range(2_000):
            matcher = grammar.matcher()
            matcher.accept(matcher.forced())
            allowed(matcher)
            if turn == 1_000:
                gc.collect()
                before = runtime.status().rss_bytes
        assert runtime.status().rss_bytes - before < 4 << 20


@pytest.mark.parametrize("words", VOCABULARIES)
def test_forced_runs_give_the_very_tokens_of_the_text(words: str, request: pytest.FixtureRequest) -> None:
    vocabulary: libllama.LlamaVocabulary = request.getfixturevalue(words)
    compiler = Compiler(vocabulary)
    size = vocabulary.matcher_tokenizer().vocab_size
    grammar = compiler.compile(Form.json_schema(SCHEMA.read_text("utf-8")))

    def tokens_of(text: str) -> list[int]:
        """Tokens as they stand in running text: behind a newline SentencePiece adds no space."""
        head = vocabulary.encode("\n", special=False, start=False)
        return vocabulary.encode("\n" + text, special=False, start=False)[len(head):]

    total = forced = 0
    for example in held_out()["plain"][:200]:
        wanted = compact(example.action)
        expected, matcher = tokens_of(wanted), grammar.matcher()
        answer: list[int] = []
        while answer != expected:
            run = matcher.forced()
            forced += len(run)
            if not run:
                run = expected[len(answer): len(answer) + 1]
                assert run[0] in allowed(matcher, size)
            matcher.accept(run)
            answer += run
            assert expected[: len(answer)] == answer, wanted
        assert matcher.complete
        total += len(answer)
        again = grammar.matcher()
        again.accept(answer)
        assert (again.complete, again.stopped) == (matcher.complete, matcher.stopped)
    assert forced > total / 2
    compiler.close()


@pytest.mark.parametrize("words", VOCABULARIES)
def test_all_ends_of_a_model_come_where_the_answer_may_end_and_nowhere_else(
    words: str, request: pytest.FixtureRequest
) -> None:
    vocabulary: libllama.LlamaVocabulary = request.getfixturevalue(words)
    assert vocabulary.matcher_tokenizer() is vocabulary.matcher_tokenizer()
    compiler, size = Compiler(vocabulary), vocabulary.matcher_tokenizer().vocab_size
    ends = [token for token in range(size) if vocabulary.is_end(token)]
    assert ends
    digits = compiler.compile(Form.regex("[0-9]{1,4}")).matcher()
    assert not set(allowed(digits, size)) & set(ends)
    digits.accept(vocabulary.encode("\n7", special=False, start=False)[-1:])
    assert set(ends) < set(allowed(digits, size))
    words_only = compiler.compile(Form.json_schema({"type": "string"})).matcher()
    words_only.accept(words_only.forced())
    control = [token for token in allowed(words_only, size) if not vocabulary.piece(token)]
    assert control == [], "inside a text no control token may come"
    compiler.close()


def test_values_beyond_numbers_stay_refused(null: Compiler) -> None:
    matcher = null.compile(Form.regex("[ab]")).matcher()
    logits = np.full(VOCABULARY, np.nan, np.float32)
    logits[97], logits[200] = 1.0, np.inf
    matcher.mask(logits)
    assert logits[97] == 1.0
    assert not np.isfinite(np.delete(logits, 97)).any()


def test_many_who_ask_for_one_new_form_at_once_wait_for_one_compile() -> None:
    compiler = Compiler(NullVocabulary())
    try:
        futures = [compiler.submit(Form.regex("[a-f]{3}x")) for _ in range(500)]
        assert len({id(future.result(20)) for future in futures}) == 1
    finally:
        compiler.close()
