"""The assistant's corpus: what is held out really is, and what is generated is what is promised."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from arenite.examples.assistant import baseline, corpus, frames, home, schema, speech
from arenite.examples.assistant.numbers import HELD_NUMBERS, in_words
from arenite.examples.assistant.sentences import sentence

MODEL = Path(corpus.__file__).parent / "model"
HELD_OUT = corpus.held_out()


@pytest.fixture(scope="module")
def training() -> list[corpus.Example]:
    return list(itertools.islice(corpus.training(11), 12_000))


def test_no_frame_is_in_two_splits() -> None:
    normals = {
        split: {frame.normal for group in frames.frames_in(split).values() for frame in group}
        for split in frames.SPLITS
    }
    for one, other in itertools.combinations(frames.SPLITS, 2):
        assert not normals[one] & normals[other]
    assert len(normals["held_out"]) > 700


def test_examples_use_frames_of_their_split(training: list[corpus.Example]) -> None:
    chosen = frames.splits()
    assert {chosen[turn.frame.normal] for made in training for turn in made.turns} == {"train"}
    assert {chosen[made.turns[-1].frame.normal] for group in HELD_OUT.values() for made in group} == {"held_out"}


@pytest.mark.parametrize("kind", ["plain", "follow_up", "refusal"])
def test_held_out_texts_reduce_to_no_training_text(training: list[corpus.Example], kind: str) -> None:
    """Reads the finished texts alone, so it would notice a frame that came in through fillers or slot values."""
    known = {frames.frame_of(turn.text) for made in training for turn in made.turns}
    assert [made.text for made in HELD_OUT[kind] if frames.frame_of(made.text) in known] == []


def test_held_out_pairs_are_in_no_training_turn(training: list[corpus.Example]) -> None:
    seen = {pair for made in training for turn in made.turns for pair in home.pairs(turn.action)}
    for made in itertools.chain(*HELD_OUT.values()):
        found = home.pairs(made.action)
        assert not found or any(pair not in seen and frames.drawn_split(pair) == "held_out" for pair in found)
    assert {frames.drawn_split(pair) for pair in seen} == {"train"}


def test_held_out_numbers_are_in_no_training_turn(training: list[corpus.Example]) -> None:
    used = {value for made in training for turn in made.turns for value in turn.action.values()}
    assert not used & HELD_NUMBERS
    held = {value for made in HELD_OUT["plain"] for value in made.action.values()}
    assert len(held & HELD_NUMBERS) > 10


def test_held_out_frames_use_words_that_training_knows() -> None:
    chosen = frames.splits()
    for intent, group in frames.frames().items():
        words = {word for f in group if chosen[f.normal] == "train" for word in f.normal.split()}
        assert all(set(f.normal.split()) <= words for f in group if chosen[f.normal] != "train"), intent


def test_sizes_and_kinds() -> None:
    assert {kind: len(made) for kind, made in HELD_OUT.items()} == {
        "plain": 1200,
        "follow_up": 300,
        "typo": 300,
        "refusal": 300,
    }
    assert len({str(made.messages).lower() for made in HELD_OUT["plain"]}) == 1200
    assert len({made.turns[-1].frame.intent for made in HELD_OUT["plain"]}) >= 60
    assert all(len(made.turns) == 1 for made in HELD_OUT["plain"])
    assert all(len(made.turns) > 1 for made in HELD_OUT["follow_up"])
    assert {made.action["action"] for made in HELD_OUT["refusal"]} == {"decline"}


def test_same_seed_same_examples() -> None:
    one, two = ([(m.messages, m.action) for m in itertools.islice(corpus.training(5), 300)] for _ in range(2))
    assert one == two
    assert one != [(m.messages, m.action) for m in itertools.islice(corpus.training(6), 300)]
    assert corpus.examples("plain", 50) == corpus.examples("plain", 50)


def test_actions_fit_the_schema(training: list[corpus.Example]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    made = {home.compact(e.action): e.action for e in itertools.chain(training[:2500], *HELD_OUT.values())}
    allowed = jsonschema.Draft202012Validator(schema.schema())
    assert [text for text, action in made.items() if not allowed.is_valid(action)] == []
    assert not allowed.is_valid({"action": "turn_on", "device": "light", "room": "moon"})
    assert not allowed.is_valid({"action": "turn_on", "device": "light"})


def test_written_schema_is_current() -> None:
    assert (MODEL / "action.schema.json").read_text(encoding="utf-8") == schema.text()


def test_keys_come_in_the_order_of_the_schema(training: list[corpus.Example]) -> None:
    orders = {tuple(form["properties"]) for form in schema.schema()["anyOf"]}
    assert {tuple(made.action) for made in training} <= orders


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ({"action": "turn_on", "device": "light", "room": "kitchen"}, "Turning on the kitchen light."),
        ({"action": "turn_off", "device": "light", "room": "all"}, "Turning off all the lights."),
        ({"action": "set_temperature", "room": "bedroom", "value": 21}, "Setting the bedroom heating to 21 degrees."),
        ({"action": "set_timer", "label": "pasta", "minutes": 10}, "Starting a 10 minute pasta timer."),
        (
            {"action": "query", "sensor": "temperature", "room": "living_room"},
            "Checking the temperature in the living room.",
        ),
        ({"action": "play", "media": "radio"}, "Playing the radio."),
        (
            {"action": "rover_move", "direction": "forward", "distance_cm": 50},
            "Driving the rover forward 50 centimeters.",
        ),
        ({"action": "ask", "slot": "room"}, "Which room do you mean?"),
        ({"action": "decline", "reason": "unsafe"}, "Sorry, that would not be safe."),
    ],
)
def test_sentences(action: home.Action, said: str) -> None:
    assert sentence(action) == said


def test_every_action_has_a_sentence(training: list[corpus.Example]) -> None:
    for made in training:
        text = sentence(made.action)
        assert text[0].isupper()
        assert text[-1] in ".?"
        assert "{" not in text


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Hey, could you turn on the kitchen light please?", "turn on {room} {device}"),
        ("TURN ON MY KITCHEN LIGHTS!!", "turn on {room} {device}"),
        ("um set a timer for twenty-one minutes", "set timer for {n}"),
        ("What's the temperature in the living room right now?", "what is {sensor} in {room}"),
        ("turn {dimmable} in the {room} to {percent}", "turn {device} in {room} to {n}"),
        ("right 90 degrees", "{turn} {n}"),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert frames.frame_of(text) == normal


def test_patterns_expand() -> None:
    assert frames.expand("(turn|switch) on [all] the {cover} (now|)") == [
        "switch on all the {cover}",
        "switch on all the {cover} now",
        "switch on the {cover}",
        "switch on the {cover} now",
        "turn on all the {cover}",
        "turn on all the {cover} now",
        "turn on the {cover}",
        "turn on the {cover} now",
    ]
    assert len(frames.expand("<l> on")) == 2


def test_typing_errors_hit_words_but_no_numbers() -> None:
    rng = random.Random(3)
    text = "set the bathroom light to 45 percent for twenty minutes"
    wrong = [speech.mistype(text, rng) for _ in range(300)]
    assert all("45" in w and " twenty " in w and "set the " in w for w in wrong)
    assert sum(w != text for w in wrong) > 250
    assert not any((set(w.split()) - set(text.split())) & speech.vocabulary() for w in wrong)


def test_number_words() -> None:
    assert [in_words(n) for n in (0, 13, 20, 21, 99, 100)] == [
        "zero",
        "thirteen",
        "twenty",
        "twenty one",
        "ninety nine",
        "one hundred",
    ]


def test_training_mix(training: list[corpus.Example]) -> None:
    kinds = Counter(made.kind for made in training)
    assert set(kinds) == set(corpus.KINDS)
    assert min(kinds.values()) > 900
    assert {made.action["action"] for made in training} >= {intent.action for intent in home.INTENTS.values()}


def test_nearest_sentence_is_no_match() -> None:
    nearest = baseline.baseline(sample=8000)
    assert nearest.score(HELD_OUT["plain"][:500])[0] < 0.6
    known = list(itertools.islice(corpus.training(7), 200))
    assert nearest.score(known)[0] > 0.95


def test_tokenizer_reads_every_byte_and_every_answer() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    texts = [made.text for made in HELD_OUT["plain"][:200]] + ["Ünïcödé \u4f60\u597d \U0001f600\r\n\t  x", "a  b\n\n c"]
    texts += [home.compact(made.action) for made in HELD_OUT["plain"][:200]]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert {len(tokenizer.encode(text).ids) for text in ("<|im_start|>", "<|im_end|>", "<|action|>")} == {1}
    assert tokenizer.get_vocab_size() <= 2048


def test_chat_template_marks_requests_with_a_schema() -> None:
    jinja2 = pytest.importorskip("jinja2")
    pytest.importorskip("tokenizers")
    from arenite.examples.assistant import tokenizer  # noqa: PLC0415 - needs an optional package

    messages = corpus.examples("follow_up", 1)[0].messages
    source = (MODEL / "chat_template.jinja").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=False).from_string(source)
    forms: tuple[dict[str, str] | None, ...] = (None, {})
    for form in forms:
        rendered = template.render(messages=messages, add_generation_prompt=True, schema=form)
        assert rendered == tokenizer.prompt(messages, schema=form is not None)


def test_checkpoint_is_small_and_of_the_promised_shape() -> None:
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    assert (config["hidden_size"] % 256, config["intermediate_size"] % 256) == (0, 0)
    assert config["hidden_size"] == 64 * config["num_attention_heads"] > 64 * config["num_key_value_heads"]
    weights = MODEL / "model.safetensors"
    assert weights.stat().st_size <= 14_000_000
    assert 2e6 <= weights.stat().st_size / 2 <= 6e6
