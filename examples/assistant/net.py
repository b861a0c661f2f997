"""The network, in PyTorch, for training only: a small Llama whose parameters carry Hugging Face names and order."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes. `hidden` and `inner` are multiples of 256 and a head is 64 wide, for K-quants and flash attention."""

    vocabulary: int = 1536
    hidden: int = 256
    inner: int = 768
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    context: int = 1024
    theta: float = 10000.0
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    def config(self) -> dict[str, Any]:
        """Return Hugging Face's `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "eos_token_id": 2,
            "head_dim": self.head,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.inner,
            "max_position_embeddings": self.context,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "pad_token_id": 0,
            "rms_norm_eps": self.epsilon,
            "rope_scaling": None,
            "rope_theta": self.theta,
            "tie_word_embeddings": True,
            "torch_dtype": "float16",
            "use_cache": True,
            "vocab_size": self.vocabulary,
        }

    def asdict(self) -> dict[str, Any]:
        """Return the fields, to be stored in a training checkpoint."""
        return asdict(self)


def rope(shape: Shape) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each [context, head]: the two halves of a head rotate together."""
    rate = shape.theta ** (-torch.arange(0, shape.head, 2, dtype=torch.float32) / shape.head)
    angle = torch.outer(torch.arange(shape.context, dtype=torch.float32), rate).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [batch, heads, length, head] rotated to its positions, Hugging Face's way round."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention in which several query heads share a key-value head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        narrow = shape.kv_heads * shape.head
        self.q_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k_proj = nn.Linear(shape.hidden, narrow, bias=False)
        self.v_proj = nn.Linear(shape.hidden, narrow, bias=False)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the mixed x; all are [batch, length, hidden]. Padding stands on the right, so causality hides it."""
        rows, length, _ = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(rows, length, -1, self.shape.head).transpose(1, 2)

        query, key, value = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        # Written out instead of torch's fused attention, which on a CPU takes longer than all else for rows this short.
        kv_heads, head = self.shape.kv_heads, self.shape.head
        group = self.shape.heads // kv_heads
        query = query.reshape(rows, kv_heads, group * length, head)  # the query heads of a group, one below another
        score = (query @ key.transpose(-1, -2)).view(rows, kv_heads, group, length, length) * head**-0.5
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        share = score.masked_fill(later, float("-inf")).float().softmax(-1).to(value.dtype)
        mixed = (share.view(rows, kv_heads, group * length, length) @ value).view(rows, -1, length, head)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))
        return out


class FeedForward(nn.Module):
    """Gated feed-forward layer with SiLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, length, hidden]."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on a normalised copy and added back."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.epsilon)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.epsilon)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return [batch, length, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Llama(nn.Module):
    """The whole network. Output and input embeddings are one matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.epsilon)
        cos, sin = rope(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                scale = 0.02 / math.sqrt(2 * shape.layers) if "o_proj" in name or "down_proj" in name else 0.02
                nn.init.normal_(weight, std=scale if "embed" in name else scale * 2)

    def forward(self, tokens: Tensor, at: Tensor) -> Tensor:
        """Return logits [n, vocabulary] for the n positions where the mask `at` is set; both are [batch, length]."""
        x = self.embed_tokens(tokens)
        cos, sin = self.cos[: tokens.shape[1]].to(x.dtype), self.sin[: tokens.shape[1]].to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return functional.linear(self.norm(x[at]), self.embed_tokens.weight)

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters under Hugging Face names; the output head is left out because it is tied."""
        return {f"model.{name}": weight.detach() for name, weight in self.state_dict().items()}
