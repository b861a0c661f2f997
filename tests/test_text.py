from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from arenite.runtime.text import TextAssembler

TEXT = st.text(max_size=40)


def assemble(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[list[str], TextAssembler]:
    text = TextAssembler(stops)
    shown = [text.push(piece) for piece in pieces]
    return [*shown, text.finish()], text


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    return [raw[a:b] for a, b in itertools.pairwise(edges)]


@given(TEXT, st.lists(st.integers(0, 200)))
def test_any_cut_of_the_bytes_gives_the_same_text_and_never_half_a_character(text: str, places: list[int]) -> None:
    shown, _ = assemble(cut(text.encode(), places))
    assert "".join(shown) == text
    whole = text.encode()
    for piece in shown:  # each piece ends where a character ends
        assert whole.startswith(piece.encode())
        whole = whole[len(piece.encode()):]


@given(st.binary(max_size=40), st.lists(st.integers(0, 200)))
def test_bytes_that_are_not_utf8_become_replacement_characters(raw: bytes, places: list[int]) -> None:
    shown, _ = assemble(cut(raw, places))
    assert "".join(shown) == raw.decode("utf-8", "replace")


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
       st.lists(st.integers(0, 200)))
def test_text_ends_before_the_first_stop_and_nothing_of_a_stop_is_shown(
    text: str, stops: list[str], places: list[int]
) -> None:
    pieces = cut(text.encode(), places)
    assembler = TextAssembler(tuple(stops))
    shown = ""
    for piece in pieces:
        shown += assembler.push(piece)
        if assembler.stopped:
            break
        assert not any(stop in shown for stop in stops)
    shown += assembler.finish()
    seen = next((text[:end] for end in range(len(text) + 1) if any(stop in text[:end] for stop in stops)), text)
    assert assembler.stopped == any(stop in text for stop in stops)
    if assembler.stopped:
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
        assert any(text[len(shown):].startswith(stop) for stop in stops)
        assert len(shown) <= len(seen)
    else:
        assert shown == text


def test_a_possible_stop_is_held_back_and_given_free_when_it_is_none() -> None:
    assembler = TextAssembler(("STOP",))
    assert assembler.push(b"go ST") == "go "
    assert assembler.push(b"ART") == "START"
    assert assembler.push(b" S") == " "
    assert assembler.finish() == "S"


def test_half_a_character_waits_for_its_other_half() -> None:
    assembler = TextAssembler()
    assert assembler.push("é".encode()[:1]) == ""
    assert assembler.push("é".encode()[1:]) == "é"
