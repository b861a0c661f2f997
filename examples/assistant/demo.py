"""The command ``demo``: the shipped assistant in a terminal, converted and quantized on the spot the first time."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from arenite.adapters.terminal import Conversation, Turn
from arenite.quantize import convert
from arenite.runtime import picture
from arenite.runtime.api import Runtime
from arenite.runtime.cli import arena_option, json_option
from arenite.runtime.console import print_json, stderr
from arenite.runtime.errors import Error

CHECKPOINT = Path(__file__).parent / "model"
SCHEMA = CHECKPOINT / "action.schema.json"
TYPE = "q8_0"
EXAMPLE = "turn on the kitchen light"
HINT = "Say what you want: lights, heating, locks, blinds, timers, media, sensors, the rover. Empty line: leave."


def cache_folder() -> Path:
    """Return where converted models are kept between runs: ``$XDG_CACHE_HOME/arenite`` or ``~/.cache/arenite``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "arenite"


def assistant(kind: str = TYPE) -> Path:
    """Return the assistant as a GGUF of type ``kind``; converted from the shipped checkpoint if it is not there yet."""
    digest = hashlib.sha256()
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"):
        digest.update((CHECKPOINT / name).read_bytes())
    path = cache_folder() / f"assistant-{digest.hexdigest()[:12]}-{kind}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f"{path.stem}-{os.getpid()}.gguf")  # several may start at once
        convert(CHECKPOINT, own, type=kind, force=True)
        own.replace(path)
    return path


@click.command()
@click.option("--once", metavar="TEXT", help="Answer one command and leave.")
@click.option("--quiet", is_flag=True, help="Do not show the arena at the end.")
@arena_option
@json_option
def demo(once: str | None, quiet: bool, arena: str, as_json: bool) -> int:
    """Talk to the assistant: it answers with a sentence, and with the JSON action that a device would carry out."""
    if as_json and once is None:
        raise click.UsageError("--json needs --once TEXT: it prints one object")
    path = assistant()
    schema: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    with Runtime(arena) as runtime:
        model = runtime.load(path, name="assistant", context=2048, streams=4)
        conversation = Conversation(model, schema)
        if once is not None:
            turn = conversation.say(once, _ignore if as_json else _show)
            _end(turn, as_json)
        else:
            _converse(conversation, as_json)
        if not quiet:
            stderr.print(picture.of_status(runtime.status()))
    return 0


def _converse(conversation: Conversation, as_json: bool) -> None:
    asking = sys.stdin.isatty()
    if asking:
        stderr.print(HINT)
    line = EXAMPLE if asking else _read(asking) or EXAMPLE
    if line == EXAMPLE:
        stderr.print(f"> {EXAMPLE}")
    while line:
        try:
            turn = conversation.say(line, _ignore if as_json else _show)
        except Error as error:
            click.echo(f"arenite: {error}", err=True)
        else:
            _end(turn, as_json)
        line = _read(asking)


def _read(asking: bool) -> str:
    """Return the next line that says something; empty at an empty line of a terminal, or at the end."""
    if asking:
        sys.stderr.write("> ")
        sys.stderr.flush()
    return sys.stdin.readline().strip()


def _ignore(_piece: str) -> None:
    """Take a piece that is shown later, in JSON."""


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _end(turn: Turn, as_json: bool) -> None:
    """Print what is due after the sentence was shown: the action, or everything as JSON."""
    if as_json:
        print_json({
            "sentence": turn.sentence.text, "action": turn.action,
            "first_token_ms": round(1e3 * turn.sentence.usage.first_token_s, 3),
            "total_ms": round(1e3 * max(turn.sentence.usage.total_s, turn.answer.usage.total_s), 3),
        })
        return
    sys.stdout.write("\n" + (turn.answer.text if turn.action is not None else "(no action)") + "\n")
    sys.stdout.flush()
