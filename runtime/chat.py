"""Messages become a prompt: chat templates as model files carry them, rendered in jinja2's sandbox.

The dialect is that of Hugging Face transformers (``apply_chat_template``): trimmed blocks, loop controls,
``raise_exception``, ``strftime_now``, ``tojson`` without HTML escapes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import Extension

from .errors import InvalidRequest
from .sandbox import Sandbox, bounded, spend

if TYPE_CHECKING:
    from jinja2.nodes import Node
    from jinja2.parser import Parser

Message = Mapping[str, Any]
MAX_PROMPT = 16 << 20  # characters; a template that makes more of a request is broken
MAX_TEMPLATE = 1 << 20  # characters; compiling more takes seconds


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
    Raises InvalidRequest if the template refuses the conversation, is broken itself or has no end.
    """
    if len(template) > MAX_TEMPLATE:
        raise InvalidRequest(f"the model's chat template has {len(template):,} characters: send the prompt as raw text")
    try:
        compiled = _compile(template)
        with bounded():
            return _joined(compiled.generate(
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


class _Generation(Extension):
    """``{% generation %}``: marks the assistant's words for training; for a prompt it only shows its contents."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[Node]:
        """Return the statements inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().astimezone().strftime(pattern)
    return environment.compile_bounded(template)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:
    settings: dict[str, Any] = {"ensure_ascii": ensure_ascii, "separators": separators, "sort_keys": sort_keys}
    if indent is None and separators is None:
        return json.dumps(value, **settings)
    pieces = []
    for piece in json.JSONEncoder(indent=indent, **settings).iterencode(value):
        spend(len(piece))  # how much stands between the values is the template's choice
        pieces.append(piece)
    return "".join(pieces)
