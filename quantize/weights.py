"""The tensors of a checkpoint, read through a memory map: nothing is loaded before it is asked for.

A safetensors file is (https://github.com/huggingface/safetensors, "Format")::

    8 bytes   length of the header, little-endian
    header    JSON: {name: {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]}, ..., "__metadata__": {...}}
    data      the tensors; offsets count from here, tile the rest of the file, and leave no hole
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..runtime.errors import BadModel, UnsupportedModel
from .fields import Fields, parse_object, read_object, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SLAB = 1 << 20
"""Values that are in memory at a time (4 MiB as float32): what bounds the memory of a conversion."""

_LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies: ``start`` and ``end`` are bytes from the start of its file."""

    data: mmap.mmap
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def slabs(self, order: NDArray[np.intp] | None = None) -> Iterator[NDArray[np.float32]]:
        """Yield the rows as float32 ``[rows, values per row]``, about SLAB values at a time.

        ``order`` names the rows in the order wanted.  A slab may be a view of the file: it holds until the next one is
        asked for, which also gives its pages back to the system.
        """
        rows = self.shape[0] if self.shape else 1
        count = math.prod(self.shape)
        view = np.frombuffer(self.data, _DTYPES[self.dtype], count, self.start).reshape(rows, count // rows)
        step, row_bytes = max(1, SLAB // (count // rows)), (self.end - self.start) // rows
        for row in range(0, rows, step):
            end = min(row + step, rows)
            yield _float32(view[row:end] if order is None else view[order[row:end]], self.dtype)
            self._give_back(self.start + row * row_bytes, self.start + end * row_bytes)

    def _give_back(self, start: int, end: int) -> None:
        page = start // mmap.PAGESIZE * mmap.PAGESIZE
        self.data.madvise(mmap.MADV_DONTNEED, page, end - page)


def _float32(raw: NDArray[np.generic], dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of a float32
        return (raw.astype("<u4") << np.uint32(16)).view("<f4")
    return raw.astype("<f4", copy=False)


def open_weights(folder: Path) -> dict[str, Stored]:
    """Return every tensor of a checkpoint folder by name.

    Raises BadModel if there are no weights, or if a file is damaged: its header, offsets and size must agree.
    """
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _open_shards(folder)
    raise BadModel(
        f"{folder} has no weights: neither {SINGLE} nor {INDEX}; "
        "save the checkpoint with save_pretrained(..., safe_serialization=True)"
    )


def _open_shards(folder: Path) -> dict[str, Stored]:
    files = read_object(folder / INDEX).table("weight_map").values
    found: dict[str, Stored] = {}
    for file in sorted({str(file) for file in files.values()}):
        if "/" in file or file in (".", "..", ""):
            raise BadModel(f"{INDEX} names {shortened(file)}, which is not a file of this folder")
        for name, stored in read_header(folder / file).items():
            if files.get(name) != file:
                raise BadModel(f"{file} holds {name}, which {INDEX} expects in {shortened(files.get(name))}")
            found[name] = stored
    if lost := files.keys() - found.keys():
        raise BadModel(f"{INDEX} lists {min(lost)}, which is in none of its files")
    return found


def read_header(path: Path) -> dict[str, Stored]:
    """Map one safetensors file and return its tensors by name.  Raises BadModel unless the file is whole."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BadModel(f"{path.name} can not be read", error.strerror or str(error)) from None
    except ValueError:  # a file of 0 bytes can not be mapped
        raise BadModel(f"{path.name} is empty") from None
    base = 8 + int.from_bytes(data[:8], "little")
    if len(data) < 8 or base > min(len(data), _LARGEST_HEADER):
        raise BadModel(f"{path.name} is not a safetensors file, or is truncated: its header does not fit into it")
    header = parse_object(f"the header of {path.name}", data[8:base])
    found = {name: _stored(data, base, header.table(name), name) for name in header.values if name != "__metadata__"}
    _check_tiling(path.name, base, found)
    return found


def _stored(data: mmap.mmap, base: int, entry: Fields, name: str) -> Stored:
    shape, offsets, dtype = entry.items("shape"), entry.items("data_offsets"), entry.get("dtype")
    if not all(type(value) is int and value >= 0 for value in (*shape, *offsets)) or len(offsets) != 2:
        raise BadModel(f"{entry.name}: shape and data_offsets must be whole numbers")
    if not isinstance(dtype, str):
        raise BadModel(f"{entry.name}: dtype is missing")
    start, end = offsets
    if dtype in _DTYPES and end - start != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise BadModel(f"{name}: {dtype} of shape {shortened(shape)} does not take {end - start} bytes")
    return Stored(data, dtype, tuple(shape), base + start, base + end)


def _check_tiling(file: str, base: int, found: dict[str, Stored]) -> None:
    at = base
    for name, stored in sorted(found.items(), key=lambda item: (item[1].start, item[1].end)):
        if stored.start != at or stored.end < at:
            raise BadModel(f"{file}: {name} overlaps its neighbour or leaves a hole: the file is damaged")
        at = stored.end
        size = len(stored.data)
        if at > size:
            raise BadModel(f"{file} is truncated: {name} ends at byte {at}, the file has {size}; download it again")
    if found and at != size:
        raise BadModel(f"{file} has {size - at} bytes that belong to no tensor: the file is damaged")


def check_readable(name: str, stored: Stored) -> None:
    """Raise UnsupportedModel unless the tensor is of a type that can be converted."""
    if stored.dtype not in _DTYPES:
        raise UnsupportedModel(f"{name} is stored as {stored.dtype}: only {', '.join(_DTYPES)} can be converted")
