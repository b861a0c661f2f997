"""The vocabulary of a checkpoint as GGUF stores it: tokens, their types, the special ones, the chat template.

Keys: GGUF specification, "Tokenizer"; their meaning: ``llama_vocab::impl::load`` in llama.cpp.  Two things there shape
this file: token texts must be distinct (the library aborts the process otherwise), and a gpt2 vocabulary without an
end-of-sequence id silently gets id 11.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from ..runtime.errors import BadModel
from .fields import Fields, shortened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .architectures import Value
    from .source import Source

END_IDS = "arenite.eos_token_ids"
"""Our own key: every id that ends an answer, as the text of a JSON list (libllama hands out texts, not lists).

GGUF itself has room for three.
"""

_KEYS = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unk": "unknown", "pad": "padding"}
_KNOWN_ENDS = frozenset({  # texts at which libllama stops by itself
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "[EOT]",
    "<|end_of_text|>", "<eos>",
})
_CONTROL_TEXTS = ("<pad>", "<mask>")


class Kind(IntEnum):
    """``tokenizer.ggml.token_type``; SentencePiece numbers its pieces the same way."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Special:
    """Special ids by role (``bos``, ``eos``, ...), every id that ends an answer, and whether bos and eos are added."""

    ids: Mapping[str, int]
    ends: tuple[int, ...]
    add_bos: bool
    add_eos: bool


@dataclass(slots=True)
class Vocabulary:
    """Tokens by id with their kinds; ``scores`` for SentencePiece, ``merges`` for BPE, the other one stays empty."""

    model: str
    pre: str
    tokens: list[str]
    kinds: list[Kind]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    add_space_prefix: bool | None = None
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of_size(cls, model: str, pre: str, size: int) -> Vocabulary:
        """Return ``size`` tokens that are all holes: text ``[PADi]``, kind UNUSED."""
        return cls(model, pre, [f"[PAD{token}]" for token in range(size)], [Kind.UNUSED] * size)

    def place(self, token: int, text: str, kind: Kind, score: float = 0.0) -> None:
        """Put a token at its id.  Raises BadModel if the id lies outside of the embedding."""
        if not 0 <= token < len(self.tokens):
            raise BadModel(f"the tokenizer gives {text!r} the id {token}; vocab_size is {len(self.tokens)}")
        self.tokens[token], self.kinds[token] = text, kind
        if self.scores:
            self.scores[token] = score

    def place_added(self, token: Any, entry: Fields) -> None:
        """Put an added token at its id; one that lies outside of the embedding can not be used and is warned about."""
        text = entry.get("content")
        if not isinstance(text, str) or type(token) is not int or token < 0:
            raise BadModel(f"{entry.name} is {shortened(entry.values)}, not an added token")
        if token >= len(self.tokens):
            self.warnings.append(f"added token {text!r} has the id {token}, outside of the embedding: left out")
            return
        special = entry.flag("special", default=False) or _looks_special(text)
        if not special:  # llama.cpp matches these in the raw text
            text = text.replace("\u2581", " ")
        self.place(token, text, Kind.CONTROL if special else Kind.USER_DEFINED, -1000.0)

    def check(self) -> None:
        """Raise BadModel unless all token texts are distinct."""
        if len(set(self.tokens)) != len(self.tokens):
            seen: set[str] = set()
            double = next(text for text in self.tokens if text in seen or seen.add(text))  # type: ignore[func-returns-value]
            raise BadModel(f"the tokenizer has two tokens with the text {double!r}")

    def metadata(self, special: Special, template: str | None) -> dict[str, Value]:
        """Return the GGUF keys and values."""
        found: dict[str, Value] = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": [int(kind) for kind in self.kinds],
            "tokenizer.ggml.scores": self.scores,
            "tokenizer.ggml.merges": self.merges,
            "tokenizer.ggml.add_bos_token": special.add_bos,
            "tokenizer.ggml.add_eos_token": special.add_eos,
            END_IDS: json.dumps(special.ends),
        }
        found |= {f"tokenizer.ggml.{_KEYS[role]}_token_id": token for role, token in special.ids.items()}
        if self.add_space_prefix is not None:
            found["tokenizer.ggml.add_space_prefix"] = self.add_space_prefix
        if template:
            found["tokenizer.chat_template"] = template
        return found


def _looks_special(text: str) -> bool:
    """Say whether a token that is not marked as special is one all the same (as llama.cpp's conversion decides)."""
    return text in _CONTROL_TEXTS or (text.startswith(("<|", "<\uff5c")) and text.endswith(("|>", "\uff5c>")))


def find_special(source: Source, vocabulary: Vocabulary, defaults: Mapping[str, int], *, add_bos: bool) -> Special:
    """Return the special ids.

    A text in tokenizer_config.json comes first, then the ids of generation_config.json and config.json, then
    ``defaults`` and ``add_bos``, which the tokenizer itself says.  Raises BadModel if nothing ends an answer.
    """
    tokenizer = source.optional("tokenizer_config.json")
    by_text = {text: token for token, text in enumerate(vocabulary.tokens)}
    configs = (source.optional("generation_config.json"), source.config)
    found: dict[str, list[int]] = {}
    for role in ("bos", "eos", "unk", "pad"):
        named = by_text.get(_text(tokenizer.get(f"{role}_token")))
        listed = [token for config in configs for token in _ids(config, f"{role}_token_id", len(by_text))]
        said = [token for token in (named, *listed, defaults.get(role)) if token is not None]
        found[role] = list(dict.fromkeys(said))
    ends = found["eos"]
    if not ends:
        raise BadModel("no token ends a text: set eos_token_id in config.json or eos_token in tokenizer_config.json")
    ids = {role: tokens[0] for role, tokens in found.items() if tokens} | _further_ends(ends, vocabulary)
    return Special(
        ids, tuple(ends),
        add_bos=tokenizer.flag("add_bos_token", default=add_bos) and "bos" in ids,
        add_eos=tokenizer.flag("add_eos_token", default=False),
    )


def _text(value: Any) -> str:
    """Return the text of a special token, which is a string or an object with its content; empty for none."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _ids(config: Fields, key: str, size: int) -> list[int]:
    """Return one id or a list of ids as a list, without those (-1, for one) that name no token."""
    value = config.get(key)
    values = value if isinstance(value, list) else [value]
    return [token for token in values if type(token) is int and 0 <= token < size]


def _further_ends(ends: list[int], vocabulary: Vocabulary) -> dict[str, int]:
    """Give ends that libllama does not know by their text the two other keys of GGUF: end of turn, end of message."""
    rest = [token for token in ends[1:] if vocabulary.tokens[token] not in _KNOWN_ENDS]
    vocabulary.warnings += [f"llama.cpp does not stop at {vocabulary.tokens[token]!r}" for token in rest[2:]]
    return dict(zip(("eot", "eom"), rest, strict=False))


def chat_template(source: Source) -> str | None:
    """Return the Jinja chat template: chat_template.jinja, else the (default) one of tokenizer_config.json."""
    if (text := source.text("chat_template.jinja")) is not None:
        return text
    value = source.optional("tokenizer_config.json").get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
