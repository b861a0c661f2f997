"""The same with asyncio, with a time limit: ``python examples/tasks.py MODEL.gguf "a prompt"``."""

from __future__ import annotations

import asyncio
import sys

import arenite


async def talk(model: arenite.Model, prompt: str) -> None:
    """Stream one answer; if it takes longer than five seconds, keep what there is."""
    with model.stream(prompt, max_tokens=200) as ticket:
        try:
            async with asyncio.timeout(5):
                async for piece in ticket:
                    print(piece, end="", flush=True)
        except TimeoutError:
            ticket.cancel()
            print(" ...", end="")
        print(f"\n[{(await ticket).reason}]")


def main(path: str, prompt: str) -> None:
    """Run one task."""
    with arenite.Runtime() as runtime:
        asyncio.run(talk(runtime.load(path), prompt))


if __name__ == "__main__":
    main(*sys.argv[1:3])
