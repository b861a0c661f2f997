"""Settings as small frozen values, checked once.  A typo is an error."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from . import machine
from .errors import ConfigError
from .sizes import parse_size

KV_TYPES = ("f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
MAX_STREAMS = 255  # one less than LLAMA_MAX_SEQ: a context with more sequences is refused by libllama
CPU_BATCH, GPU_BATCH = 128, 512  # wider steps are no cheaper per token on a CPU, and take scratch in proportion
STEADY_ROWS = 4  # ggml's kernels for repacked weights take so many rows at a time, and the rest one by one
NULL_MODEL = "null:"

KVType = Literal["f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How one model is loaded.

    ``path``              a GGUF file, or ``null:`` for the fake that computes nothing
    ``name``              what the model is called in status and messages; default: the file's stem
    ``context``           tokens of KV cache, one pool shared by all streams; a single request may use all of it up
                          to the model's own training length.  Rounded up to a multiple of 256 by libllama
    ``streams``           sequences that may run at the same time, 1 to 255
    ``batch``             tokens that one step may compute; longer prompts take several steps.  0: `CPU_BATCH` (with
                          layers on a GPU `GPU_BATCH`), or one per sequence if those are more
    ``threads``           0: one per physical core that this process may use
    ``kv_type``           element type of keys and values
    ``flash_attention``   needed for quantized values.  Without it the CPU reads the whole pool for each row, but with
                          a faster kernel: better for few, deep streams (docs/engine.md has the figures)
    ``remember``          finished sequences whose keys and values stay in the cache, for requests that begin alike
    ``host_cache``        bytes of host memory (``256MiB``, 0: none) for what the cache has no room for: sequences that
                          gave way to more urgent ones, and remembered ones
    ``step_ms``           what a step should take at most while prompts are computed
    ``aging_s``           seconds after which a waiting request counts as one class more urgent
    ``admission``         ``reserve``: a request starts when prompt and longest answer fit; ``optimistic``: when the
                          prompt fits; if the cache gets full, the least urgent gives way and goes on later
    ``deterministic``     answers do not depend on the neighbours, bit for bit: each prompt is computed by itself in
                          chunks of fixed size, every step decodes as many rows, and each stream has a part of the
                          context for itself.  Slower; nothing is shared
    ``gpu_layers``        how many layers, the last ones first, lie on a GPU: a number, ``all``, or ``auto``: as many as
                          fit beside keys, values and scratch.  The output counts as one more layer
    ``gpu_kv``            keys and values of layers on a GPU lie there, too
    ``gpus``              ggml's names of the GPUs to use, the main one first; several share the layers.  Empty: the
                          first that ggml sees
    ``gpu_split``         the share of the layers that each of them gets; empty: in proportion to their free memory
    ``require_gpu``       refuse (NoGPU) rather than compute any layer on the CPU
    ``forced_tokens``     tokens that a form leaves no choice about are appended without computing them one by one
    ``weights``           ``arena``: copied into the arena, so that no step waits for the disk;
                          ``mapped``: left in the page cache
    """

    path: str
    name: str = ""
    context: int = 4096
    streams: int = 8
    batch: int = 0
    threads: int = 0
    kv_type: KVType = "f16"
    flash_attention: bool = True
    weights: Literal["arena", "mapped"] = "arena"
    remember: int = 8
    host_cache: str | int = "256MiB"
    step_ms: float = 50.0
    aging_s: float = 5.0
    admission: Literal["optimistic", "reserve"] = "optimistic"
    deterministic: bool = False
    forced_tokens: bool = True
    gpu_layers: int | Literal["auto", "all"] = "auto"
    gpu_kv: bool = True
    gpus: tuple[str, ...] = ()
    gpu_split: tuple[float, ...] = ()
    require_gpu: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ConfigError(f"name is {self.name!r}: give a text")
        for flag in ("flash_attention", "deterministic", "forced_tokens", "gpu_kv", "require_gpu"):
            if not isinstance(getattr(self, flag), bool):
                raise ConfigError(f"{flag} is {getattr(self, flag)!r}: give True or False")
        _between("context", self.context, 16, 1 << 24)
        _between("streams", self.streams, 1, MAX_STREAMS)
        _between("batch", self.batch, 0, 1 << 16)
        _between("threads", self.threads, 0, 1024)
        _between("remember", self.remember, 0, MAX_STREAMS)
        _number("step_ms", self.step_ms, 1.0, 10_000.0)
        _number("aging_s", self.aging_s, 0.01, 86_400.0)
        _one_of("admission", self.admission, ("optimistic", "reserve"))
        if self.host_bytes < 0:
            raise ConfigError("host_cache can not be auto: give a size, or 0 for none")
        _one_of("kv_type", self.kv_type, KV_TYPES)
        _one_of("weights", self.weights, ("arena", "mapped"))
        self._check_gpu()
        rows = self.slots if self.deterministic else self.streams
        if 0 < self.batch < rows:
            raise ConfigError(f"batch {self.batch} is smaller than streams {rows}: each stream needs one token")
        if self.kv_type.startswith(("q", "iq")) and not self.flash_attention:
            raise ConfigError(f"kv_type {self.kv_type} needs flash_attention: switch it on, or use f16")
        if not self.name:
            object.__setattr__(self, "name", "null" if self.path == NULL_MODEL else Path(self.path).stem)

    def _check_gpu(self) -> None:
        layers = self.gpu_layers
        if isinstance(layers, bool) or not (layers in ("auto", "all") or (isinstance(layers, int) and layers >= 0)):
            raise ConfigError(f"gpu_layers is {layers!r}: give auto, all, or a number of layers")
        if self.require_gpu and layers == 0:
            raise ConfigError("require_gpu with gpu_layers 0 contradicts itself: leave one of them out")
        names, shares = self.gpus, self.gpu_split
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"gpus is {names!r}: give a list of names such as CUDA0; `arenite doctor` shows them")
        if len(set(names)) < len(names):
            raise ConfigError(f"gpus is {names!r}: name each GPU once")
        if not isinstance(shares, (list, tuple)):
            raise ConfigError(f"gpu_split is {shares!r}: give a list of numbers, one for each of gpus")
        for share in shares:
            _number("gpu_split", share, 0.0, 1e15)
        if shares and (len(shares) != len(names) or not sum(shares)):
            raise ConfigError(f"gpu_split is {shares!r}: give one number for each of gpus, not all of them zero")
        object.__setattr__(self, "gpus", tuple(names))
        object.__setattr__(self, "gpu_split", tuple(shares))

    def settled(self, gpus: tuple[str, ...] = (), layers: int = 0, split: tuple[float, ...] = ()) -> Self:
        """Return the options with nothing left open: ``layers`` on these GPUs, and a batch for what computes."""
        batch = self.batch or max(GPU_BATCH if layers else CPU_BATCH, self.slots)
        gpus, split = (gpus, split) if layers else ((), ())
        return replace(self, batch=batch, gpus=gpus, gpu_split=split, gpu_layers=layers, require_gpu=False)

    @property
    def layers(self) -> int:
        """How many layers lie on a GPU; 0 unless it was settled."""
        return self.gpu_layers if isinstance(self.gpu_layers, int) else 0

    @property
    def slots(self) -> int:
        """Sequences that the cache may hold, running and remembered ones.

        In deterministic mode a multiple of `STEADY_ROWS`, so that every row of a step is computed by the same kernel.
        """
        if self.deterministic:
            return min(MAX_STREAMS, -(-self.streams // STEADY_ROWS) * STEADY_ROWS)
        return min(MAX_STREAMS, self.streams + self.remember)

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory for copies of sequences."""
        if str(self.host_cache).strip() == "0":
            return 0
        return parse_size(self.host_cache, machine.total_memory()) or -1

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


def _number(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}: give a number from {low:g} to {high:g}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}: give one of {', '.join(allowed)}")
