"""Forms become masks: what may come next in an answer, and what must.  llguidance does it; this holds its reins.

    Compiler   one per model: forms to grammars, on a thread of its own, the last ones kept
    Grammar    one compiled form of one model
    Matcher    one per sequence: how far the answer has come

Nothing here lets a token through that the form forbids: whatever goes wrong raises.  Compiling and masking release
the GIL; forced runs and `Matcher.accept` hold it.
"""

from __future__ import annotations

import copy
import json
import queue
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits

from .errors import BadSchema, Busy, EngineClosed, EngineFailed, Error, GrammarError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from .backends.base import Vocabulary
    from .forms import Form

LIMITS: dict[str, Any] = {
    "max_grammar_size": 200_000,
    "initial_lexer_fuel": 100_000,  # bounds a forced run, too: 50,000 bytes in 30 ms, with the GIL held
    "step_lexer_fuel": 50_000,  # what one token may cost: the engine waits for it
    "max_lexer_states": 16_384,  # kept with the grammar
    "verbose_errors": False,
}
STACK = 64 << 20  # bytes of address space for a compile, which recurses: twice what `forms` lets through
LIMIT_S = 5.0
KEPT = 32  # grammars
WAITING = 64  # compiles that may wait
OVERRUN = 2  # compiles past their limit that may go on in the background
MAX_REASON = 300  # characters of llguidance's own
RENEW = 1_000  # answers after which a grammar is compiled anew, to drop the states that it gathered
CLOSED = "the model was closed: load it again"
_STACK_SIZE = threading.Lock()  # the setting is the process's: one thread at a time borrows it


class Matcher:
    """How far one answer has come.  Only the engine's thread may call it.

    Once a method has raised GrammarError all do: the answer can not be continued.
    """

    def __init__(self, grammar: Grammar, matcher: LLMatcher) -> None:
        self._grammar, self._matcher = grammar, matcher

    def forced(self) -> list[int]:
        """Return the tokens that must come next, as the tokenizer gives them for the forced text; often none.

        They are not accepted yet.  A token that text after them might change is left out.
        """
        if self._grammar.closed.is_set():
            raise EngineClosed(CLOSED)  # llguidance would ask the freed tokenizer
        tokens = self._matcher.compute_ff_tokens()
        self._check()
        return _before_end(tokens, self._grammar.masks.ends)

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Set the logits of all tokens that may not come next to -inf, in place; shape [vocabulary].

        The model's end tokens may come where the answer may end, all of them, and nowhere else.
        """
        possible = self._grammar.masks.apply(self._matcher, logits)
        self._check()
        if not possible:
            self._fail("no token may come next")

    def accept(self, tokens: Sequence[int]) -> None:
        """Take the next tokens of the answer, one or many; end tokens are not part of it.

        Raises GrammarError if one of them is forbidden.
        """
        if tokens:
            self._matcher.consume_tokens(list(tokens))
            self._check()

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        complete = self._matcher.is_accepting()
        self._check()
        return complete

    @property
    def stopped(self) -> bool:
        """Whether the answer must end here."""
        stopped = self._matcher.is_stopped()
        self._check()
        return stopped

    def copy(self) -> Matcher:
        """Return a matcher that stands where this one stands and goes its own way."""
        return Matcher(self._grammar, self._matcher.deep_copy())

    def _check(self) -> None:
        if self._matcher.is_error():
            self._fail(_reason(self._matcher))

    def _fail(self, reason: str) -> None:
        self._grammar.spent = True
        raise GrammarError(f"the answer can not go on within its form ({reason}): simplify the form")


class Grammar:
    """One form, compiled for one model.

    Its matchers share the states that the form has shown so far, which makes masks cheap; ``worn`` says that they
    are too many, or that one of them passed a limit, and the form is to be compiled anew.
    """

    def __init__(self, form: Form, matcher: LLMatcher, masks: _Masks, closed: threading.Event) -> None:
        self.form, self.masks, self.closed = form, masks, closed
        self.spent, self._uses = False, 0
        self._start = matcher

    @property
    def worn(self) -> bool:
        """Whether the next request should get a new one."""
        return self.spent or self._uses >= RENEW

    def matcher(self) -> Matcher:
        """Return a matcher at the start of an answer."""
        self._uses += 1
        return Matcher(self, self._start.deep_copy())


class _Masks:
    """Bit masks to logits, in buffers that all matchers of a model share: they are of one thread.

    Eight bits at a time choose a row of 0 and -inf from ``table``; adding beats all ways of choosing (33 us at a
    vocabulary of 152k, whatever the mask).
    """

    def __init__(self, size: int, ends: Sequence[int]) -> None:
        self.ends = frozenset(ends)
        self._bits = np.zeros((size + 31) // 32, np.uint32)
        self._octets = self._bits.view(np.uint8)
        self._end_bits = np.zeros_like(self._bits)
        for end in ends:
            self._end_bits[end // 32] |= np.uint32(1 << end % 32)
        self._other_bits = ~self._end_bits
        octets = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        self._table = np.where(octets, 0, -np.inf).astype(np.float32)
        self._rows = np.empty((len(self._octets), 8), np.float32)

    def apply(self, matcher: LLMatcher, logits: NDArray[np.float32]) -> bool:
        """Mask the logits; returns whether anything is allowed."""
        bits = self._bits
        bits.fill(0)
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        np.bitwise_and(bits, self._other_bits, out=bits)
        if matcher.is_accepting():
            np.bitwise_or(bits, self._end_bits, out=bits)
        np.take(self._table, self._octets, axis=0, out=self._rows, mode="clip")
        with np.errstate(invalid="ignore"):  # an infinite logit becomes NaN, which the sampler refuses
            logits += self._rows.reshape(-1)[: len(logits)]
        return bool(bits.any())


class Compiler:
    """Makes grammars for one model.  Any thread may use it; close it before the model.

    A compile past ``limit_s`` is refused, and again whenever the same form comes back.  It can not be interrupted:
    it goes on in the background, and with `OVERRUN` of them unknown forms are turned away as Busy.
    """

    def __init__(self, vocabulary: Vocabulary, *, limit_s: float = LIMIT_S, kept: int = KEPT) -> None:
        self._vocabulary, self._limit_s, self._kept = vocabulary, limit_s, kept
        self._known: OrderedDict[Form, Grammar | BadSchema] = OrderedDict()
        self._jobs: queue.Queue[Form | None] = queue.Queue()
        self._waiting: dict[Form, list[Future[Grammar]]] = {}  # who waits for each form in the queue or under way
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._overrun: list[threading.Thread] = []
        self._masks: _Masks | None = None

    def compile(self, form: Form) -> Grammar:
        """Return the form's grammar, compiled if it is not known; see `submit`."""
        return self.submit(form).result()

    def submit(self, form: Form, *, accepted: bool = False) -> Future[Grammar]:
        """Return a promise of the form's grammar, kept already if it is known.

        ``accepted``: its request was accepted by another engine, so it waits however many there are.

        The future raises BadSchema if the form does not compile within the limits, Busy if too much waits,
        EngineClosed after `close`.
        """
        future: Future[Grammar] = Future()
        with self._lock:
            known = self._known.get(form)
            if self._closed.is_set():
                _settle(future, EngineClosed(CLOSED))
            elif known is not None and not (isinstance(known, Grammar) and known.worn):
                self._known.move_to_end(form)
                _settle(future, known)
            elif form in self._waiting:
                self._waiting[form].append(future)
            elif len(self._waiting) >= WAITING and not accepted:
                _settle(future, Busy(f"{WAITING} forms wait to be compiled", retry_ms=int(1e3 * self._limit_s)))
            else:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._serve, name="arenite-forms", daemon=True)
                    self._thread.start()
                self._waiting[form] = [future]
                self._jobs.put(form)
        return future

    def close(self) -> None:
        """Refuse what waits and what comes; returns once no compile uses the model.  Closing twice is harmless.

        Waits ``limit_s`` for each compile that goes on in the background: at exit it would crash.
        """
        with self._lock:
            self._closed.set()
            self._jobs.put(None)
        if self._thread is not None:
            self._thread.join()
        for thread in self._overrun:
            thread.join(self._limit_s)

    def _serve(self) -> None:
        while (form := self._jobs.get()) is not None:
            outcome: Grammar | Error
            try:
                outcome = self._find(form)
            except Error as error:
                outcome = error
            except Exception as error:  # noqa: BLE001 - whoever waits gets it
                outcome = EngineFailed(f"compiling failed with {type(error).__name__}: {error}")
            with self._lock:
                waiting = self._waiting.pop(form)
            for future in waiting:
                if future.set_running_or_notify_cancel():
                    _settle(future, outcome)

    def _find(self, form: Form) -> Grammar | BadSchema:
        """Return what is known of a form or becomes so now."""
        known = self._known.get(form)
        if known is not None and not (isinstance(known, Grammar) and known.worn):
            return known
        if self._closed.is_set():
            raise EngineClosed(CLOSED)
        try:
            known = self._build(form)
        except BadSchema as error:
            known = error
        with self._lock:
            self._known[form] = known
            self._known.move_to_end(form)
            while len(self._known) > self._kept:
                self._known.popitem(last=False)
        return known

    def _build(self, form: Form) -> Grammar:
        """Compile on another thread, which has the stack for it, and wait no longer than the limit."""
        self._overrun = [thread for thread in self._overrun if thread.is_alive()]
        if len(self._overrun) >= OVERRUN:
            raise Busy("forms that take too long are still being compiled", retry_ms=int(2e3 * self._limit_s))
        tokenizer = self._vocabulary.matcher_tokenizer()
        if self._masks is None:
            self._masks = _Masks(tokenizer.vocab_size, tokenizer.eos_tokens)
        built: Future[LLMatcher] = Future()

        def work() -> None:
            try:
                built.set_result(_compile(form, tokenizer))
            except BaseException as error:  # noqa: BLE001 - a panic inside llguidance is no Exception
                built.set_exception(error if isinstance(error, Error) else _refusal(form, f"it failed: {error}"))

        thread = _start(work)
        try:
            matcher = built.result(self._limit_s)
        except TimeoutError:
            self._overrun.append(thread)
            raise BadSchema(f"the {form.kind} takes longer than {self._limit_s:g} s to compile: simplify it") from None
        if self._closed.is_set():
            raise EngineClosed(CLOSED)
        _try_first_step(form, matcher.deep_copy(), self._masks.ends)
        return Grammar(form, matcher, self._masks, self._closed)


def _compile(form: Form, tokenizer: Any) -> LLMatcher:
    if form.kind == "regex":
        text = LLMatcher.grammar_from_regex(form.text)
    elif form.kind == "lark":  # bare, a text that begins with a brace would be read as something else
        text = json.dumps({"grammars": [{"lark_grammar": form.text}]})
    else:
        text = f'{{"grammars":[{{"json_schema":{form.text}}}]}}'
    matcher = LLMatcher(tokenizer, text, log_level=0, limits=LLParserLimits(**LIMITS))
    if matcher.is_error():
        raise _refusal(form, _reason(matcher))
    return matcher


def _try_first_step(form: Form, matcher: LLMatcher, ends: frozenset[int]) -> None:
    """Raise BadSchema if not even the first tokens of an answer can be told."""
    matcher.consume_tokens(_before_end(matcher.compute_ff_tokens(), ends))
    if not matcher.is_stopped():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise _refusal(form, _reason(matcher))


def _before_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Cut a run at an end token: a grammar may name it, but then the mask decides."""
    return tokens if ends.isdisjoint(tokens) else tokens[: min(map(tokens.index, ends.intersection(tokens)))]


def _refusal(form: Form, reason: str) -> BadSchema:
    return BadSchema(f"the {form.kind} can not be compiled: {reason}")


def _reason(matcher: LLMatcher) -> str:
    """Return the line that counts of what llguidance says: it goes on with a picture of its state."""
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()] or ["no reason given"]
    line = next((line for line in lines if line.startswith("error: ")), lines[0]).removeprefix("error: ")
    if line.startswith("NoExtension"):
        return "no text fits it"
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}..."


def _start(work: Callable[[], None]) -> threading.Thread:
    """Start a thread with a stack of `STACK` bytes."""
    thread = threading.Thread(target=work, name="arenite-form", daemon=True)
    with _STACK_SIZE:
        before = threading.stack_size(STACK)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    return thread


def _settle(future: Future[Grammar], outcome: Grammar | Error) -> None:
    if isinstance(outcome, Grammar):
        future.set_result(outcome)
    else:
        future.set_exception(copy.copy(outcome))  # a traceback of its own for each who waits
