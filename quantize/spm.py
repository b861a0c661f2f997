"""A SentencePiece vocabulary from tokenizer.model.

The file is one Protocol Buffers message (``sentencepiece_model.proto``); of it we need::

    ModelProto       1 pieces (repeated)          2 trainer_spec        3 normalizer_spec
    SentencePiece    1 piece, string              2 score, float        3 type, numbered as in GGUF
    TrainerSpec      3 model_type: 1 Unigram, 2 BPE      40 unk_id   41 bos_id   42 eos_id   43 pad_id
    NormalizerSpec   2 precompiled_charsmap       3 add_dummy_prefix    4 remove_extra_whitespaces

which takes fewer lines to read than a dependency takes to explain.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ..runtime.errors import BadModel, UnsupportedModel
from .fields import Fields
from .vocabulary import Kind, Special, Vocabulary, find_special

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .source import Source

FILE = "tokenizer.model"
BPE = 2
_ROLES = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}  # field of TrainerSpec, its default

Message = dict[int, list[int | bytes]]


def read_spm(source: Source) -> tuple[Vocabulary, Special]:
    """Read tokenizer.model with the added tokens of added_tokens.json and tokenizer_config.json.

    Raises BadModel if it is damaged; UnsupportedModel if it is not BPE, or has no byte pieces (libllama would abort at
    the first character that it does not know).
    """
    try:
        model = _message((source.folder / FILE).read_bytes())
        trainer, normalizer = (_message(_bytes(model, number, b"")) for number in (2, 3))
        pieces = [_piece(_message(piece)) for piece in model.get(1, []) if isinstance(piece, bytes)]
    except (OSError, ValueError, struct.error) as error:
        raise BadModel(f"{FILE} is not a SentencePiece model", str(error)) from None
    if _integer(trainer, 3, 1) != BPE:
        raise UnsupportedModel(f"{FILE} is not a BPE model: Unigram, word and character models can not be converted")
    if sum(kind is Kind.BYTE for _, _, kind in pieces) != 256:
        raise UnsupportedModel(f"{FILE} has no byte pieces: llama.cpp needs them for characters that it does not know")
    vocabulary = _place(source, pieces)
    tokenizer = source.optional("tokenizer_config.json")
    vocabulary.add_space_prefix = tokenizer.flag("add_prefix_space", default=bool(_integer(normalizer, 3, 1)))
    if _bytes(normalizer, 2, b""):
        vocabulary.warnings.append(f"{FILE} normalises text (Unicode forms), llama.cpp does not")
    if _integer(normalizer, 4, 1):
        vocabulary.warnings.append(f"{FILE} removes surplus spaces, llama.cpp does not")
    _place_added(source, vocabulary, tokenizer)
    vocabulary.check()
    ids = {role: _integer(trainer, number, default) for role, (number, default) in _ROLES.items()}
    known = {role: token for role, token in ids.items() if 0 <= token < len(vocabulary.tokens)}
    return vocabulary, find_special(source, vocabulary, known, add_bos=True)


def _place(source: Source, pieces: list[tuple[str, float, Kind]]) -> Vocabulary:
    size = source.config.integer("vocab_size")
    vocabulary = Vocabulary.of_size("llama", "default", size)
    vocabulary.scores = [-10000.0] * size
    for token, (text, score, kind) in enumerate(pieces):
        vocabulary.place(token, text.replace("\u2581", " ") if kind is Kind.USER_DEFINED else text, kind, score)
    return vocabulary


def _place_added(source: Source, vocabulary: Vocabulary, tokenizer: Fields) -> None:
    for text, token in source.optional("added_tokens.json").values.items():
        vocabulary.place_added(token, Fields("added_tokens.json", {"content": text}))
    added = tokenizer.table("added_tokens_decoder")
    for token in added.values:
        vocabulary.place_added(int(token) if token.isdecimal() else None, added.table(token))


def _piece(message: Message) -> tuple[str, float, Kind]:
    (score,) = struct.unpack("<f", _bytes(message, 2, bytes(4)))
    return _bytes(message, 1, b"").decode("utf-8"), score, Kind(_integer(message, 3, Kind.NORMAL))


def _bytes(message: Message, number: int, default: bytes) -> bytes:
    value = message.get(number, [default])[-1]
    if not isinstance(value, bytes):
        raise ValueError(f"field {number} has the wrong type")  # noqa: TRY004  one kind of error for a damaged file
    return value


def _integer(message: Message, number: int, default: int) -> int:
    value = message.get(number, [default])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {number} has the wrong type")  # noqa: TRY004
    return value - (1 << 64) if value >> 63 == 1 else value


def _message(data: bytes) -> Message:
    """Return the fields of a message by number, in file order (the Protocol Buffers wire format)."""
    message: Message = {}
    for number, value in _fields(data):
        message.setdefault(number, []).append(value)
    return message


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        width = {1: 8, 5: 4}.get(key & 7)
        if key & 7 == 2:
            width, at = _varint(data, at)
        if width is None or at + width > len(data):
            raise ValueError(f"no field at byte {at}")
        yield key >> 3, data[at : at + width]
        at += width


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError(f"no number at byte {at}")
