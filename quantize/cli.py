"""``arenite convert``."""

from __future__ import annotations

from pathlib import Path

import click

from ..runtime import console
from ..runtime.sizes import format_size
from . import conversion
from .gguf.types import TYPES


@click.command("convert")
@click.argument("source")
@click.option("--to", "target", type=click.Choice(["gguf"]), default="gguf", show_default=True, help="Format to write.")
@click.option("--type", "kind", type=click.Choice(list(TYPES)), default=conversion.DEFAULT_TYPE, show_default=True,
              help="Type of the weights.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write.  [default: SOURCE-TYPE.gguf, here]")
@click.option("--pre", metavar="NAME", help="llama.cpp's name for how the tokenizer cuts words, if not recognised.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def convert(
    source: str, target: str, kind: str, out: Path | None, pre: str | None, *, force: bool, as_json: bool
) -> None:
    """Convert a Hugging Face checkpoint, the folder SOURCE, into a file that arenite runs."""
    path = out or Path(f"{Path(source).resolve().name}-{kind}.{target}")
    conversion.check_output(path, force=force)
    plan = conversion.plan(source, kind, pre)
    with console.byte_progress("converting", plan.bytes) as progress:
        done = plan.run(path, progress)
    if as_json:
        console.print_json(done.as_json())
        return
    for warning in done.warnings:
        click.echo(f"arenite: {warning}", err=True)
    tensors = ", ".join(f"{count} {name}" for name, count in done.tensors.items())
    click.echo(f"{done.path}: {format_size(done.bytes)}, tensors: {tensors}, {done.seconds:.1f} s")
