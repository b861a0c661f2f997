"""Which type each tensor of a GGUF file gets, and how float32 becomes that type.

The arithmetic is ``gguf.quants``, whose results are byte for byte those of ggml's reference quantizers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...runtime.errors import BadModel
from ..extra import gguf

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 32
"""Values that share one scale in q8_0 and q4_0; rows must be a multiple of it."""


@dataclass(frozen=True, slots=True)
class Type:
    """A tensor type: ``block`` values take ``size`` bytes; ``file_type`` is ``general.file_type`` of such a file."""

    name: str
    block: int
    size: int
    file_type: int

    def bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes that a tensor of this shape takes."""
        return math.prod(shape) // self.block * self.size


F32, F16 = Type("f32", 1, 4, 0), Type("f16", 1, 2, 1)
Q8_0, Q4_0 = Type("q8_0", BLOCK, 34, 7), Type("q4_0", BLOCK, 18, 2)
TYPES = {kind.name: kind for kind in (F32, F16, Q8_0, Q4_0)}

_WIDTH = 8192  # values; gguf.quants works on 16 rows at a time, and 16 * 8192 float32 values fit into the L2 cache
_HEADS = ("token_embd.weight", "output.weight")


def choose_type(name: str, shape: tuple[int, ...], asked: Type) -> Type:
    """Return the type of one tensor of a file that is asked to be of type ``asked``.

    Vectors (norms, biases, rope factors) stay f32: they are small, and ggml wants them so.  Rows that are no multiple
    of BLOCK fall back to f16.  In a q4_0 file the embedding and the output matrix are q8_0: they are often one and the
    same tensor, every token passes through it twice, and small models lose most of their quality there.
    """
    if len(shape) == 1 or asked is F32:
        return F32
    if asked.block > 1 and shape[-1] % asked.block:
        return F16
    return Q8_0 if asked is Q4_0 and name in _HEADS else asked


def encode(values: NDArray[np.float32], kind: Type, name: str) -> NDArray[np.generic]:
    """Return float32 rows in another type, as an array of the bytes to write.

    Raises BadModel, naming the tensor, for NaN and infinity and for values that f16 can not hold.
    """
    peak = max(float(values.max()), -float(values.min()))
    if not math.isfinite(peak):  # max and min hand a NaN on
        raise BadModel(f"{name} holds values that are not finite: the checkpoint is damaged")
    if kind is not F32 and peak > 65504:  # values, or the scales of their blocks, are float16
        raise BadModel(f"{name} holds {peak:.4g}, too large for {kind.name}: convert with --type f32")
    with np.errstate(all="ignore"):  # blocks of zeros or subnormal values divide by zero; gguf.quants sorts them out
        parts = [_quantize(part, kind) for part in (_wide(values) if kind.block > 1 else [values])]
    return parts[0] if len(parts) == 1 else np.concatenate([part.ravel() for part in parts])


def _quantize(values: NDArray[np.float32], kind: Type) -> NDArray[np.generic]:
    library = gguf()
    encoded: NDArray[np.generic] = library.quants.quantize(values, library.GGMLQuantizationType[kind.name.upper()])
    return np.ascontiguousarray(encoded)


def _wide(values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Lay rows of whole blocks out as rows of _WIDTH values and a rest: blocks do not know rows, numpy likes these."""
    flat = values.reshape(-1)
    whole = flat.size // _WIDTH * _WIDTH
    return [part for part in (flat[:whole].reshape(-1, _WIDTH), flat[whole:].reshape(1, -1)) if part.size]
