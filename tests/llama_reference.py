"""Two opinions on a Llama model: a forward pass in numpy from the checkpoint, and libllama on a GGUF file."""

from __future__ import annotations

import ctypes
import json
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def numpy_logits(folder: Path, tokens: list[int]) -> Floats:
    """Return logits ``[tokens, vocab]`` of a float32 checkpoint, by the steps of transformers' modeling_llama."""
    config = json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    weights: dict[str, Floats] = {name: value.astype(np.float64) for name, value in stored.items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    cos, sin = _rotation(config, len(tokens))
    mask = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)

    def linear(x: Floats, name: str) -> Floats:
        y: Floats = x @ weights[name + ".weight"].T
        return y + weights[name + ".bias"] if name + ".bias" in weights else y

    def norm(x: Floats, name: str) -> Floats:
        y: Floats = x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"])
        return y * weights[name + ".weight"]

    def split(x: Floats, count: int) -> Floats:
        return x.reshape(len(tokens), count, -1).swapaxes(0, 1)

    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        y = norm(x, at + "input_layernorm")
        q = _rotate(split(linear(y, at + "self_attn.q_proj"), heads), cos, sin)
        k = _rotate(split(linear(y, at + "self_attn.k_proj"), kv_heads), cos, sin).repeat(heads // kv_heads, 0)
        v = split(linear(y, at + "self_attn.v_proj"), kv_heads).repeat(heads // kv_heads, 0)
        scores = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]) + mask)
        attended = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + linear(attended.swapaxes(0, 1).reshape(len(tokens), -1), at + "self_attn.o_proj")
        y = norm(x, at + "post_attention_layernorm")
        gate = linear(y, at + "mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, at + "mlp.up_proj"), at + "mlp.down_proj")
    head = "model.embed_tokens" if config.get("tie_word_embeddings") else "lm_head"
    return linear(norm(x, "model.norm"), head)


def _rotation(config: dict[str, Any], length: int) -> tuple[Floats, Floats]:
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    frequencies = [config["rope_theta"] ** (-i / size) for i in range(0, size, 2)]
    if scaling := config.get("rope_scaling"):
        frequencies = [_llama3(frequency, scaling) for frequency in frequencies]
    angles = np.outer(np.arange(length), frequencies)
    angles = np.concatenate([angles, angles], -1)
    return np.cos(angles), np.sin(angles)


def _llama3(frequency: float, scaling: dict[str, float]) -> float:
    wave = 2 * math.pi / frequency
    context, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    if wave < context / high:
        return frequency
    if wave > context / low:
        return frequency / factor
    smooth = (context / wave - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def _rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    first, second = np.split(x, 2, -1)
    return x * cos + np.concatenate([-second, first], -1) * sin


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _silent(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    """Swallow what libllama says."""


class Libllama:
    """A GGUF file in libllama: one thread, keys and values in float32, no flash attention."""

    def __init__(self, model: Any) -> None:
        self._model, self._vocab = model, llama_cpp.llama_model_get_vocab(model)

    def tokens(self, text: str, *, add_special: bool = False) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        out = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), out, room, add_special, True)
        assert count >= 0
        return list(out[:count])

    def text(self, tokens: list[int]) -> str:
        room = ctypes.create_string_buffer(256)
        found = b""
        for token in tokens:
            count = llama_cpp.llama_token_to_piece(self._vocab, token, room, 256, 0, True)
            found += room.raw[:count]
        return found.decode()

    def ends(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def metadata(self, key: str) -> str:
        room = ctypes.create_string_buffer(4096)
        count = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), room, len(room))
        return room.raw[: max(0, count)].decode()

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """Return logits ``[tokens, vocab]`` of one batch."""
        with self._context() as context:
            return self._decode(context, tokens, 0)

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        """Return the ``count`` most likely tokens after ``tokens``."""
        found: list[int] = []
        with self._context() as context:
            fed, at = tokens, 0
            while len(found) < count:
                found.append(int(self._decode(context, fed, at)[-1].argmax()))
                fed, at = found[-1:], at + len(fed)
        return found

    @contextmanager
    def _context(self) -> Iterator[Any]:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 256
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = llama_cpp.llama_init_from_model(self._model, params)
        assert context
        try:
            yield context
        finally:
            llama_cpp.llama_free(context)

    def _decode(self, context: Any, tokens: list[int], start: int) -> NDArray[np.float32]:
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for at, token in enumerate(tokens):
            batch.token[at], batch.pos[at], batch.logits[at] = token, start + at, 1
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
        try:
            assert llama_cpp.llama_decode(context, batch) == 0
            width = llama_cpp.llama_vocab_n_tokens(self._vocab)
            return np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(tokens), width)).copy()
        finally:
            llama_cpp.llama_batch_free(batch)


@contextmanager
def libllama(path: Path, *, vocab_only: bool = False) -> Iterator[Libllama]:
    """Load a GGUF file into libllama."""
    llama_cpp.llama_log_set(_silent, None)
    params = llama_cpp.llama_model_default_params()
    params.vocab_only, params.n_gpu_layers = vocab_only, 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model
    try:
        yield Libllama(model)
    finally:
        llama_cpp.llama_model_free(model)
