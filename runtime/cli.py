"""The commands ``run`` and ``plan``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import machine, picture
from .api import Model, Runtime, make_request
from .arena import HOST, Plan
from .backends.loader import UNREADABLE, Loader
from .config import KV_TYPES, ModelOptions
from .console import check_size, print_json, stderr, stdout, usage
from .errors import MACHINE, BadSchema, EngineFailed, InvalidRequest
from .sizes import parse_size
from .typed import form_of

if TYPE_CHECKING:
    from .ticket import Completion

MAX_INPUT = 64 << 20  # bytes of a prompt on standard input
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _layers(_context: click.Context, _parameter: click.Parameter, value: str) -> str | int:
    return int(value) if value.isdecimal() else value


def _names(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how a model is loaded; they arrive as keyword arguments of `ModelOptions`."""
    options: list[Decorator] = [
        click.option("--context", type=int, default=4096, show_default=True,
                     help="Tokens of KV cache, for all streams."),
        click.option("--batch", type=int, default=0, help="Tokens that one step may compute; default: as many as pay."),
        click.option("--threads", type=int, default=0, help="Default: one per physical core."),
        click.option("--kv-type", type=click.Choice(KV_TYPES), default="f16", show_default=True),
        click.option("--weights", type=click.Choice(["arena", "mapped"]), default="arena", show_default=True,
                     help="Copied into the arena, or left in the page cache."),
        click.option("--flash-attention/--no-flash-attention", default=True, show_default=True),
        click.option("--gpu-layers", callback=_layers, default="auto", show_default=True,
                     help="Layers on a GPU: a number, all, or auto: as many as fit."),
        click.option("--gpus", callback=_names, help="GPUs to use, by comma, such as CUDA0,CUDA1. Default: the first."),
        click.option("--gpu-kv/--no-gpu-kv", default=True, show_default=True,
                     help="Keys and values of layers on a GPU lie there."),
        click.option("--require-gpu", is_flag=True, help="Fail rather than compute a layer on the CPU."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


streams_option = click.option("--streams", type=int, default=8, show_default=True,
                              help="Requests that run at the same time.")
arena_option = click.option("--arena", callback=check_size, default="auto", show_default=True,
                            help="Size of the arena: 600MiB, 2GiB, 80% of the memory, auto.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--raw", is_flag=True, help="Continue the text as it stands, without the chat template.")
@click.option("--schema", type=click.Path(dir_okay=False), help="JSON schema of the answer, handed to the template.")
@click.option("--max-tokens", type=int, help="Default: to the end of the context.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the most likely token.")
@click.option("--top-k", type=int, default=40, show_default=True)
@click.option("--top-p", type=float, default=0.95, show_default=True)
@click.option("--min-p", type=float, default=0.05, show_default=True)
@click.option("--repeat-penalty", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, help="Default: drawn, and shown with --json.")
@click.option("--stop", multiple=True, help="Text that ends the answer; may be repeated.")
@click.option("--quiet", is_flag=True, help="Do not show the arena at the end.")
@arena_option
@streams_option
@model_options
@json_option
def run(model: str, prompt: str | None, raw: bool, schema: str | None, quiet: bool, arena: str, as_json: bool,
        **settings: Any) -> None:
    """Answer PROMPT with MODEL, a GGUF file; the answer is printed as it comes.

    With a chat template the prompt is a user message, unless --raw; without one it is continued as it stands.
    A PROMPT of - (or none, when standard input is not a terminal) is read from standard input.
    """
    asked = {name: settings.pop(name) for name in
             ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "stop")}
    with usage():
        ModelOptions.parse(model, settings)
        make_request((0,), dict(asked))
        asked["schema"] = read_schema(schema)
    text = read_prompt(prompt)
    with Runtime(arena) as runtime:
        loaded = runtime.load(model, **settings)
        try:
            completion = answer(loaded, text, {**asked, "raw": raw}, show=not as_json)
        except BadSchema as error:  # what only the compiler finds
            raise click.BadParameter(f"{schema}: {error}", param_hint="--schema") from None
        if as_json:
            print_json(as_object(loaded.name, completion))
        if not quiet:
            stderr.print(picture.of_status(runtime.status()))


def answer(model: Model, text: str, asked: dict[str, Any], *, show: bool) -> Completion:
    """Ask, print the pieces as they come if ``show``, and return the whole; Ctrl-C cancels."""
    with model.submit(text, **asked) as ticket:
        if show:
            for piece in ticket:
                sys.stdout.write(piece)
                sys.stdout.flush()
            sys.stdout.write("\n")
        completion: Completion = ticket.result()
        return completion


def as_object(model: str, completion: Completion) -> dict[str, Any]:
    """Return what ``--json`` prints of an answer."""
    usage = completion.usage
    return {
        "model": model, "text": completion.text, "reason": completion.reason,
        "prompt_tokens": usage.prompt_tokens, "answer_tokens": usage.answer_tokens, "seed": usage.seed,
        "first_token_ms": round(1e3 * usage.first_token_s, 3), "total_ms": round(1e3 * usage.total_s, 3),
    }


def read_prompt(prompt: str | None) -> str:
    """Return the prompt, from standard input where it says so."""
    if sys.stdin is None and prompt in {None, "-"}:
        raise click.UsageError("give a PROMPT: standard input is closed")
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        raw = sys.stdin.buffer.read(MAX_INPUT + 1)
        if len(raw) > MAX_INPUT:
            raise InvalidRequest(f"standard input holds more than {MAX_INPUT:,} bytes: no context holds such a prompt")
        return raw.decode("utf-8", "replace")
    if prompt is None:
        raise click.UsageError("give a PROMPT, or - and the text on standard input")
    return prompt


def read_schema(path: str | None) -> dict[str, Any] | None:
    """Read a JSON schema from a file.  Raises click's BadParameter if there is none in it."""
    if path is None:
        return None
    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(schema, dict):
            raise BadSchema("holds no JSON object")
        form_of(schema)
    except (OSError, ValueError, RecursionError, BadSchema) as error:
        raise click.BadParameter(f"{path}: {error}", param_hint="--schema") from None
    return schema


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@arena_option
@streams_option
@model_options
@click.option("--svg", type=click.Path(dir_okay=False), help="Write the picture to a file as well.")
@json_option
def plan(models: tuple[str, ...], arena: str, as_json: bool, svg: str | None, **settings: Any) -> None:
    """Show, byte by byte, what MODEL... will take of the arena.  Loads nothing.

    With --arena SIZE it fails, with the numbers, if they do not fit.
    """
    with usage():
        options = [ModelOptions.parse(model, settings) for model in models]
    loader = Loader("auto")
    try:
        plans = [loader.plan(each) for each in options]
    finally:
        loader.close()
    whole, names = combine(plans), [Path(model).name for model in models]
    if not all(each.needs for each in plans):
        raise EngineFailed(f"nothing can be planned: {loader.degraded or UNREADABLE}; see `arenite doctor`")
    size, host = parse_size(arena, machine.total_memory()), whole.at(HOST)
    drawing = picture.of_plan(whole, size)
    if svg is not None:
        Path(svg).write_text(
            picture.as_svg(drawing, f"arenite plan {' '.join(names)}"), encoding="utf-8", errors="backslashreplace"
        )
    if as_json:
        print_json({
            "needed_bytes": host.size, "arena_bytes": size, "fits": size is None or host.size <= size,
            "needs": [
                {
                    "model": need.tenant, "memory": "host" if need.place == HOST else need.place, "for": need.kind,
                    "bytes": need.size,
                }
                for need in whole.needs
            ],
            "outside": dict(whole.outside),
        })
    else:
        stdout.print(drawing)
    host.check(machine.available_memory() if size is None else size, MACHINE if size is None else "the arena")


def combine(plans: list[Plan]) -> Plan:
    """Return one plan for several models."""
    outside = picture.add_up(one.outside for one in plans)
    return Plan(tuple(need for one in plans for need in one.needs), plans[0].alignment, outside)
