"""A byte-level BPE vocabulary from tokenizer.json (https://github.com/huggingface/tokenizers)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..runtime.errors import BadModel, UnsupportedModel
from .fields import Fields, shortened
from .pretokenizers import recognise
from .vocabulary import Kind, Special, Vocabulary, find_special

if TYPE_CHECKING:
    from .source import Source

FILE = "tokenizer.json"


def read_bpe(source: Source, pre: str | None) -> tuple[Vocabulary, Special]:
    """Read tokenizer.json.  ``pre`` overrides the recognition of how it cuts words.

    Raises BadModel if it is damaged and UnsupportedModel if it is anything but byte-level BPE.
    """
    tokenizer = source.optional(FILE)
    model = tokenizer.table("model")
    _check_kind(model)
    vocabulary = Vocabulary.of_size("gpt2", pre or recognise(tokenizer), source.config.integer("vocab_size"))
    texts = model.table("vocab").values
    for text, token in texts.items():
        if type(token) is not int:
            raise BadModel(f"{FILE}: the id of {text!r} is {shortened(token)}")
        vocabulary.place(token, text, Kind.NORMAL)
    vocabulary.merges = [_merge(pair, texts) for pair in model.items("merges")]
    for entry in tokenizer.items("added_tokens"):
        added = Fields(f"{FILE}: added token", entry if isinstance(entry, dict) else {})
        vocabulary.place_added(added.get("id"), added)
    if not vocabulary.merges:
        raise BadModel(f"{FILE} has no merges")
    vocabulary.check()
    add_bos = _starts_with_special(tokenizer.table("post_processor").values)
    return vocabulary, find_special(source, vocabulary, {}, add_bos=add_bos)


def _check_kind(model: Fields) -> None:
    if model.get("byte_fallback"):
        raise UnsupportedModel(f"{FILE} is SentencePiece rewritten: put the original tokenizer.model beside it")
    if model.get("type") != "BPE":
        raise UnsupportedModel(f"{FILE} is of type {shortened(model.get('type'))}: only byte-level BPE converts")
    if any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix")):
        raise UnsupportedModel(f"{FILE} marks parts of words, which llama.cpp's BPE does not know")


def _merge(pair: Any, texts: dict[str, Any]) -> str:
    """Return a merge as GGUF writes it, ``left right``; tokenizer.json has that string or, since 0.20, a pair."""
    match pair.split(" ") if isinstance(pair, str) else pair:
        case [str(left), str(right)] if left in texts and right in texts and left + right in texts:
            return f"{left} {right}"
    raise BadModel(f"{FILE}: the merge {shortened(pair)} is not of two tokens that make a third")


def _starts_with_special(step: dict[str, Any]) -> bool:
    """Say whether the post-processor puts a special token before a text: that is what add_bos means."""
    match step:
        case {"type": "Sequence", "processors": list(parts)}:
            return any(_starts_with_special(part) for part in parts if isinstance(part, dict))
        case {"type": "TemplateProcessing", "single": [{"SpecialToken": _}, *_]}:
            return True
    return False
