"""The command ``run``, with ``--connect``: the runtime's own command where that is not given."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from ..runtime import cli
from ..runtime.console import print_json

OVER_THE_WIRE = {"model", "prompt", "connect", "raw", "schema", "max_tokens", "temperature", "seed", "stop", "quiet",
                 "as_json"}


def _run(connect: str | None, **settings: Any) -> Any:
    context = click.get_current_context()
    if connect is None:
        return context.invoke(cli.run, **settings)
    for name in settings:
        if name not in OVER_THE_WIRE and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} is the service's own business: leave it out", context)
    _ask(connect, settings)
    return None


def _ask(url: str, settings: dict[str, Any]) -> None:
    """Ask a service, print the pieces as they come, or the whole as JSON; Ctrl-C cancels."""
    from .client import connect as connected  # noqa: PLC0415 - a run without a service does not wait for ZeroMQ

    model, as_json = settings["model"], settings["as_json"]
    asked = {name: settings[name] for name in ("raw", "max_tokens", "temperature", "seed", "stop")}
    schema, text = cli.read_schema(settings["schema"]), cli.read_prompt(settings["prompt"])
    with connected(url, name="arenite-run") as client, client.submit(text, model=model, schema=schema, **asked) as mine:
        if not as_json:
            for piece in mine:
                click.echo(piece, nl=False)
            click.echo()
        completion = mine.result()
    if as_json:
        print_json(cli.as_object(model, completion))


run = click.Command(
    "run", callback=_run, help=cli.run.help, params=[
        *cli.run.params,
        click.Option(["--connect"], metavar="URL", help="Ask a service (ipc:///path, tcp://host:port): MODEL is its "
                                                        "name there."),
    ],
)
