"""Random checkpoints in the shapes of real models, in the Hugging Face layout.

Speed does not depend on the values of weights, so random ones measure it; these need no download.  Each has a
byte-level BPE tokenizer of exactly its vocabulary size (cut as Qwen2's) and the ChatML template.  numpy and the
standard library write everything::

    python -m arenite.benchmarks.shapes 0.5B /tmp/half
    python -m arenite.benchmarks.shapes 0.5B /tmp/half --type q4_0 --out /tmp/half.gguf
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""The last three ids of every vocabulary; the last one ends an answer."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_RING = 4_194_301
"""Random values that are drawn once and then repeated: a prime, so that no two rows of a matrix come out equal."""

_LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # by frequency in English
_SPACE = "\u0120"  # a space, as byte-level BPE writes it


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama-architecture model; ``context`` in tokens.  Embedding and output matrix are tied."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    context: int
    rope_theta: float = 10000.0

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor by its name in the checkpoint."""
        head = self.hidden // self.heads
        one = {
            "input_layernorm": (self.hidden,), "post_attention_layernorm": (self.hidden,),
            "self_attn.q_proj": (self.heads * head, self.hidden),
            "self_attn.k_proj": (self.kv_heads * head, self.hidden),
            "self_attn.v_proj": (self.kv_heads * head, self.hidden),
            "self_attn.o_proj": (self.hidden, self.heads * head),
            "mlp.gate_proj": (self.ffn, self.hidden), "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
        }
        layers = {f"model.layers.{i}.{name}.weight": shape for i in range(self.layers) for name, shape in one.items()}
        return {"model.embed_tokens.weight": (self.vocab, self.hidden), **layers, "model.norm.weight": (self.hidden,)}

    def parameters(self) -> int:
        """Return the number of weights."""
        return sum(math.prod(shape) for shape in self.tensors().values())


SHAPES = {
    "tiny": Shape(hidden=64, layers=2, heads=4, kv_heads=2, ffn=128, vocab=512, context=256),
    "260k": Shape(hidden=64, layers=5, heads=8, kv_heads=4, ffn=172, vocab=512, context=512),  # stories260K
    "15M": Shape(hidden=288, layers=6, heads=6, kv_heads=6, ffn=768, vocab=32000, context=1024),  # stories15M
    "0.5B": Shape(  # Qwen2-0.5B without its biases
        hidden=896, layers=24, heads=14, kv_heads=2, ffn=4864, vocab=151936, context=32768, rope_theta=1e6,
    ),
    "1B": Shape(  # Llama-3.2-1B
        hidden=2048, layers=16, heads=32, kv_heads=8, ffn=8192, vocab=128256, context=32768, rope_theta=5e5,
    ),
    "8B": Shape(  # Llama-3.1-8B
        hidden=4096, layers=32, heads=32, kv_heads=8, ffn=14336, vocab=128256, context=32768, rope_theta=5e5,
    ),
}


def make(
    shape: str | Shape, folder: str | Path, seed: int = 0, dtype: str = "bf16",
    progress: Callable[[int], None] = lambda _: None,
) -> Path:
    """Write a random checkpoint of a shape (a name of SHAPES, or sizes of your own) into ``folder`` and return it.

    ``dtype``: bf16, f16 or f32.  Weights are normal with a deviation of 0.02, norms are 1.  The same arguments give the
    same bytes.  ``progress`` hears the bytes of the weights as they are written.  Memory: about 50 MiB.
    """
    sizes = SHAPES[shape] if isinstance(shape, str) else shape
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    special = dict(zip(SPECIAL, range(sizes.vocab - len(SPECIAL), sizes.vocab), strict=True))
    documents = {
        "config.json": _config(sizes, special, dtype),
        "generation_config.json": {"eos_token_id": [special["<|im_end|>"], special["<|endoftext|>"]]},
        "tokenizer.json": tokenizer(sizes.vocab),
        "tokenizer_config.json": {
            "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML,
            "model_max_length": sizes.context, "tokenizer_class": "PreTrainedTokenizerFast",
        },
    }
    for name, document in documents.items():
        (path / name).write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    _write_weights(path / "model.safetensors", sizes, seed, dtype, progress)
    return path


def _config(sizes: Shape, special: dict[str, int], dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": sizes.hidden, "intermediate_size": sizes.ffn, "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads, "vocab_size": sizes.vocab,
        "max_position_embeddings": sizes.context, "rms_norm_eps": 1e-5, "rope_theta": sizes.rope_theta,
        "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": special["<|endoftext|>"], "eos_token_id": special["<|im_end|>"],
        "torch_dtype": {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[dtype],
    }


def _write_weights(path: Path, sizes: Shape, seed: int, dtype: str, progress: Callable[[int], None]) -> None:
    """Write the safetensors file as a stream: 8 bytes length, JSON header, then the values in the header's order."""
    width = 4 if dtype == "f32" else 2
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "made": json.dumps({**asdict(sizes), "seed": seed})}}
    at = 0
    for name, shape in sizes.tensors().items():
        end = at + math.prod(shape) * width
        header[name] = {"dtype": dtype.upper(), "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    values = _Stream(np.random.default_rng(seed).standard_normal(_RING, np.float32) * np.float32(0.02), dtype)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in sizes.tensors().values():
            for piece in values.ones(shape[0]) if len(shape) == 1 else values.take(math.prod(shape)):
                file.write(piece.data)
                progress(piece.nbytes)


class _Stream:
    """An endless stream of random values that repeats after _RING of them."""

    def __init__(self, values: NDArray[np.float32], dtype: str) -> None:
        self._values, self._dtype, self._at = _encode(values, dtype), dtype, 0

    def ones(self, count: int) -> Iterator[NDArray[Any]]:
        yield _encode(np.ones(count, np.float32), self._dtype)

    def take(self, count: int) -> Iterator[NDArray[Any]]:
        while count:
            piece = self._values[self._at : self._at + count]
            yield piece
            count -= len(piece)
            self._at = (self._at + len(piece)) % _RING


def _encode(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    if dtype == "bf16":  # the upper half of a float32, rounded
        return ((values.view("<u4") + np.uint32(0x8000)) >> np.uint32(16)).astype("<u2")
    return values.astype({"f16": "<f2", "f32": "<f4"}[dtype])


def tokenizer(vocab: int) -> dict[str, Any]:
    """Return a tokenizer.json of exactly ``vocab`` tokens: 256 bytes, merges of letters, three special tokens.

    Words come apart into pieces of up to four letters, so English text takes about as many tokens as with a real one.
    """
    merges = list(itertools.islice(_merges(), vocab - 256 - len(SPECIAL)))
    texts = [*_byte_texts(), *(left + right for left, right in merges)]
    added = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": len(texts) + i, "content": text, **added} for i, text in enumerate(SPECIAL)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": QWEN2_REGEX}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {text: token for token, text in enumerate(texts)},
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def _byte_texts() -> list[str]:
    """Return how byte-level BPE writes the bytes 0 to 255 (``bytes_to_unicode`` of GPT-2): as visible characters."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(256)
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]


def _merges() -> Iterator[tuple[str, str]]:
    """Yield merges in order of rank, each of two texts that earlier ones made, until there are none left."""
    letters = list(itertools.product(_LETTERS, _LETTERS))
    pairs = [a + b for a, b in letters]
    yield from ((_SPACE, letter) for letter in _LETTERS)
    yield from letters
    yield from ((_SPACE + a, b) for a, b in letters)
    yield from ((pair, letter) for letter in _LETTERS for pair in pairs)
    yield from ((_SPACE + letter, pair) for letter in _LETTERS for pair in pairs)
    yield from ((left, right) for right in pairs for left in pairs)


def main() -> None:
    """Make a checkpoint and, if asked to, convert it."""
    parser = argparse.ArgumentParser(prog="python -m arenite.benchmarks.shapes", description=make.__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--type", default="q4_0", help="type of the GGUF file (default q4_0)")
    parser.add_argument("--out", type=Path, help="GGUF file to convert to; none is made without this")
    asked = parser.parse_args()
    print(make(asked.shape, asked.folder, asked.seed))
    if asked.out:
        from ..quantize import convert  # noqa: PLC0415  the checkpoint alone needs numpy only

        done = convert(asked.folder, asked.out, type=asked.type, force=True)
        print(f"{done.path}: {done.bytes:,} bytes in {done.seconds:.1f} s")


if __name__ == "__main__":
    main()
