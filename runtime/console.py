"""What every command of the command line shares: one-line errors, exit codes, sizes, progress bars.

Standard output carries the answer (or one JSON object); everything else goes to standard error.
Exit codes: 0 done, 1 failed, 2 usage, 78 bad configuration, 130 interrupted.  A value that an option can not have is
usage, whoever finds it (`usage`); 78 is for what stands in a configuration file.
"""

from __future__ import annotations

import codecs
import json
import os
import sys
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from .errors import ConfigError, Error, InvalidRequest
from .sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

USAGE, INTERRUPTED = 2, 130

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False, soft_wrap=True)


def check_size(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Check an option such as ``600MiB``, ``2GiB``, ``80%`` or ``auto``; it is kept as text (a callback of click)."""
    try:
        parse_size(value, whole=1 << 40)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    return value


@contextmanager
def usage() -> Iterator[None]:
    """Turn a refused value into wrong usage: what is checked in here came from the command line's options alone."""
    try:
        yield
    except (ConfigError, InvalidRequest) as error:
        raise click.UsageError(str(error), click.get_current_context(silent=True)) from None


def one_line(text: str) -> str:
    """Fold a message into one line, so that a log or an operator gets all of it at once."""
    return " ".join(text.split())


def run(group: click.Command, arguments: list[str] | None = None) -> int:
    """Run a command and return the exit code; every expected failure is one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # file names need not be text
            stream.reconfigure(errors="backslashreplace")
    try:
        result = group.main(arguments, prog_name="arenite", standalone_mode=False)
    except click.exceptions.Abort:
        code = INTERRUPTED
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:  # its message is the whole help: as it stands, not in one line
        click.echo(error.format_message(), err=True)
        code = error.exit_code
    except click.ClickException as error:
        where = f" (see `{error.ctx.command_path} --help`)" if isinstance(error, click.UsageError) and error.ctx else ""
        click.echo(f"arenite: {one_line(error.format_message())}{where}", err=True)
        code = error.exit_code
    except Error as error:
        click.echo(f"arenite: {one_line(str(error))}", err=True)
        code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (MemoryError, RecursionError, UnicodeError) as error:  # what no check before has caught
        click.echo(f"arenite: this input is too much ({type(error).__name__}): give less of it, or text", err=True)
        code = 1
    except OSError as error:  # a file or folder that somebody named
        click.echo(f"arenite: {one_line(f'{error.filename or error.strerror}: {error.strerror}')}", err=True)
        code = 1
    else:
        code = result if isinstance(result, int) else 0
    return code


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object and nothing else on standard output."""
    unicode = codecs.lookup(sys.stdout.encoding or "ascii").name.startswith("utf")
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=not unicode) + "\n")
    sys.stdout.flush()


@contextmanager
def byte_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar over ``total`` bytes on standard error while it is a terminal; call the result with bytes done."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True),
        TransferSpeedColumn(), TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
