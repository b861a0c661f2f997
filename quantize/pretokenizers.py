"""How a byte-level BPE tokenizer cuts text into words, and what llama.cpp calls that.

llama.cpp implements each cut by hand and knows it by a name (``tokenizer.ggml.pre``, ``llama-vocab.cpp``).  Its own
conversion recognises it by a hash over the ids of a test text, so every new vocabulary needs a new hash; here it is the
*definition* in tokenizer.json that is looked up, so every vocabulary trained with a known cut works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..runtime.errors import UnsupportedModel

if TYPE_CHECKING:
    from .fields import Fields

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# (the steps as _steps() writes them, ignore_merges) -> llama.cpp's name.  ignore_merges belongs to the key, because
# llama.cpp derives it from the name.
KNOWN: dict[tuple[tuple[str, ...], bool], str] = {
    (("split " + QWEN2, "bytes"), False): "qwen2",
    (("split " + QWEN35, "bytes"), False): "qwen35",
    (("split " + LLAMA3, "bytes"), True): "llama-bpe",
    (("gpt2 words",), False): "gpt-2",
    (("digits", "gpt2 words"), False): "smollm",
}


def recognise(tokenizer: Fields) -> str:
    """Return llama.cpp's name of the cut that a tokenizer.json defines.

    The normalizer may be absent or NFC: llama.cpp has none, which makes no difference to composed text.
    Raises UnsupportedModel for everything that is not in the table.
    """
    normalizer = tokenizer.table("normalizer")
    steps = tuple(_steps(tokenizer.table("pre_tokenizer").values))
    name = KNOWN.get((steps, tokenizer.table("model").flag("ignore_merges", default=False)))
    if name is None or normalizer.get("type") not in (None, "NFC"):
        raise UnsupportedModel(
            f"tokenizer.json: its way to cut words is none that this version recognises ({', '.join(KNOWN.values())}): "
            "if llama.cpp knows it under another name, say --pre NAME"
        )
    return name


def _steps(step: dict[str, Any]) -> list[str]:
    """Describe a pre_tokenizer as a list of steps; what is not understood stays distinct from everything known."""
    match step:
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            return [name for part in parts if isinstance(part, dict) for name in _steps(part)]
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated"} if not step.get("invert"):
            return ["split " + regex]
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Removed", "invert": True}:
            return ["split " + regex]
        case {"type": "ByteLevel"} if not step.get("add_prefix_space", True):
            return ["gpt2 words" if step.get("use_regex", True) else "bytes"]
        case {"type": "Digits", "individual_digits": True}:
            return ["digits"]
    return [f"unknown {step}"]
