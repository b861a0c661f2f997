"""Target T1 on random checkpoints in the shapes of real models: ``python -m arenite.benchmarks.t1``.

Speed does not depend on the values of weights, so nothing is downloaded: each shape is made once below ``build/``,
converted, and measured by ``arenite bench``, which runs a raw llama.cpp loop and our engine in turn.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import click

from ..quantize import convert
from ..runtime.console import byte_progress
from .shapes import SHAPES, make

FOLDER = Path("build") / "benchmarks"


def model(shape: str, kind: str) -> Path:
    """Return a GGUF of that shape and type, made if it is not there yet."""
    path = FOLDER / f"random-{shape}-{kind}.gguf"
    if not path.exists():
        checkpoint = FOLDER / f"random-{shape}"
        if not (checkpoint / "model.safetensors").exists():
            fresh = FOLDER / f"random-{shape}.partial"  # a name that nobody looks for, until it is whole
            with byte_progress(f"making {shape}", 2 * SHAPES[shape].parameters()) as progress:
                make(shape, fresh, progress=progress)
            shutil.rmtree(checkpoint, ignore_errors=True)
            fresh.rename(checkpoint)
        convert(checkpoint, path, type=kind)
    return path


@click.command()
@click.argument("shapes", nargs=-1, type=click.Choice(list(SHAPES)))
@click.option("--type", "kind", default="q4_0", show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--streams", default="1,4,16", show_default=True)
@click.option("--csv", "folder", default="benchmarks/results", show_default=True)
def main(shapes: tuple[str, ...], kind: str, repeats: int, streams: str, folder: str) -> None:
    """Measure SHAPES (default: 260k, 15M and 0.5B)."""
    for shape in shapes or ("260k", "15M", "0.5B"):
        path = model(shape, kind)
        subprocess.run(
            [sys.executable, "-m", "arenite", "bench", str(path), "--repeats", str(repeats), "--streams", streams,
             "--csv", folder], check=True,
        )


if __name__ == "__main__":
    main()
