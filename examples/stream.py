"""Stream one answer: ``python examples/stream.py MODEL.gguf "a prompt"``."""

from __future__ import annotations

import sys

import arenite


def main(path: str, prompt: str) -> None:
    """Print the answer as it comes, then what it took."""
    with arenite.Runtime() as runtime:
        model = runtime.load(path)
        ticket = model.stream(prompt, max_tokens=200)
        for piece in ticket:
            print(piece, end="", flush=True)
        usage = ticket.result().usage
        print(f"\n[{usage.answer_tokens} tokens, the first after {1e3 * usage.first_token_s:.0f} ms]")


if __name__ == "__main__":
    main(*sys.argv[1:3])
