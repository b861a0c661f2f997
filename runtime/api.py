"""What a program imports: a Runtime that owns the memory, Models in it, and the answers they give."""

from __future__ import annotations

import contextlib
import operator
import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Self, SupportsIndex, cast

from . import chat, remote
from .backends.loader import Loader
from .config import ModelOptions
from .engine import Engine
from .errors import ConfigError, EngineError, InvalidRequest
from .forms import Form
from .remote import Isolation
from .request import Request, Sampling
from .sampling import real_seed, seed_of_copy
from .scheduler import check_fits
from .session import Session, Sessions
from .ticket import NOTHING, Ticket
from .typed import form_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from .arena import Plan
    from .backends.base import ModelInfo
    from .engine import Loaded
    from .events import Event
    from .stats import Status


SAMPLING = tuple(field.name for field in fields(Sampling))
_PLAIN = ("max_tokens", "ignore_end", "priority", "deadline", "key", "policy")
_OTHERS = ("stop", "schema", "enforce", "raw", "fallback", "session")
MAX_COPIES = 64
LONGEST_PIECE = 256  # characters; no vocabulary has longer pieces that are common


class Runtime:
    """One engine and its memory.

    ::

        with arenite.Runtime(arena="2GiB") as runtime:
            llm = runtime.load("assistant.gguf", context=4096, streams=8)
            for piece in llm.stream("Turn on the kitchen light"):
                print(piece, end="")

    ``arena``: bytes, ``2GiB``, ``80%`` of the machine's memory, or ``auto``: as much as the first model needs.
    ``gpu_arena``: the same of each GPU that ggml sees.
    ``limit``: requests that may be unfinished at a time.
    ``isolated``: the engine runs in a process of its own.  If that dies, another goes on with every answer where it
    stood: what was given is never changed, repeated or lost (`remote`).  An `Isolation` says how it is watched.

    Raises ConfigError for a size that is none and ArenaTooSmall if the machine has not that much.  A second Runtime
    of the same process shares the arena of the first: loading raises ArenaBusy if its plan does not fit beside it.
    """

    def __init__(
        self, arena: str | int = "auto", *, gpu_arena: str | int = "auto", limit: int = 1024,
        isolated: bool | Isolation = False,
    ) -> None:
        self._tickets: dict[int, Ticket] = {}
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigError(f"limit is {limit!r}: give a whole number of at least 1")
        rules = isolated if isinstance(isolated, Isolation) else Isolation()
        _check_flags(isolated=isolated is rules or isolated)
        dispatch = _Dispatch(self._tickets)
        self._engine = (  # of one interface
            cast("Engine", remote.Engine(arena, gpu_arena, dispatch, limit=limit, isolation=rules)) if isolated
            else Engine(lambda: Loader(arena, gpu_arena), dispatch, limit=limit)
        )
        self._finalizer = weakref.finalize(self, _abandon, self._engine)

    def load(self, path: str | os.PathLike[str], **settings: Any) -> Model:
        """Load a GGUF file (or ``null:``, a fake) and return it ready to answer.

        ``settings``: see `ModelOptions` (context, streams, batch, threads, kv_type, remember, admission and others).
        Raises ConfigError, ModelNotFound, BadModel, and before anything is loaded ArenaTooSmall or ArenaBusy.
        """
        options = ModelOptions.parse(_text(path), settings)
        return Model(self, self._engine, self._engine.load(options))

    def plan(self, path: str | os.PathLike[str], **settings: Any) -> Plan:
        """Return, byte by byte, what `load` would take; loads nothing.  Raises as `load` does."""
        return self._engine.plan(ModelOptions.parse(_text(path), settings))

    def status(self) -> Status:
        """Return the state of arena and models, frozen."""
        return self._engine.status()

    def close(self) -> None:
        """End all requests with EngineClosed, free models and arena.  Closing twice is harmless."""
        self._engine.close()
        self._finalizer.detach()  # last: if the wait was interrupted, the end of the program tries again

    def submit(
        self, model: int, request: Request, *, decode: Callable[[str], Any] | None = None, fallback: Any = NOTHING
    ) -> Ticket:
        """Hand a request of tokens to the engine; the models' own methods are the usual door."""
        number = self._engine.next_ticket()
        ticket = self._tickets[number] = Ticket(
            number, self._engine.cancel, priority=request.priority, deadline=request.deadline, key=request.key,
            policy=request.policy, decode=decode, fallback=fallback,
        )
        try:
            self._engine.submit(number, model, request)
        except BaseException:
            self._tickets.pop(number, None)
            raise
        return ticket

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _abandon(engine: Engine) -> None:
    """End the engine of a Runtime that nobody holds any more, or at exit.

    A collection may happen on any thread, the engine's own included: only the main thread waits for the end.
    """
    engine.stop()
    if threading.current_thread() is threading.main_thread():
        engine.close()


class _Dispatch:
    """Hands the engine's events to their tickets.  Holds the table, not the Runtime, so that one can be collected."""

    def __init__(self, tickets: dict[int, Ticket]) -> None:
        self._tickets = tickets

    def __call__(self, events: list[Event]) -> None:
        for event in events:
            ticket = self._tickets.get(event.ticket)
            if ticket is None:  # its submission was interrupted: nobody holds it
                continue
            ticket.deliver(event)
            if ticket.done:
                self._tickets.pop(event.ticket, None)


class Model:
    """A loaded model.  Any thread may use it; many requests run at once, up to its ``streams``.

    A prompt is a text, a list of tokens, or a list of messages ``{"role": ..., "content": ...}``.  With a chat
    template a text counts as one user message, unless ``raw=True``; without one it is continued as it stands.

    Further arguments of every method:

    ``max_tokens``  None: up to the end of the context
    ``stop``        a text or several
    ``schema``      the form of the answer: a JSON schema (mapping or text), a `Form` (regex, Lark grammar), or a Python
                    type (dataclass, Enum, pydantic or msgspec model, annotation): then the result is such an object.
                    A JSON schema is shown to the chat template as well.  ``enforce=False`` leaves it at that
    ``priority``    ``control``, ``interactive`` or ``background``
    ``deadline``    seconds from now; then the answer ends with what there is (reason ``deadline``), or the result is
                    ``fallback`` if that is given
    ``key``, ``policy``   what a new request does to unfinished ones with its key: ``latest`` ends them, ``queue``
                    waits, ``reject`` gives way
    ``session``     the name of a session (`session`): the prompt is its next turn
    and the fields of `Sampling`: temperature, top_k, top_p, min_p, repeat_penalty, frequency_penalty,
    presence_penalty, penalty_window, seed, logit_bias, logprobs.  The default is greedy.

    Errors: InvalidRequest, BadSchema, ContextOverflow, UnknownSession and Busy at once; DeadlineMissed, KeyTaken,
    BadSchema (what only the compiler finds), EngineClosed and EngineFailed when waiting.
    """

    def __init__(self, runtime: Runtime, engine: Engine, loaded: Loaded) -> None:
        self._runtime, self._engine, self._number = runtime, engine, loaded.number
        self._vocabulary = loaded.vocabulary
        self.info: ModelInfo = loaded.info
        self.sessions = Sessions(self)

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.info.name

    def submit(self, prompt: Any, **settings: Any) -> Ticket:
        """Send a request and return at once with its `Ticket`."""
        if (name := settings.pop("session", None)) is not None:
            return self.sessions.get(name).submit(prompt, **settings)
        return self._send(*self._request(prompt, settings))

    def submit_many(self, prompt: Any, n: int, **settings: Any) -> list[Ticket]:
        """Ask for ``n`` different answers to one prompt, which is computed once; the first has the request's seed.

        The seeds of the others follow from it (`sampling.seed_of_copy`), so each can be asked for again alone.
        """
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_COPIES:
            raise InvalidRequest(f"n is {n!r}: give a whole number from 1 to {MAX_COPIES}")
        request, decode, fallback = self._request(prompt, settings)
        seed = real_seed(request.sampling.seed)
        rules = [replace(request.sampling, seed=seed_of_copy(seed, copy)) for copy in range(n)]
        return [self._send(replace(request, sampling=rule), decode, fallback) for rule in rules]

    def _request(
        self, prompt: Any, settings: dict[str, Any]
    ) -> tuple[Request, Callable[[str], Any] | None, Any]:
        """Build a request from loose settings; returns it, what decodes its answer, and the fallback."""
        raw, schema, enforce = settings.pop("raw", False), settings.pop("schema", None), settings.pop("enforce", True)
        fallback = settings.pop("fallback", NOTHING)
        _check_flags(raw=raw, enforce=enforce)
        form, decode, shown = None, None, None
        if schema is not None:
            form, decode = form_of(schema)
            shown = form.schema
            if isinstance(schema, (Mapping, str, Form)):
                decode = None  # the caller asked for text of a form, and gets the whole Completion
        tokens = self._tokens(prompt, raw=raw, schema=shown)
        request = make_request(tokens, settings, form if enforce else None)
        check_fits(self.info, request)
        return request, decode, fallback

    def _send(self, request: Request, decode: Callable[[str], Any] | None, fallback: Any) -> Ticket:
        return self._runtime.submit(self._number, request, decode=decode, fallback=fallback)

    def session(self, name: str = "", **settings: Any) -> Session:
        """Return the session of that name, made if there is none; without a name a new one.  See `Session`."""
        return self.sessions.open(name, **settings)

    def forget(self, tokens: Sequence[int]) -> None:
        """Drop what the cache remembers of sequences that begin with these tokens, or are a head of them."""
        self._engine.forget(self._number, self._checked(tokens))

    def generate(self, prompt: Any, **settings: Any) -> Any:
        """Answer a prompt; waits for the whole answer."""
        return self.submit(prompt, **settings).result()

    def stream(self, prompt: Any, **settings: Any) -> Ticket:
        """Answer a prompt piece by piece: ``for piece in ...`` or ``async for piece in ...``."""
        return self.submit(prompt, **settings)

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Any:
        """Answer a conversation.  Raises InvalidRequest if the model has no chat template."""
        if self.info.chat_template is None:
            raise InvalidRequest(f"{self.name} has no chat template: use generate with a plain text")
        return self.generate(chat.check_messages(messages), **settings)

    async def agenerate(self, prompt: Any, **settings: Any) -> Any:
        """Answer a prompt, awaiting the whole answer; cancelled with the task that awaits it."""
        return await self.submit(prompt, **settings)

    async def achat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Any:
        """Answer a conversation, awaiting the whole answer."""
        if self.info.chat_template is None:
            raise InvalidRequest(f"{self.name} has no chat template: use agenerate with a plain text")
        return await self.submit(chat.check_messages(messages), **settings)

    def tokenize(self, prompt: Any, *, raw: bool = False, schema: Any = None) -> list[int]:
        """Return the tokens that a prompt becomes, chat template included."""
        _check_flags(raw=raw)
        return self._tokens(prompt, raw=raw, schema=None if schema is None else form_of(schema)[0].schema)

    def _tokens(self, prompt: Any, *, raw: bool, schema: Mapping[str, Any] | None) -> list[int]:
        if (tokens := whole_numbers(prompt)) is not None:
            return self._check_tokens(tokens)
        template = self.info.chat_template
        if isinstance(prompt, str):
            self._check_length(prompt)
            if raw or template is None:
                return self._vocabulary.encode(prompt, special=raw, start=True)
            prompt = [{"role": "user", "content": prompt}]
        messages = chat.check_messages(prompt)
        if template is None:
            raise InvalidRequest(f"{self.name} has no chat template: give the prompt as one text")
        text = chat.render(
            template, messages, schema=schema, start_text=self.info.start_text, end_text=self.info.end_text
        )
        self._check_length(text)
        has_start = bool(self.info.start_text) and text.startswith(self.info.start_text)
        return self._vocabulary.encode(text, special=True, start=not has_start)

    def detokenize(self, tokens: Iterable[SupportsIndex]) -> str:
        """Return the text of tokens; bytes that are not UTF-8 become U+FFFD."""
        pieces = (self._vocabulary.piece(token) for token in self._checked(tokens))
        return b"".join(pieces).decode("utf-8", "replace")

    def _check_length(self, text: str) -> None:
        """Refuse what can not fit whatever its tokens are, before a tokenizer spends its time and stack on it."""
        if len(text) > LONGEST_PIECE * self.info.context:
            raise InvalidRequest(
                f"the prompt has {len(text):,} characters: a context of {self.info.context} tokens never holds them"
            )

    def _checked(self, tokens: Iterable[SupportsIndex]) -> list[int]:
        if (numbers := whole_numbers(tokens)) is None:
            raise InvalidRequest("the tokens are none: give a list of whole numbers")
        return self._check_tokens(numbers)

    def _check_tokens(self, tokens: list[int]) -> list[int]:
        for token in tokens:
            if not 0 <= token < self.info.vocabulary:
                last = self.info.vocabulary - 1
                raise InvalidRequest(f"token {token} is not in the vocabulary: they run from 0 to {last}")
        return tokens

    def close(self) -> None:
        """Unload: running requests end with EngineClosed, the bytes go back to the arena.  Twice is harmless."""
        with contextlib.suppress(EngineError):  # the runtime is closed, and the model with it
            self._engine.unload(self._number)


def make_request(tokens: Sequence[int], settings: dict[str, Any], form: Form | None = None) -> Request:
    """Build a request from loose settings; an unknown one raises InvalidRequest with the known names."""
    rules = {name: settings.pop(name) for name in SAMPLING if name in settings}
    stop = settings.pop("stop", ())
    known = {name: settings.pop(name) for name in _PLAIN if name in settings}
    if settings:
        names = ", ".join(sorted({*SAMPLING, *_PLAIN, *_OTHERS}))
        raise InvalidRequest(f"unknown setting {min(settings)!r}: known are {names}")
    if stop is not None and not isinstance(stop, Iterable):
        raise InvalidRequest(f"stop is {stop!r}: give a text or several")
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    return Request(tuple(tokens), sampling=Sampling(**rules), stop=stops, form=form, **known)


def whole_numbers(value: Any) -> list[int] | None:
    """Return tokens, given in any sequence and as any kind of whole number (numpy's too); None for anything else."""
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
        return None
    numbers = list(value)
    if any(isinstance(number, bool) for number in numbers):
        return None
    try:
        return [operator.index(number) for number in numbers]
    except TypeError:
        return None


def _check_flags(**flags: Any) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name} is {value!r}: give True or False")


def _text(path: str | os.PathLike[str]) -> str:
    return str(path)
