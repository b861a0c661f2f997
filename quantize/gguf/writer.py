"""Writes a GGUF file as a stream: header, keys and tensor table first, then one slab of values after the other.

The file appears under its name only when it is whole and on the disk; until then it is PATH.partial, and whatever goes
wrong (an error, Ctrl-C) that is removed.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

from ...runtime.errors import InvalidRequest
from ...runtime.sizes import format_size
from ..extra import gguf
from .types import Type, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ..architectures import Tensor, Value


def write(
    path: Path, architecture: str, metadata: Mapping[str, Value], tensors: Sequence[tuple[Tensor, Type]],
    progress: Callable[[int], None],
) -> int:
    """Write the file and return its size in bytes.  ``progress`` hears the bytes of each slab.

    Memory stays at a few slabs, whatever the size of the model.  Replaces a file of that name.
    Raises InvalidRequest if the file can not be written; nothing is left behind then.
    """
    with _appearing(path, sum(kind.bytes(tensor.shape) for tensor, kind in tensors)) as partial:
        writer = gguf().GGUFWriter(partial, architecture)
        try:
            _add_header(writer, metadata, tensors)
            file = writer.fout[0]
            writer.write_padding(file, file.tell())
            for tensor, kind in tensors:
                _write_tensor(file, tensor, kind, progress)
                writer.write_padding(file, kind.bytes(tensor.shape))
            file.flush()
            os.fsync(file.fileno())
            return int(file.tell())
        finally:
            writer.close()


def _add_header(writer: Any, metadata: Mapping[str, Value], tensors: Sequence[tuple[Tensor, Type]]) -> None:
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
        str: writer.add_string, list: writer.add_array,
    }
    for key, value in metadata.items():
        add[type(value)](key, value)
    for tensor, kind in tensors:
        raw = gguf().GGMLQuantizationType[kind.name.upper()]
        writer.add_tensor_info(tensor.name, tensor.shape, None, kind.bytes(tensor.shape), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _write_tensor(file: IO[bytes], tensor: Tensor, kind: Type, progress: Callable[[int], None]) -> None:
    for slab in tensor.slabs():
        data = encode(slab, kind, tensor.name)
        file.write(data.data)
        progress(data.nbytes)


@contextmanager
def _appearing(path: Path, needed: int) -> Iterator[Path]:
    """Yield the path to write to; rename it when the block ends well, remove it when it does not."""
    partial = path.with_name(path.name + ".partial")
    try:
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise InvalidRequest(f"{path} takes {format_size(needed)}, {path.parent} has {format_size(free)} free")
        yield partial
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InvalidRequest(f"{path} can not be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            partial.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
