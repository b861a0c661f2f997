"""What a checkpoint of an architecture holds and what it is called in GGUF: one table entry per architecture.

Names and keys follow the GGUF specification (ggml/docs/gguf.md) and llama.cpp's conversion; the tensor names come from
gguf's own map.  A dimension of a rule is a name that the entry's ``sizes`` gives a number.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..runtime.errors import BadModel, UnsupportedModel
from .extra import gguf
from .fields import Fields, shortened
from .weights import Stored, check_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from .source import Source

Value = bool | int | float | str | list[str] | list[int] | list[float]


@dataclass(frozen=True, slots=True)
class Rule:
    """One tensor of the checkpoint.  ``{}`` in its name is the layer.

    ``heads``: the rows are q or k projections of that many heads and get the order that ggml's rope wants.
    """

    name: str
    shape: tuple[str, ...]
    heads: str = ""
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to convert one value of ``architectures`` in config.json."""

    gguf_name: str
    rules: tuple[Rule, ...]
    sizes: Callable[[Fields], dict[str, int]]
    metadata: Callable[[Fields, dict[str, int]], dict[str, Value]]
    computed: Callable[[Fields, dict[str, int]], dict[str, NDArray[np.float32]]]
    droppable: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor to write: read from the checkpoint (rows in ``order``, if given) or computed (``values``)."""

    name: str
    shape: tuple[int, ...]
    stored: Stored | None = None
    order: NDArray[np.intp] | None = None
    values: NDArray[np.float32] | None = None

    def slabs(self) -> Iterator[NDArray[np.float32]]:
        """Yield the values in float32, slab by slab."""
        if self.stored is not None:
            yield from self.stored.slabs(self.order)
        elif self.values is not None:
            yield self.values


def find_architecture(config: Fields) -> Architecture:
    """Return the table entry for a config.json.  Raises UnsupportedModel, naming what is supported."""
    names = config.items("architectures")
    for name in names:
        if isinstance(name, str) and name in ARCHITECTURES:
            return ARCHITECTURES[name]
    raise UnsupportedModel(
        f"config.json names the architecture {shortened(names[0] if names else None)}: "
        f"this version converts {', '.join(ARCHITECTURES)}"
    )


def list_tensors(architecture: Architecture, source: Source) -> list[Tensor]:
    """Return the tensors of the GGUF file, in file order.

    Raises BadModel if a tensor is missing, surplus or of an unexpected shape, and UnsupportedModel for a type other
    than float32, float16 and bfloat16.
    """
    sizes = architecture.sizes(source.config)
    left = {name: stored for name, stored in source.weights.items() if not architecture.droppable.fullmatch(name)}
    tied = source.config.flag("tie_word_embeddings", default=False)
    if tied:  # the embedding serves as output matrix; a copy of it may or may not have been stored
        left.pop("lm_head.weight", None)
    found = [
        (name, left.pop(name), rule)
        for name, rule in _expected(architecture.rules, sizes["layers"])
        if name in left or not _absent(name, rule, tied=tied)
    ]
    if left:
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise BadModel(f"{min(left)}{more} is no tensor of {source.config.items('architectures')[0]}")
    names = gguf().get_tensor_name_map(gguf().MODEL_ARCH[architecture.gguf_name.upper()], sizes["layers"])
    tensors = [
        _tensor(names.get_name(name, (".weight", ".bias")), name, stored, rule, sizes) for name, stored, rule in found
    ]
    computed = architecture.computed(source.config, sizes)
    return tensors + [Tensor(name, values.shape, values=values) for name, values in computed.items()]


def _expected(rules: tuple[Rule, ...], layers: int) -> Iterator[tuple[str, Rule]]:
    yield from ((rule.name, rule) for rule in rules if "{}" not in rule.name)
    for layer in range(layers):
        yield from ((rule.name.format(layer), rule) for rule in rules if "{}" in rule.name)


def _absent(name: str, rule: Rule, *, tied: bool) -> bool:
    if rule.optional or (tied and name == "lm_head.weight"):
        return True
    raise BadModel(f"{name} is missing from the checkpoint")


def _tensor(name: str, said: str, stored: Stored, rule: Rule, sizes: dict[str, int]) -> Tensor:
    shape = tuple(sizes[dimension] for dimension in rule.shape)
    if stored.shape != shape:
        raise BadModel(f"{said} has the shape {shortened(list(stored.shape))}, config.json asks for {list(shape)}")
    check_readable(said, stored)
    return Tensor(name, shape, stored, head_order(shape[0], sizes[rule.heads]) if rule.heads else None)


def head_order(rows: int, heads: int) -> NDArray[np.intp]:
    """Return the order of the rows of a q or k projection that makes ggml's NORM rope right.

    Hugging Face rotates the values i and i + d/2 of a head of size d together, ggml 2i and 2i + 1: so rows i and
    i + d/2 become neighbours (``LlamaModel.permute`` in llama.cpp's conversion).
    """
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).ravel()


def _llama_sizes(config: Fields) -> dict[str, int]:
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", heads)
    head_size = config.integer("head_dim", max(1, hidden // heads))
    if heads % kv_heads or head_size % 2 or (config.get("head_dim") is None and hidden % heads):
        raise BadModel(
            f"config.json: {heads} heads, {kv_heads} key/value heads, head size {head_size} "
            f"and hidden size {hidden} do not fit together"
        )
    return {
        "hidden": hidden, "heads": heads, "kv_heads": kv_heads, "head_size": head_size,
        "q": heads * head_size, "kv": kv_heads * head_size,
        "layers": config.integer("num_hidden_layers"), "ffn": config.integer("intermediate_size"),
        "vocab": config.integer("vocab_size"),
    }


def _llama_metadata(config: Fields, sizes: dict[str, int]) -> dict[str, Value]:
    if (act := config.get("hidden_act")) not in (None, "silu", "swish"):
        raise UnsupportedModel(f"config.json: hidden_act is {shortened(act)}: only silu can be converted")
    if config.get("quantization_config") is not None:
        raise UnsupportedModel("config.json has a quantization_config: convert the unquantized checkpoint instead")
    return {
        "block_count": sizes["layers"],
        "context_length": config.integer("max_position_embeddings", 2048),
        "embedding_length": sizes["hidden"],
        "feed_forward_length": sizes["ffn"],
        "attention.head_count": sizes["heads"],
        "attention.head_count_kv": sizes["kv_heads"],
        "attention.key_length": sizes["head_size"],
        "attention.value_length": sizes["head_size"],
        "attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", 1e-6),
        "rope.dimension_count": sizes["head_size"],
        "rope.freq_base": _rope(config)[0],
        "vocab_size": sizes["vocab"],
    }


def _rope(config: Fields) -> tuple[float, Fields]:
    """Return theta and the scaling; transformers 5 writes both into rope_parameters, older versions apart."""
    both = config.table("rope_parameters")
    scaling = both if both.values else config.table("rope_scaling")
    return both.number("rope_theta", config.number("rope_theta", 10000.0)), scaling


def _llama_computed(config: Fields, sizes: dict[str, int]) -> dict[str, NDArray[np.float32]]:
    theta, scaling = _rope(config)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return {}
    if kind != "llama3":
        raise UnsupportedModel(f"{scaling.name} is of type {shortened(kind)}: this version knows default and llama3")
    return {"rope_freqs.weight": llama3_factors(theta, sizes["head_size"], scaling)}


def llama3_factors(theta: float, head_size: int, scaling: Fields) -> NDArray[np.float32]:
    """Return by what each of the ``head_size / 2`` rope frequencies is divided.

    Llama 3.1's rule (``_compute_llama3_parameters`` in transformers): short waves stay, long ones are stretched by
    ``factor``, those between are blended.
    """
    factor, context = scaling.number("factor"), scaling.number("original_max_position_embeddings")
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if high <= low:
        raise BadModel(f"{scaling.name}: high_freq_factor must be larger than low_freq_factor")
    waves = 2 * math.pi * theta ** (np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    blend = np.clip((context / waves - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - blend) / factor + blend)).astype(np.float32)


_LAYER = "model.layers.{}."
_LLAMA_RULES = (
    Rule("model.embed_tokens.weight", ("vocab", "hidden")),
    Rule("model.norm.weight", ("hidden",)),
    Rule("lm_head.weight", ("vocab", "hidden")),
    Rule(_LAYER + "input_layernorm.weight", ("hidden",)),
    Rule(_LAYER + "self_attn.q_proj.weight", ("q", "hidden"), heads="heads"),
    Rule(_LAYER + "self_attn.q_proj.bias", ("q",), heads="heads", optional=True),
    Rule(_LAYER + "self_attn.k_proj.weight", ("kv", "hidden"), heads="kv_heads"),
    Rule(_LAYER + "self_attn.k_proj.bias", ("kv",), heads="kv_heads", optional=True),
    Rule(_LAYER + "self_attn.v_proj.weight", ("kv", "hidden")),
    Rule(_LAYER + "self_attn.v_proj.bias", ("kv",), optional=True),
    Rule(_LAYER + "self_attn.o_proj.weight", ("hidden", "q")),
    Rule(_LAYER + "self_attn.o_proj.bias", ("hidden",), optional=True),
    Rule(_LAYER + "post_attention_layernorm.weight", ("hidden",)),
    Rule(_LAYER + "mlp.gate_proj.weight", ("ffn", "hidden")),
    Rule(_LAYER + "mlp.gate_proj.bias", ("ffn",), optional=True),
    Rule(_LAYER + "mlp.up_proj.weight", ("ffn", "hidden")),
    Rule(_LAYER + "mlp.up_proj.bias", ("ffn",), optional=True),
    Rule(_LAYER + "mlp.down_proj.weight", ("hidden", "ffn")),
    Rule(_LAYER + "mlp.down_proj.bias", ("hidden",), optional=True),
)

ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(
        "llama", _LLAMA_RULES, _llama_sizes, _llama_metadata, _llama_computed,
        droppable=re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
    ),
}
