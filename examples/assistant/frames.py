"""Sentence frames: how patterns expand, what two sentences have in common, and who may see which frame.

The *normal form* of a sentence is what is left when slot values, fillers, determiners, contractions, capitals and
punctuation are gone: "Hey, could you turn on the kitchen light please?" -> "turn on {room} {device}". The split into
training, validation and held-out is made on normal forms, so no held-out frame can occur in training in other clothes.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass

from .home import WORDS
from .numbers import NUMBER_WORDS, UNITS
from .phrases import NOUNS, PATTERNS
from .topics import FOLLOW_UPS, REFUSALS

SPLITS = ("train", "validation", "held_out")
# Shares of held-out and validation; of slot pairs more, so that every intent has some.
FRAME_SHARES, PAIR_SHARES = (0.10, 0.06), (0.16, 0.05)
# Set phrases, not commands: nobody could tell a new one from the others, so none is held out.
SMALL_TALK = frozenset(("greeting", "help", "identity", "thanks", "goodbye"))

# Polite or idle words around a command. They may be put before or after any frame and are no part of it.
OPENERS = (
    *(
        "please",
        "hey",
        "ok",
        "okay",
        "um",
        "uh",
        "so",
        "well",
        "hello",
        "hi",
        "right",
        "alright",
        "listen",
        "oh",
        "erm",
    ),
    *(
        "hey assistant",
        "assistant",
        "computer",
        "hey there",
        "excuse me",
        "hey computer",
        "ok assistant",
        "good morning",
    ),
)
ASKS = (  # only before an imperative
    *(
        "could you",
        "can you",
        "would you",
        "will you",
        "could you please",
        "can you please",
        "would you please",
        "kindly",
    ),
    *("i want you to", "i would like you to", "i need you to", "go ahead and", "just", "quickly", "be so kind and"),
    *("do me a favor and", "you can", "you could", "please just", "i would appreciate it if you could", "make sure to"),
    *("could you kindly", "would you be so kind and", "i would love it if you could", "you should", "you may", "now"),
)
CLOSERS = (
    *(
        "please",
        "thanks",
        "thank you",
        "now",
        "right now",
        "for me",
        "will you",
        "ok",
        "okay",
        "would you",
        "if you can",
    ),
    *(
        "when you can",
        "asap",
        "if possible",
        "at once",
        "immediately",
        "assistant",
        "quickly",
        "if you please",
        "today",
    ),
)
DETERMINERS = frozenset("the my our a an some any this".split())
IDLE = frozenset("please um uh erm kindly just".split())
CONTRACTIONS = {
    "what's": "what is", "it's": "it is", "i'd": "i would", "don't": "do not", "that's": "that is", "i'm": "i am",
    "can't": "can not", "let's": "let us", "who's": "who is", "there's": "there is", "how's": "how is",
    "we're": "we are",
    "you're": "you are", "isn't": "is not", "cannot": "can not",
    "are": "is",
}  # fmt: skip
VERBS = frozenset(
    """
    turn switch put power start activate enable fire have get make let give shut stop deactivate disable kill cut
    set dim lower soften brighten raise adjust change bring paint color heat warm cool keep increase reduce lock
    secure bolt unlock unbolt take open close pull move play stream pause halt hold resume continue unpause skip go
    jump mute silence check read measure report look tell show find see drive roll run travel send rotate spin steer
    pivot do dock park charge recharge navigate visit cancel delete remove clear end drop forget create begin count
    time decrease light illuminate fill write compose order buy book reserve explain call phone translate add search
    recommend wash clean feed cook freeze brake sing dance repeat undo reverse
    """.split()
)


@dataclass(frozen=True, slots=True)
class Frame:
    """One expanded pattern: the intent it belongs to, its template, and its normal form."""

    intent: str
    template: str
    normal: str

    @property
    def imperative(self) -> bool:
        """Whether "could you" may stand before it."""
        return self.template.split(" ", 1)[0] in VERBS


def expand(pattern: str) -> list[str]:
    """Return every sentence template of a pattern, in a fixed order."""
    for name, noun in NOUNS.items():
        pattern = pattern.replace(f"<{name}>", noun)
    pattern = pattern.replace("[", "(|").replace("]", ")")
    done, todo = [], [pattern]
    while todo:
        text = todo.pop()
        inner = re.search(r"\(([^()]*)\)", text)
        if inner is None:
            done.append(" ".join(text.split()))
            continue
        todo += [text[: inner.start()] + choice + text[inner.end() :] for choice in inner[1].split("|")]
    return sorted(set(done))


@functools.cache
def _surfaces() -> tuple[re.Pattern[str], dict[str, str]]:
    """Return a pattern that finds every slot surface, longest first, and the slot each belongs to."""
    slots: dict[str, str] = {}
    for slot, values in WORDS.items():
        name = {"dimmable": "device", "cover": "device", "door": "device", "how": "how", "seen": "sensor"}.get(
            slot, slot
        )
        for forms in values.values():
            for form in forms:
                slots.setdefault(form, name)
    ordered = sorted(slots, key=len, reverse=True)
    return re.compile(r"\b(" + "|".join(map(re.escape, ordered)) + r")\b"), slots


_NUMBER = re.compile(
    rf"\b(?:\d+|(?:{NUMBER_WORDS})(?:[ -](?:{NUMBER_WORDS}))*|half an|quarter of an|an(?= hour)|a(?= minute))"
    rf"(?:[ -]?(?:{UNITS})(?!\w))?(?: and a half)?"
)
_MARKS = {
    **dict.fromkeys(("percent", "temp", "temp0", "minutes", "minutes1", "seconds", "seconds1", "hours", "hours1"), "n"),
    **dict.fromkeys(("cm", "angle", "again", "number", "hot"), "n"),
    **dict.fromkeys(("dimmable", "cover", "door"), "device"),
    "seen": "sensor",
}


# Fillers that hold a word which is also a slot value: "right" is a turn, "ahead" a direction.
_HIDDEN = re.compile(
    rf"\bgo ahead and\b|\balright\b|\bright now(?=\W*$)|^\W*right\b(?!\W*(?:<n>|\{{|\d|(?:{NUMBER_WORDS})\b|$))"
)


@functools.cache
def frame_of(text: str) -> str:
    """Return the normal form of a sentence or a template: its words without slot values, fillers and determiners."""
    text = re.sub(r"\{(\w+)\}", lambda m: f" <{_MARKS.get(m[1], m[1])}> ", text.lower().replace("\u2019", "'"))
    for short, full in CONTRACTIONS.items():
        text = re.sub(rf"\b{short}(?!\w)", full, text)
    text = _NUMBER.sub(" <n> ", _HIDDEN.sub(" ", text))
    pattern, slots = _surfaces()
    text = pattern.sub(lambda m: f" <{slots[m[1]]}> ", text)
    words = [w for w in re.findall(r"<\w+>|[\w']+", text) if w not in DETERMINERS and w not in IDLE]
    text = re.sub(r"<n>( <n>)+", "<n>", _strip_fillers(" ".join(words)))
    return re.sub(r"<(\w+)>", r"{\1}", text)


@functools.cache
def _fillers() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the fillers before and after a command as they look without determiners and idle words, longest first."""

    def bare(phrases: tuple[str, ...]) -> set[str]:
        kept = (" ".join(w for w in p.split() if w not in DETERMINERS and w not in IDLE) for p in phrases)
        return {p for p in kept if p}

    front, back = bare(OPENERS) | bare(ASKS), bare(CLOSERS)
    return tuple(sorted(front, key=len, reverse=True)), tuple(sorted(back, key=len, reverse=True))


def _strip_fillers(text: str) -> str:
    """Take fillers off both ends until none is left or nothing else would be."""
    front, back = _fillers()
    changed = True
    while changed:
        changed = False
        for filler in front:
            if text.startswith(filler + " "):
                text, changed = text[len(filler) + 1 :], True
        for filler in back:
            if text.endswith(" " + filler):
                text, changed = text[: -len(filler) - 1], True
    return text


def draw(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") / 2**32


def drawn_split(key: str, shares: tuple[float, float] = PAIR_SHARES) -> str:
    """Return the split that the hash of a slot pair, or with its own shares a frame, falls into."""
    value, (held, validation) = draw(key), shares
    return SPLITS[2] if value < held else SPLITS[1] if value < held + validation else SPLITS[0]


@functools.cache
def frames() -> dict[str, tuple[Frame, ...]]:
    """Return all frames by intent; those of follow-ups are under "follow:<kind>"."""
    groups = {**PATTERNS, **REFUSALS, **{f"follow:{kind}": texts for kind, texts in FOLLOW_UPS.items()}}
    return {
        intent: tuple(Frame(intent, text, frame_of(text)) for pattern in patterns for text in expand(pattern))
        for intent, patterns in groups.items()
    }


@functools.cache
def splits() -> dict[str, str]:
    """Return the split of every normal form.

    A frame stays out of training only if training shows each of its words in the same intent (and the intent keeps
    most of its frames): a held-out sentence is a new way to put known words together, never a new word. Small talk is
    all training.
    """
    chosen: dict[str, str] = {}
    by_intent = {intent: sorted({f.normal for f in group}) for intent, group in frames().items()}
    for group in by_intent.values():
        chosen.update({normal: drawn_split(normal, FRAME_SHARES) for normal in group})
    chosen.update({normal: "train" for intent in SMALL_TALK for normal in by_intent[intent]})
    changed = True
    while changed:
        changed = False
        for group in by_intent.values():
            known = {word for normal in group if chosen[normal] == "train" for word in normal.split()}
            for normal in group:
                if chosen[normal] != "train" and not set(normal.split()) <= known:
                    chosen[normal], changed = "train", True
                    known |= set(normal.split())
    return chosen


@functools.cache
def frames_in(split: str) -> dict[str, tuple[Frame, ...]]:
    """Return the frames of one split by intent, those without any left out."""
    chosen = splits()
    kept = {intent: tuple(f for f in group if chosen[f.normal] == split) for intent, group in frames().items()}
    return {intent: group for intent, group in kept.items() if group}
