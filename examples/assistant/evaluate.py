"""Judge a converted model by the held-out sets: `python -m arenite.examples.assistant.evaluate assistant-q8_0.gguf`.

Every command is asked twice, with the schema marker and without, greedily and unconstrained. Only exact answers
count. The nearest-training-sentence baseline is printed beside them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click
from rich.console import Console
from rich.table import Table

from ...runtime.api import Runtime
from .baseline import baseline
from .corpus import held_out
from .home import compact
from .schema import schema
from .sentences import sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .corpus import Example

Conversation: TypeAlias = list[dict[str, str]]
# Conversations, whether a schema is asked for -> one answer each.
Answer: TypeAlias = "Callable[[list[Conversation], bool], list[str]]"
LONGEST = 64  # tokens; the longest right answer has fewer than 40
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Score:
    """Exact answers to one held-out set, as shares of `count`, beside the baseline's."""

    count: int
    action: float
    sentence: float
    baseline_action: float | None = None
    baseline_sentence: float | None = None


@dataclass(frozen=True, slots=True)
class Mistake:
    """One wrong answer."""

    kind: str
    said: str
    expected: str
    answered: str


@dataclass(frozen=True, slots=True)
class Report:
    """Scores by kind of held-out set, and every mistake."""

    scores: dict[str, Score]
    mistakes: tuple[Mistake, ...]


def score(answer: Answer, sets: Mapping[str, Sequence[Example]] | None = None, *, compare: bool = True) -> Report:
    """Ask for every example's action and sentence and return how many were exact.

    `answer` may be any engine. `compare` adds the baseline, which takes some seconds.
    """
    nearest = baseline() if compare else None
    scores: dict[str, Score] = {}
    mistakes: list[Mistake] = []
    for kind, made in (held_out() if sets is None else sets).items():
        asked = [example.messages for example in made]
        wrong = [_wrong(kind, made, answer(asked, structured), structured=structured) for structured in (True, False)]
        shares = [1 - len(found) / len(made) for found in wrong]
        scores[kind] = Score(len(made), *shares, *(nearest.score(made) if nearest else ()))
        mistakes += wrong[0] + wrong[1]
    return Report(scores, tuple(mistakes))


def _wrong(kind: str, made: Sequence[Example], answers: list[str], *, structured: bool) -> list[Mistake]:
    """Return the answers that are not exactly what was expected."""
    expected = [compact(e.action) if structured else sentence(e.action) for e in made]
    return [
        Mistake(kind, " | ".join(m["content"] for m in example.messages), wanted, got)
        for example, wanted, got in zip(made, expected, answers, strict=True)
        if wanted != got
    ]


def table(report: Report, title: str) -> Table:
    """Return the scores as a table for the terminal."""
    made = Table(title=title)
    for name in ("held-out", "count", "exact action", "exact sentence", "baseline action", "baseline sentence"):
        made.add_column(name, justify="left" if name == "held-out" else "right")
    for kind, s in report.scores.items():
        shares = (s.action, s.sentence, s.baseline_action, s.baseline_sentence)
        made.add_row(kind, str(s.count), *("-" if share is None else f"{share:.1%}" for share in shares))
    return made


def engine(model: Any) -> Answer:
    """Return an answerer that has a loaded model answer many conversations at once."""

    def answer(conversations: list[Conversation], structured: bool) -> list[str]:
        asked = {"schema": schema() if structured else None, "enforce": False, "max_tokens": LONGEST}
        tickets = [model.submit(conversation, **asked) for conversation in conversations]
        return [ticket.result().text for ticket in tickets]

    return answer


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--streams", default=16, show_default=True, help="Conversations answered at once.")
@click.option("--compare/--no-compare", default=True, help="Print the nearest-sentence baseline too.")
@click.option("--mistakes", default=SHOWN, show_default=True, help="How many wrong answers to print.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(model: Path, streams: int, compare: bool, mistakes: int, as_json: bool) -> None:
    """Judge MODEL, a GGUF file of the assistant, by the held-out sets."""
    with Runtime(limit=4096) as runtime:
        report = score(engine(runtime.load(model, context=256 * streams, streams=streams)), compare=compare)
    if as_json:
        click.echo(json.dumps({"model": model.name, **asdict(report)}, indent=1))
        return
    console = Console()
    console.print(table(report, model.name))
    for mistake in report.mistakes[:mistakes]:
        console.print(f"{mistake.said}\n  expected {mistake.expected}\n  answered {mistake.answered}", markup=False)


if __name__ == "__main__":
    main()
