"""libllama as small Python functions: parameters, opening, metadata, vocabulary.  No policy lives here."""

from __future__ import annotations

import ctypes as C  # noqa: N812 - as in the ggml module
import json
import os
import threading
from functools import cache
from typing import TYPE_CHECKING, Any

from llguidance import LLTokenizer

from ..errors import BadModel, EngineClosed, UnsupportedModel
from . import ggml
from .base import ModelInfo

if TYPE_CHECKING:
    from ..config import ModelOptions

L = ggml.L
ENDS_KEY = "arenite.eos_token_ids"
LONGEST_PIECE = 2048  # bytes that llguidance takes of one token; a longer one it never proposes
FLASH_TILE = 64  # GGML_FA_TILE_Q: flash attention on the CPU is computed in tiles of so many rows, not below
DEFAULT_CONTEXT = 512  # for a file that does not say how long its model was trained


def model_parameters(options: ModelOptions, *, no_alloc: bool = False) -> Any:
    """Return ``llama_model_params`` of settled options; ``no_alloc``: sizes and checks only, no weights."""
    parameters = L.llama_model_default_params()
    parameters.n_gpu_layers = options.layers
    # an empty list of devices is not the default, which would put host buffers of CUDA beside the arena
    parameters.devices = C.cast(ggml.device_handles(options.gpus if options.layers else ()), C.c_void_p)
    parameters.split_mode = L.LLAMA_SPLIT_MODE_LAYER
    if options.gpu_split:  # else libllama splits by what is free when it loads, which is not what was planned
        parameters.tensor_split = _split(options.gpu_split)
    mapped = options.weights == "mapped" and not no_alloc
    parameters.load_mode = L.LLAMA_LOAD_MODE_MMAP if mapped else L.LLAMA_LOAD_MODE_NONE
    parameters.no_alloc = no_alloc
    return parameters


@cache
def _split(shares: tuple[float, ...]) -> Any:
    """Return an array as libllama reads it: one number per device that there may be; it lives on."""
    size = max(int(L.llama_max_devices()), len(shares))
    return (C.c_float * size)(*shares)


def context_parameters(options: ModelOptions, threads: int) -> Any:
    """Return ``llama_context_params``: one KV pool for all (one per stream in deterministic mode), outputs for each."""
    parameters = L.llama_context_default_params()
    parameters.n_ctx = options.context
    parameters.kv_unified = not options.deterministic  # where a sequence's cells lie shows in the last bits
    # one spare, to save and restore a part of a sequence by
    parameters.n_seq_max = options.slots + int(parameters.kv_unified)
    # libllama reserves its graph for at least a token per sequence, and plans for less than it then takes otherwise
    parameters.n_batch = parameters.n_ubatch = max(options.batch, parameters.n_seq_max)
    parameters.n_outputs_max = parameters.n_seq_max  # libllama makes room for so many whatever is asked for
    parameters.n_threads = parameters.n_threads_batch = threads
    name = f"GGML_TYPE_{options.kv_type.upper()}"
    parameters.type_k = parameters.type_v = ggml.BF16 if options.kv_type == "bf16" else getattr(L, name)
    on, off = L.LLAMA_FLASH_ATTN_TYPE_ENABLED, L.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.flash_attn_type = on if options.flash_attention else off
    parameters.no_perf = True
    parameters.op_offload = False
    parameters.offload_kqv = options.layers > 0 and options.gpu_kv
    return parameters


def open_model(options: ModelOptions, *, no_alloc: bool = False) -> int:
    """Return the address of a ``llama_model``, or raise BadModel with libllama's last word."""
    ggml.start()
    ggml.log().clear()
    model = L.llama_model_load_from_file(os.fsencode(options.path), model_parameters(options, no_alloc=no_alloc))
    if not model:
        raise BadModel(f"{options.path} can not be loaded", ggml.log().last_error() or "libllama gave no reason")
    return int(model)


def open_context(model: int, options: ModelOptions, threads: int) -> int:
    """Return the address of a ``llama_context``, or raise BadModel with libllama's last word."""
    ggml.log().clear()
    context = L.llama_init_from_model(model, context_parameters(options, threads))
    if not context:
        raise BadModel(f"{options.path} gives no context", ggml.log().last_error() or "libllama gave no reason")
    return int(context)


def metadata(model: int, key: str) -> str | None:
    """Return a metadata value as text, None if the file has no such key.  Raises BadModel if it is not UTF-8."""
    length = L.llama_model_meta_val_str(model, key.encode(), None, 0)
    if length < 0:
        return None
    buffer = C.create_string_buffer(length + 1)
    L.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return _utf8(buffer.raw[:length], key)


def _utf8(raw: bytes, what: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadModel(f"the file's {what} is not UTF-8 (byte {error.start})") from None


def read_info(model: int, context: int, options: ModelOptions, threads: int) -> ModelInfo:
    """Read what a model says of itself.

    Raises BadModel where text is not UTF-8 or sizes make no sense, UnsupportedModel if it does not generate text.
    """
    template = L.llama_model_chat_template(model, None)
    trained = L.llama_model_n_ctx_train(model) or DEFAULT_CONTEXT
    cells = int(L.llama_n_ctx(context))
    vocabulary = int(L.llama_vocab_n_tokens(L.llama_model_get_vocab(model)))
    if vocabulary <= 0 or trained <= 0:
        raise BadModel(f"{options.path} says it has {vocabulary} tokens and a context of {trained}")
    if L.llama_vocab_type(L.llama_model_get_vocab(model)) == L.LLAMA_VOCAB_TYPE_NONE:
        raise BadModel(f"{options.path} has no vocabulary: convert it again, with its tokenizer")
    if L.llama_model_has_encoder(model) or not L.llama_model_has_decoder(model) or not L.llama_get_memory(context):
        raise UnsupportedModel(f"{options.path} does not generate text (an encoder or embedding model)")
    metadata(model, "general.name")
    layers = int(L.llama_model_n_layer(model)) + 1
    on_gpu = min(options.layers, layers)
    return ModelInfo(
        name=options.name, architecture=metadata(model, "general.architecture") or "", vocabulary=vocabulary,
        context=min(int(L.llama_n_ctx_seq(context)), trained), cells=cells, streams=options.streams,
        batch=min(options.batch, int(L.llama_n_batch(context))), threads=threads,
        device=_device(options, on_gpu, layers),
        chat_template=None if template is None else _utf8(template, "chat template"),
        start_text=_token_text(model, L.llama_vocab_bos), end_text=_token_text(model, L.llama_vocab_eos),
        parameters=int(L.llama_model_n_params(model)), file_bytes=int(L.llama_model_size(model)),
        slots=options.slots, reuse="whole" if forgets(model) else "any",
        tile=FLASH_TILE if options.flash_attention and options.kv_type in ("f16", "f32") and not on_gpu else 0,
        gpu_layers=on_gpu, layers=layers,
    )


def _device(options: ModelOptions, on_gpu: int, layers: int) -> str:
    return f"{', '.join(options.gpus)} ({on_gpu} of {layers} layers)" if on_gpu else "cpu"


def forgets(model: int) -> bool:
    """Tell whether the cache of a sequence does not hold all of its tokens: sliding windows, recurrent states."""
    return bool(
        L.llama_model_n_swa(model) > 0 or L.llama_model_is_recurrent(model) or L.llama_model_is_hybrid(model)
    )


def caches(model: int) -> int:
    """Return how many buffers the model's memory may come in: sliding windows and recurrent states have their own."""
    return 1 + int(L.llama_model_n_swa(model) > 0) + int(L.llama_model_is_hybrid(model))


def _token_text(model: int, which: Any) -> str:
    """Write a special token out, as chat templates want it; empty where the model has none."""
    vocabulary = L.llama_model_get_vocab(model)
    token = which(vocabulary)
    if not 0 <= token < L.llama_vocab_n_tokens(vocabulary):
        return ""
    return _utf8(L.llama_vocab_get_text(vocabulary, token) or b"", "special token")


def _written_ends(model: int) -> list[int]:
    """Return the ends that our converter wrote out: GGUF itself has room for three, some models have more."""
    text = metadata(model, ENDS_KEY)
    try:
        ends = json.loads(text or "[]")
    except ValueError:
        ends = None
    if not isinstance(ends, list) or not all(type(token) is int for token in ends):
        raise BadModel(f"the file's {ENDS_KEY} is not a list of tokens: convert it again")
    return ends


class LlamaVocabulary:
    """A GGUF's own tokenizer.  libllama's vocabulary is constant after loading, so any thread may use it.

    The lock is for the end of it: `close` waits for a call in flight, and later calls raise EngineClosed.
    """

    def __init__(self, model: int) -> None:
        self._vocabulary = L.llama_model_get_vocab(model)
        self._size = int(L.llama_vocab_n_tokens(self._vocabulary))
        self._adds_start = bool(L.llama_vocab_get_add_bos(self._vocabulary))
        adds_end = bool(L.llama_vocab_get_add_eos(self._vocabulary))
        self._added_end = int(L.llama_vocab_eos(self._vocabulary)) if adds_end else None
        self._pieces: dict[int, bytes] = {}
        self._written_ends = [end for end in _written_ends(model) if 0 <= end < self._size]
        self._ends = dict.fromkeys(self._written_ends, True)
        self._buffer = C.create_string_buffer(512)
        self._lock = threading.Lock()  # held while a text is encoded, which may take long
        self._matcher_tokenizer: Any = None
        self._matcher_lock = threading.Lock()  # held while that is made, about a second
        self._pieces_lock = threading.Lock()  # held for one token: the engine must not wait for a long text

    def encode(self, text: str, *, special: bool, start: bool) -> list[int]:
        """Return the tokens of ``text``; see `base.Vocabulary`."""
        raw = text.encode("utf-8", "replace")
        room = len(raw) + 16
        with self._lock:
            self._check()
            while True:
                tokens = (C.c_int32 * room)()
                n = L.llama_tokenize(
                    self._vocabulary, raw, len(raw), tokens, room, start and self._adds_start, special
                )
                if n >= 0:
                    found = list(tokens[:n])
                    if start and self._adds_start and found and found[-1] == self._added_end:
                        found.pop()  # a prompt that ended itself would have no answer
                    return found
                room = -n

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token; control tokens are empty."""
        known = self._pieces.get(token)
        if known is None:
            with self._pieces_lock:
                self._check()
                known = self._pieces[token] = self._render(token)
        return known

    def _render(self, token: int) -> bytes:
        n = L.llama_token_to_piece(self._vocabulary, token, self._buffer, len(self._buffer), 0, False)
        if n < 0:
            self._buffer = C.create_string_buffer(-n)
            n = L.llama_token_to_piece(self._vocabulary, token, self._buffer, -n, 0, False)
        return self._buffer.raw[: max(0, n)]

    def is_end(self, token: int) -> bool:
        """Tell whether the token ends an answer (libllama's end-of-generation list)."""
        known = self._ends.get(token)
        if known is None:
            with self._pieces_lock:
                self._check()
                known = self._ends[token] = bool(L.llama_vocab_is_eog(self._vocabulary, token))
        return known

    def matcher_tokenizer(self) -> Any:
        """Return llguidance's tokenizer: see `base.Vocabulary`.  It calls libllama: not to be used after `close`."""
        with self._matcher_lock:
            self._check()
            if self._matcher_tokenizer is None:
                self._matcher_tokenizer = _matcher_tokenizer(self._vocabulary, self._written_ends)
            return self._matcher_tokenizer

    def _check(self) -> None:
        if self._vocabulary is None:
            raise EngineClosed("the model was closed: load it again")

    def close(self) -> None:
        """Let no later call reach the freed model."""
        with self._lock, self._matcher_lock, self._pieces_lock:
            self._vocabulary = None


def _matcher_tokenizer(vocabulary: int, written_ends: list[int]) -> Any:
    """Hand a vocabulary to llguidance.

    As its own ``llguidance.llamacpp`` does, which calls what llama-cpp-python has deprecated; but no token that `piece`
    renders as nothing, or that ends an answer, has letters here that could be part of one.
    """
    size = int(L.llama_vocab_n_tokens(vocabulary))
    ends = sorted({*written_ends, *(token for token in range(size) if L.llama_vocab_is_eog(vocabulary, token))})
    buffer = C.create_string_buffer(LONGEST_PIECE)
    pieces, known_ends = [], set(ends)
    for token in range(size):
        length = L.llama_token_to_piece(vocabulary, token, buffer, LONGEST_PIECE, 0, True)
        piece = buffer.raw[:length] if length > 0 else b""
        kind = L.llama_vocab_get_attr(vocabulary, token)
        marked = kind & L.LLAMA_TOKEN_ATTR_USER_DEFINED and piece.startswith(b"<") and piece.endswith(b">")
        hidden = kind & (L.LLAMA_TOKEN_ATTR_CONTROL | L.LLAMA_TOKEN_ATTR_UNKNOWN)
        control = hidden or marked or token in known_ends
        pieces.append(b"\xff" + piece if control else piece)
    if not ends:  # llguidance insists on one: let it be beyond the vocabulary
        ends = [size]
        pieces.append(b"\xff<end>")
    bridge: Any = LLTokenizer
    return bridge.from_llamacpp(
        tokens=pieces, vocab_ptr=vocabulary, eos_token=ends,
        tokenize_fptr=C.cast(ggml.lib.llama_tokenize, C.c_void_p).value,
    )
