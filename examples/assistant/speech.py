"""From a frame to something somebody would type: slot surfaces, fillers, typing errors, capitals and punctuation."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from .frames import ASKS, CLOSERS, CONTRACTIONS, OPENERS, frames
from .home import WORDS
from .numbers import HELD_NUMBERS, NUMBER_WORDS, say, written
from .topics import GADGETS, PEOPLE, THINGS

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from .frames import Frame
    from .home import Value

_EXPANDED = {full: short for short, full in CONTRACTIONS.items() if "'" in short}
_UNTOUCHED = frozenset(NUMBER_WORDS.split("|"))
_NEIGHBOURS = {
    key: row[max(0, i - 1) : i] + row[i + 1 : i + 2]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for i, key in enumerate(row)
}


def _word(slot: str, value: str, template: str, rng: random.Random) -> str:
    """Return a surface of a word slot, in the number that "all" or "every" before it asks for."""
    forms = WORDS[slot][value]
    if slot in ("device", "cover", "dimmable") and re.search(r"\b(all|every|everywhere)\b", template):
        single = "every {" in template or "every single {" in template
        wanted = [f for f in forms if f.endswith("s") != single]
        return rng.choice(wanted or list(forms))
    return forms[0] if rng.random() < 0.6 else rng.choice(forms)


def _babble(rng: random.Random) -> str:
    """Return a word nobody knows."""
    if rng.random() < 0.3:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 9)))
    return "".join(
        rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") + rng.choice(("", "", "n", "r", "x"))
        for _ in range(rng.randint(2, 3))
    )


def _loose(slot: str, split: str, rng: random.Random) -> str:
    """Return the text of a slot that is in no action: a topic of the split, a person, a gadget, a number."""
    if slot == "thing" and split == "train" and rng.random() < 0.15:
        return _babble(rng)
    if slot in ("thing", "person", "gadget"):
        return rng.choice({"thing": THINGS, "person": PEOPLE, "gadget": GADGETS}[slot][split])
    if slot == "babble":
        return _babble(rng)
    low, high = (45, 99) if slot == "hot" else (1, 99)
    number = rng.choice([n for n in range(low, high + 1) if n not in HELD_NUMBERS])
    return written(number, rng)


def fill(frame: Frame, values: Mapping[str, Value], split: str, rng: random.Random) -> str:
    """Return the frame's template with every slot filled, plural verbs agreed and determiners varied."""
    plural = False

    def surface(match: re.Match[str]) -> str:
        nonlocal plural
        slot = match[1]
        kind = slot.rstrip("01")
        if kind not in values:
            return _loose(slot, split, rng)
        value = values[kind]
        if isinstance(value, int):
            return say(slot, value, rng)
        if kind not in WORDS:  # an answer that was made up by the follow-up itself
            return value
        text = _word(kind, value, frame.template, rng)
        plural |= kind in ("device", "cover", "dimmable") and text.endswith("s")
        return text

    text = re.sub(r"\{(\w+)\}", surface, frame.template)
    if plural and not frame.template.startswith("what"):
        text = re.sub(r"\bis\b", "are", text, count=1)
    return re.sub(r"\bthe\b", lambda _: rng.choices(("the", "my", "our", ""), (80, 7, 3, 10))[0], text)


def dress(text: str, frame: Frame, rng: random.Random) -> str:
    """Return the text with fillers before and after, contractions; almost half stay plain."""
    if rng.random() < 0.5:
        for full, short in _EXPANDED.items():
            text = re.sub(rf"\b{full}\b", short, text)
    if rng.random() < 0.45:
        return text
    if rng.random() < 0.4:
        text = f"{text}{rng.choice((' ', ' ', ', '))}{rng.choice(CLOSERS)}"
    if frame.imperative and rng.random() < 0.5:
        text = f"{rng.choice(ASKS)} {text}"
    if rng.random() < 0.4:
        text = f"{rng.choice(OPENERS)}{rng.choice((' ', ' ', ', '))}{text}"
    if rng.random() < 0.06:
        words = text.split(" ")
        words.insert(rng.randint(1, len(words)), rng.choice(("um", "uh", "erm", "please")))
        text = " ".join(words)
    return text


@functools.cache
def vocabulary() -> frozenset[str]:
    """Return every word that some template or slot uses; no typing error may produce one of them."""
    texts = [f.template for group in frames().values() for f in group]
    texts += [form for values in WORDS.values() for forms in values.values() for form in forms]
    return frozenset(word for text in texts for word in re.findall(r"[a-z]+", text))


def _mistyped(word: str, rng: random.Random) -> str:
    """Return a word with one slip of the fingers behind its first letter: swap, drop, double or neighbouring key."""
    i = rng.randint(1, len(word) - 1)
    match rng.randrange(4):
        case 0 if i < len(word) - 1:
            return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        case 1:
            return word[:i] + word[i + 1 :]
        case 2:
            return word[:i] + word[i] + word[i:]
        case _:
            return word[:i] + rng.choice(_NEIGHBOURS[word[i]]) + word[i + 1 :]


def mistype(text: str, rng: random.Random) -> str:
    """Return the text with one or two slips in words of four letters or more that are no number."""
    for _ in range(rng.choice((1, 1, 2))):
        spots = [m for m in re.finditer(r"(?<![\w'])[a-z]{4,}(?![\w'])", text) if m[0] not in _UNTOUCHED]
        if not spots:
            break
        spot = rng.choice(spots)
        wrong = _mistyped(spot[0], rng)
        if wrong not in vocabulary():
            text = text[: spot.start()] + wrong + text[spot.end() :]
    return text


def finish(text: str, rng: random.Random, *, question: bool) -> str:
    """Return the text tidied, in some capitals, with some end punctuation."""
    text = re.sub(r"\s+", " ", text).strip()
    style = rng.random()
    if style < 0.42:
        text = re.sub(r"\bi\b", "I", text[:1].upper() + text[1:])
    elif style < 0.43:
        text = text.upper()
    elif style < 0.44:
        text = text.title()
    ends = ("?", "?", "", "", ".", "??") if question else (".", ".", "!", "", "", "", "", "...", "!!", "?")
    return text + rng.choice(ends)
