"""Ask many things at once, in one batch: ``python examples/many.py MODEL.gguf < questions.txt``."""

from __future__ import annotations

import sys

import arenite


def main(path: str, questions: list[str]) -> None:
    """Print each answer beside its question."""
    with arenite.Runtime() as runtime:
        model = runtime.load(path, streams=16, context=8192)
        tickets = [model.submit(question, max_tokens=64) for question in questions]
        for question, completion in zip(questions, arenite.wait_all(tickets), strict=True):
            print(f"{question}\t{completion.text}")
        print(f"allocations after the seal: {runtime.status().allocations_after_seal}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], [line.strip() for line in sys.stdin if line.strip()])
