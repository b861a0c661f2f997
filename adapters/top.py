"""The command ``top``: what a service tells of itself, as text."""

from __future__ import annotations

import json
from typing import Any

import click
import zmq

from ..runtime.errors import EngineFailed
from ..runtime.sizes import format_size
from .status import TOPICS

STATUS = "ipc:///run/arenite/status.sock"
CLEAR = "\x1b[H\x1b[2J"


@click.command()
@click.argument("url", default=STATUS)
@click.option("--once", is_flag=True, help="Print the state once and end.")
@click.option("--wait", type=float, default=5.0, show_default=True, help="Seconds to wait for the first word.")
def top(url: str, once: bool, wait: float) -> None:
    """Show what the service does whose status is told at URL; Ctrl-C ends."""
    with zmq.Context() as context, context.socket(zmq.SUB) as listener:
        listener.linger = 0
        listener.subscribe("")
        try:
            listener.connect(url)
        except zmq.ZMQError as error:
            raise click.UsageError(f"{url}: {error}: give zeromq.status of the service") from None
        told: dict[str, Any] = {}
        while True:
            if not listener.poll(None if set(TOPICS) <= set(told) else int(1e3 * wait)):
                raise EngineFailed(f"{url} says nothing within {wait:g} s: is the service running?")
            topic, raw = listener.recv_multipart()
            told[topic.decode()] = json.loads(raw)
            if set(TOPICS) <= set(told):
                click.echo(text(told) if once else CLEAR + text(told))
                if once:
                    return


def text(told: dict[str, Any]) -> str:
    """Return what was told as lines."""
    state, health = told["state"], told["health"]
    engine, link, counters = health.get("engine", {}), health["link"], health["counters"]
    lines = [f"{state['node']} is {state['state']}" + (f": {state['reason']}" if state["reason"] else "")
             + f"   up {health['uptime_s']} s"]
    if (arena := health.get("arena")) is not None:
        lines.append(f"arena     {format_size(arena['size'])}, free {format_size(arena['free'])}")
    lines.append(f"engine    pid {engine.get('pid') or 'none'}, {format_size(engine.get('rss', 0))}, "
                 f"restarts {engine.get('restarts', 0)}")
    lines.append(f"requests  {health['unfinished']} unfinished, {health['queued']} wait, "
                 + ", ".join(f"{name} {count}" for name, count in counters.items()))
    lines.append(f"clients   {link['clients']}, {format_size(link['outbound'])} wait for them, "
                 f"dropped {link['dropped']}")
    facts = {model["id"]: model for model in health.get("models", [])}
    for model in told["models"]:
        now = facts.get(model["id"], {})
        lines.append(f"model     {model['id']}: {model['state']}" + (
            f", {now['running']} run, {now['waiting']} wait, {now['answer_tokens']} tokens" if now
            else f" {model.get('reason', '')}".rstrip()))
    return "\n".join(lines)
