"""Small random GGUF files of architectures that the converter does not write: what libllama makes of them is tested."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from . import checkpoints

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, INNER = 64, 128
Shapes = dict[str, tuple[int, ...]]


def write(path: Path, architecture: str, keys: dict[str, Any], tensors: Shapes) -> Path:
    """Write a file with the vocabulary of the tiny model, the architecture's ``keys`` and random tensors."""
    reader = gguf.GGUFReader(checkpoints.gguf_file("tiny", "f16"))
    writer = gguf.GGUFWriter(path, architecture)
    for field in reader.fields.values():
        if field.name.startswith("tokenizer.") and field.name != "tokenizer.chat_template":
            _add(writer, field.name, field.contents())
    for name, value in keys.items():
        _add(writer, name if name.startswith("tokenizer.") else f"{architecture}.{name}", value)
    choose = np.random.default_rng(0)
    for name, shape in {"token_embd.weight": (512, WIDTH), **tensors}.items():
        around = 1.0 if "norm.weight" in name else 0.0
        writer.add_tensor(name, (choose.normal(0, 0.05, shape) + around).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, name: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(name, value)


def bert(path: Path) -> Path:
    """Write an encoder: it computes embeddings and generates no text."""
    block: Shapes = {f"attn_{part}.{kind}": (WIDTH, WIDTH) if kind == "weight" else (WIDTH,)
                     for part in ("q", "k", "v", "output") for kind in ("weight", "bias")}
    block |= {"ffn_up.weight": (INNER, WIDTH), "ffn_up.bias": (INNER,), "ffn_down.weight": (WIDTH, INNER),
              "ffn_down.bias": (WIDTH,)}
    norms = ("attn_output_norm", "layer_output_norm")
    block |= {f"{part}.{kind}": (WIDTH,) for part in norms for kind in ("weight", "bias")}
    tensors: Shapes = {"token_types.weight": (2, WIDTH), "position_embd.weight": (512, WIDTH),
                       "token_embd_norm.weight": (WIDTH,), "token_embd_norm.bias": (WIDTH,)}
    keys = {"block_count": 1, "context_length": 512, "embedding_length": WIDTH, "feed_forward_length": INNER,
            "attention.head_count": 2, "attention.layer_norm_epsilon": 1e-6, "attention.causal": False,
            "pooling_type": 1, "tokenizer.ggml.token_type_count": 2}
    return write(path, "bert", keys, tensors | {f"blk.0.{name}": shape for name, shape in block.items()})


def gemma2(path: Path) -> Path:
    """Write a model whose layers take turns between a sliding window and the whole context: two KV caches."""
    block: Shapes = {
        "attn_norm.weight": (WIDTH,), "attn_q.weight": (64, WIDTH), "attn_k.weight": (32, WIDTH),
        "attn_v.weight": (32, WIDTH), "attn_output.weight": (WIDTH, 64), "post_attention_norm.weight": (WIDTH,),
        "ffn_norm.weight": (WIDTH,), "ffn_gate.weight": (INNER, WIDTH), "ffn_up.weight": (INNER, WIDTH),
        "ffn_down.weight": (WIDTH, INNER), "post_ffw_norm.weight": (WIDTH,),
    }
    keys = {"block_count": 2, "context_length": 2048, "embedding_length": WIDTH, "feed_forward_length": INNER,
            "attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": 32,
            "attention.value_length": 32, "attention.layer_norm_rms_epsilon": 1e-6, "attention.sliding_window": 256,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    tensors = {f"blk.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    return write(path, "gemma2", keys, {"output_norm.weight": (WIDTH,), **tensors})


def mamba(path: Path) -> Path:
    """Write a recurrent model: its memory is a state per sequence, no KV cache."""
    inner, state, rank = 128, 16, 4
    block: Shapes = {
        "attn_norm.weight": (WIDTH,), "ssm_in.weight": (2 * inner, WIDTH), "ssm_conv1d.weight": (inner, 4),
        "ssm_conv1d.bias": (inner,), "ssm_x.weight": (rank + 2 * state, inner), "ssm_dt.weight": (inner, rank),
        "ssm_dt.bias": (inner,), "ssm_a": (inner, state), "ssm_d": (inner,), "ssm_out.weight": (WIDTH, inner),
    }
    keys = {"block_count": 2, "context_length": 2048, "embedding_length": WIDTH, "feed_forward_length": 0,
            "attention.head_count": 0, "attention.layer_norm_rms_epsilon": 1e-6, "ssm.conv_kernel": 4,
            "ssm.inner_size": inner, "ssm.state_size": state, "ssm.time_step_rank": rank}
    tensors = {f"blk.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    return write(path, "mamba", keys, {"output_norm.weight": (WIDTH,), **tensors})
