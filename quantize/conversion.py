"""A checkpoint becomes a GGUF file: first a plan (cheap: no weight is read), then one pass over the weights."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import InvalidRequest, UnsupportedModel
from .architectures import Tensor, Value, find_architecture, list_tensors
from .bpe import FILE as BPE_FILE
from .bpe import read_bpe
from .extra import gguf
from .gguf.types import F16, TYPES, Type, choose_type
from .gguf.writer import write
from .source import Source, open_source
from .spm import FILE as SPM_FILE
from .spm import read_spm
from .vocabulary import Special, Vocabulary, chat_template

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

DEFAULT_TYPE = "q8_0"
"""Half of f16 and hardly distinguishable from it."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion made.

    ``bytes``: size of the file.  ``tensors``: how many of each type.  ``seconds``: from opening the file until it is on
    the disk under its name.
    """

    path: Path
    bytes: int
    tensors: dict[str, int]
    seconds: float
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the same as plain values for JSON."""
        return {
            "path": str(self.path), "bytes": self.bytes, "tensors": self.tensors,
            "seconds": round(self.seconds, 3), "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """All that will be written, except for the weights: those are read while writing."""

    architecture: str
    metadata: dict[str, Value]
    tensors: list[tuple[Tensor, Type]]
    warnings: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Return the bytes of all tensors together."""
        return sum(kind.bytes(tensor.shape) for tensor, kind in self.tensors)

    def run(self, out: Path, progress: Callable[[int], None] = lambda _: None) -> Converted:
        """Write the file; ``progress`` hears bytes as they are written and ``Plan.bytes`` in all.

        Raises BadModel for weights that are not finite and InvalidRequest if ``out`` can not be written; nothing is
        left behind then.
        """
        start = time.monotonic()
        size = write(out, self.architecture, self.metadata, self.tensors, progress)
        kinds = Counter(kind.name for _, kind in self.tensors)
        return Converted(out, size, dict(kinds), time.monotonic() - start, self.warnings)


def plan(source: str | os.PathLike[str], kind: str = DEFAULT_TYPE, pre: str | None = None) -> Plan:
    """Plan the conversion of a checkpoint folder to GGUF.

    ``kind``: f32, f16, q8_0 or q4_0.  ``pre``: llama.cpp's name for how the tokenizer cuts words, for one that is not
    recognised.  Raises ModelNotFound, BadModel, UnsupportedModel, InvalidRequest (``kind``) and MissingDependency.
    """
    if kind not in TYPES:
        raise InvalidRequest(f"{kind!r} is not a type: choose one of {', '.join(TYPES)}")
    opened = open_source(source)
    architecture = find_architecture(opened.config)
    tensors = list_tensors(architecture, opened)
    typed = [(tensor, choose_type(tensor.name, tensor.shape, TYPES[kind])) for tensor in tensors]
    sizes = architecture.sizes(opened.config)
    vocabulary, special = _vocabulary(opened, pre)
    name = architecture.gguf_name
    metadata: dict[str, Value] = {
        **_general(opened, TYPES[kind]),
        **{f"{name}.{key}": value for key, value in architecture.metadata(opened.config, sizes).items()},
        **vocabulary.metadata(special, chat_template(opened)),
    }
    return Plan(name, metadata, typed, (*_fallbacks(typed, TYPES[kind]), *vocabulary.warnings))


def _general(source: Source, kind: Type) -> dict[str, Value]:
    found: dict[str, Value] = {
        "general.type": "model",
        "general.name": source.folder.resolve().name,
        "general.file_type": kind.file_type,
        "general.quantization_version": int(gguf().GGML_QUANT_VERSION),
    }
    if (text := source.license()) is not None:
        found["general.license"] = text
    return found


def _vocabulary(source: Source, pre: str | None) -> tuple[Vocabulary, Special]:
    if (source.folder / SPM_FILE).is_file():
        return read_spm(source)
    if (source.folder / BPE_FILE).is_file():
        return read_bpe(source, pre)
    raise UnsupportedModel(f"{source.folder} has neither {BPE_FILE} nor {SPM_FILE}: no other tokenizer converts")


def _fallbacks(tensors: list[tuple[Tensor, Type]], asked: Type) -> list[str]:
    odd = [tensor for tensor, kind in tensors if kind is F16 and asked is not F16]
    if not odd:
        return []
    which = f"{odd[0].name} has" if len(odd) == 1 else f"{odd[0].name} and {len(odd) - 1} more have"
    return [f"{which} rows that are no multiple of {asked.block} values: stored as f16"]


def convert(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, type: str = DEFAULT_TYPE,  # noqa: A002  the option's name
    pre: str | None = None, force: bool = False, progress: Callable[[int], None] = lambda _: None,
) -> Converted:
    """Convert a Hugging Face checkpoint folder to the GGUF file ``out``.

    ``type``: f32, f16, q8_0 or q4_0.  ``pre``: see ``plan``.  ``force``: replace an existing file.  ``progress`` hears
    bytes as they are written.  Memory stays at a few slabs of 4 MiB beside the vocabulary, whatever the size of the
    model.  Raises ModelNotFound, BadModel, UnsupportedModel, InvalidRequest (type, output) and MissingDependency;
    leaves nothing behind then.
    """
    path = Path(out)
    check_output(path, force=force)
    return plan(source, type, pre).run(path, progress)


def check_output(path: Path, *, force: bool) -> None:
    """Raise InvalidRequest if a file of that name may not be written."""
    try:
        if path.is_dir():
            raise InvalidRequest(f"{path} is a folder: name a file in it")
        if not path.parent.is_dir():
            raise InvalidRequest(f"{path} can not be written: there is no folder {path.parent}")
        if path.exists() and not force:
            raise InvalidRequest(f"{path} exists already: remove it, choose another name or say --force")
    except OSError as error:
        raise InvalidRequest(f"{path} can not be written: {error.strerror or error}") from None
