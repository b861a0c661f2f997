"""Checkpoints and GGUF files made on the spot, once per test run; copy one before changing it."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from arenite.benchmarks import shapes
from arenite.quantize import convert

ODD = shapes.Shape(hidden=64, layers=2, heads=4, kv_heads=2, ffn=172, vocab=512, context=256)
"""As tiny, but the rows of one matrix are no multiple of 32."""


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="arenite-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def checkpoint(shape: str | shapes.Shape = "tiny", dtype: str = "f32", seed: int = 0) -> Path:
    """Return the folder of a random checkpoint."""
    return _make(shape, dtype, seed)


@functools.cache
def _make(shape: str | shapes.Shape, dtype: str, seed: int) -> Path:
    return shapes.make(shape, Path(tempfile.mkdtemp(dir=_folder())) / "random", seed, dtype)


def gguf_file(shape: str | shapes.Shape = "tiny", kind: str = "f32", dtype: str = "f32", seed: int = 0) -> Path:
    """Return a random checkpoint as GGUF file of a type."""
    source = checkpoint(shape, dtype, seed)
    out = source.parent / f"{kind}.gguf"
    return out if out.exists() else convert(source, out, type=kind).path


def copy(target: Path, **config: Any) -> Path:
    """Copy the tiny float32 checkpoint to ``target`` and change keys of its config.json (None removes one)."""
    shutil.copytree(checkpoint(), target)
    edit(target / "config.json", **config)
    return target


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object in a file (None removes one)."""
    values = json.loads(path.read_text("utf-8")) if path.exists() else {}
    values = {key: value for key, value in (values | changes).items() if value is not None}
    path.write_text(json.dumps(values, ensure_ascii=False), "utf-8")


def edit_weights(folder: Path, **changes: Any) -> None:
    """Change tensors (numpy arrays) of a checkpoint by name, with ``__`` for dots (None removes one)."""
    path = folder / "model.safetensors"
    values = load_file(path) | {name.replace("__", "."): value for name, value in changes.items()}
    save_file({name: value for name, value in values.items() if value is not None}, path)


def shard(folder: Path, files: int) -> None:
    """Split the weights of a checkpoint into several files with an index."""
    values = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index: dict[str, str] = {}
    for part in range(files):
        file = f"model-{part + 1:05d}-of-{files:05d}.safetensors"
        chosen = {name: value for at, (name, value) in enumerate(sorted(values.items())) if at % files == part}
        save_file(chosen, folder / file)
        index |= dict.fromkeys(chosen, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
