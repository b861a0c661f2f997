"""Settings as small frozen values, checked once.  A typo is an error."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from .errors import ConfigError

KV_TYPES = ("f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
MAX_STREAMS = 256  # LLAMA_MAX_SEQ: a context with more sequences is refused by libllama
NULL_MODEL = "null:"

KVType = Literal["f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How one model is loaded.

    ``path``              a GGUF file, or ``null:`` for the fake that computes nothing
    ``name``              what the model is called in status and messages; default: the file's stem
    ``context``           tokens of KV cache, one pool shared by all streams; a single request may use all of it up
                          to the model's own training length.  Rounded up to a multiple of 256 by libllama
    ``streams``           sequences that may run at the same time, 1 to 256
    ``batch``             tokens that one step may compute; longer prompts take several steps
    ``threads``           0: one per physical core that this process may use
    ``kv_type``           element type of keys and values
    ``flash_attention``   on unless told otherwise; quantized values need it
    ``weights``           ``arena``: copied into the arena, so that no step waits for the disk;
                          ``mapped``: left in the page cache
    """

    path: str
    name: str = ""
    context: int = 4096
    streams: int = 8
    batch: int = 512
    threads: int = 0
    kv_type: KVType = "f16"
    flash_attention: bool = True
    weights: Literal["arena", "mapped"] = "arena"

    def __post_init__(self) -> None:
        _between("context", self.context, 16, 1 << 24)
        _between("streams", self.streams, 1, MAX_STREAMS)
        _between("batch", self.batch, 1, 1 << 16)
        _between("threads", self.threads, 0, 1024)
        _one_of("kv_type", self.kv_type, KV_TYPES)
        _one_of("weights", self.weights, ("arena", "mapped"))
        if self.streams > self.batch:
            raise ConfigError(f"batch {self.batch} is smaller than streams {self.streams}: each stream needs one token")
        if self.kv_type.startswith(("q", "iq")) and not self.flash_attention:
            raise ConfigError(f"kv_type {self.kv_type} needs flash_attention: switch it on, or use f16")
        if not self.name:
            object.__setattr__(self, "name", "null" if self.path == NULL_MODEL else Path(self.path).stem)

    @classmethod
    def parse(cls, path: str, settings: dict[str, Any]) -> Self:
        """Build from loose settings; an unknown one raises ConfigError with the known names."""
        known = {field.name for field in fields(cls)} - {"path"}
        if unknown := sorted(set(settings) - known):
            raise ConfigError(f"unknown setting {unknown[0]!r}: known are {', '.join(sorted(known))}")
        return cls(str(path), **settings)


def _between(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}: give a whole number from {low} to {high}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}: give one of {', '.join(allowed)}")
