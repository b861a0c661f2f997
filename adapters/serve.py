"""The command ``serve``."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from . import logs
from .notify import Notifier
from .service import serve as serving
from .settings import load

SYSTEM = Path("/etc/arenite/arenite.toml")


@click.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), default=SYSTEM, show_default=True,
              help="The settings file; examples/arenite.toml documents every key.")
def serve(config: Path) -> None:
    """Serve models to local and remote clients until SIGTERM; SIGHUP reads the settings anew.

    Exits with 78 if the settings are bad.  Logs go to standard error, or to the journal.
    """
    notifier = Notifier.take()  # first: no child process may speak for us
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    settings = load(config)
    logs.set_up(settings.log.level, prompts=settings.log.prompts)
    asyncio.run(serving(settings, config, notifier))
