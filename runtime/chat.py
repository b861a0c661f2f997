"""Messages become a prompt: chat templates as model files carry them, rendered in jinja2's sandbox.

The dialect is that of Hugging Face transformers (``apply_chat_template``): trimmed blocks, loop controls,
``raise_exception``, ``strftime_now``, ``tojson`` without HTML escapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import InvalidRequest

if TYPE_CHECKING:
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.runtime import Context

Message = Mapping[str, Any]
MAX_PROMPT = 16 << 20  # characters; a template that makes more of a request is broken


def check_messages(messages: object) -> Sequence[Message]:
    """Return the messages if each has a role and a content of text; InvalidRequest names the first that has not."""
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)) or not messages:
        raise InvalidRequest("messages: give a list of at least one {'role': ..., 'content': ...}")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidRequest(f"message {number} is {type(message).__name__}: give a mapping with role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise InvalidRequest(f"message {number} has no {key} of text: give {{'role': ..., 'content': ...}}")
    return messages


def render(
    template: str, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None,
    start_text: str = "", end_text: str = "",
) -> str:
    """Render a conversation up to where the assistant is to speak.

    ``schema``: given to the template as ``schema``; a template that knows it asks for an answer of that form.
    Raises InvalidRequest if the template refuses the conversation, or is broken itself.
    """
    try:
        return _joined(_compile(template).generate(
            messages=list(messages), schema=schema, add_generation_prompt=True, bos_token=start_text,
            eos_token=end_text, tools=None, documents=None,
        ))
    except TemplateError as error:
        raise InvalidRequest(f"the model's chat template refuses this: {error}") from None
    except Exception as error:  # noqa: BLE001 - the template is somebody else's program
        raise InvalidRequest(
            f"the model's chat template fails ({type(error).__name__}: {error}): send the prompt as raw text"
        ) from None


def _joined(pieces: Iterable[str]) -> str:
    """Join what a template says, piece by piece, up to what can still be a prompt."""
    found, length = [], 0
    for piece in pieces:
        found.append(piece)
        length += len(piece)
        if length > MAX_PROMPT:
            raise TemplateError(f"it makes more than {MAX_PROMPT:,} characters of this request")
    return "".join(found)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, in which a text can not be multiplied or padded beyond `MAX_PROMPT` either."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left * right``, ``left ** right`` or ``left % right`` unless the result would be huge."""
        if operator == "%":
            if isinstance(left, str) and ("*" in left or re.search(r"\d{6}", left)):
                raise TemplateError("a format with a width that is too large")
            return super().call_binop(context, operator, left, right)
        sizes = [len(side) if isinstance(side, Sequence) else abs(side) for side in (left, right)]
        if (sizes[0] > 1 and operator == "**" and sizes[1] > 64) or sizes[0] * sizes[1] > MAX_PROMPT:
            raise TemplateError(f"{operator} with a result that is too large")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """``{% generation %}``: marks the assistant's words for training; for a prompt it only shows its contents."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[Node]:
        """Return the statements inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().astimezone().strftime(pattern)
    return environment.from_string(template)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
