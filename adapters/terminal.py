"""A conversation in a terminal: lines in, streamed sentences and JSON actions out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..runtime.errors import BadAnswer, ContextOverflow

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime.api import Model
    from ..runtime.ticket import Completion

MAX_ANSWER = 96  # tokens; the longest action takes about half of it


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: what was said aloud, and the action, or None if the model gave no JSON."""

    sentence: Completion
    answer: Completion
    action: dict[str, Any] | None


@dataclass(slots=True)
class Conversation:
    """Keeps the messages of one device, so that "and the bedroom too" is understood.

    ``turns`` exchanges are remembered; older ones are forgotten, and all of them when they no longer fit.
    """

    model: Model
    schema: dict[str, Any]
    turns: int = 4
    _messages: list[dict[str, str]] = field(default_factory=list)

    def say(self, text: str, show: Callable[[str], None]) -> Turn:
        """Ask for the sentence and for the action at once, in one batch; ``show`` gets the sentence as it comes."""
        try:
            return self._ask(text, show)
        except ContextOverflow:
            if not self._messages:
                raise
            self.forget()
            return self._ask(text, show)

    def _ask(self, text: str, show: Callable[[str], None]) -> Turn:
        messages = [*self._messages, {"role": "user", "content": text}]
        with (
            self.model.submit(messages, max_tokens=MAX_ANSWER) as spoken,
            self.model.submit(messages, max_tokens=MAX_ANSWER, schema=self.schema) as acted,
        ):
            for piece in spoken:
                show(piece)
            sentence, answer = spoken.result(), acted.result()
        messages.append({"role": "assistant", "content": sentence.text})
        self._messages = messages[-2 * self.turns:]
        return Turn(sentence, answer, _action(answer))

    def forget(self) -> None:
        """Start over."""
        self._messages.clear()


def _action(answer: Completion) -> dict[str, Any] | None:
    try:
        action = answer.json()
    except BadAnswer:
        return None
    return action if isinstance(action, dict) else None
