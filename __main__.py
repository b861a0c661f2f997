"""The command line: ``arenite`` and ``python -m arenite``.  Each command lives in the folder that does its work.

A command's module is imported when the command is called, so ``--help`` does not wait for libllama.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from arenite.runtime import console

COMMANDS = {
    "bench": ("arenite.runtime.bench", "Speed against a raw llama.cpp loop, in one run."),
    "convert": ("arenite.quantize.cli", "Turn a Hugging Face checkpoint into a GGUF."),
    "demo": ("arenite.examples.assistant.demo", "Talk to the assistant that ships with arenite."),
    "doctor": ("arenite.runtime.doctor", "What works on this machine, and what to do about the rest."),
    "plan": ("arenite.runtime.cli", "What a model will take of the arena, before it is loaded."),
    "run": ("arenite.adapters.run", "Answer one prompt, here or at a service."),
    "serve": ("arenite.adapters.serve", "Serve models to clients: the service."),
    "top": ("arenite.adapters.top", "What a running service does."),
}


class _Commands(click.Group):
    """The commands above, each imported when it is asked for."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="arenite", prog_name="arenite")
def cli() -> None:
    """Quantized models on edge boxes, inside one fixed memory arena.

    Exit codes: 0 done, 1 failed, 2 wrong usage (values of options too), 78 bad configuration file, 130 interrupted.
    """


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(console.run(cli))


if __name__ == "__main__":
    main()
