"""A file is not trusted: before its first load a child process opens it, with limits and without its weights.

Damaged files abort libllama (measured: 4 of 150 with flipped header bits).  So one clean helper process imports
llama_cpp once and forks per file; the fork loads with ``no_alloc``, makes a context and reports what it found: the
model's facts and, byte by byte, the buffers that a real load will ask for.  A signal, a timeout or a refusal becomes
BadModel with libllama's own last line.  The same report is the memory plan, so a plan costs no weights either.

::

    Prober (any thread) --JSON line--> helper (this module as __main__) --fork--> one child per file
                        <--JSON line--                                  <--pipe-- line 1: facts, line 2: needs

The needs come from a C++ map that is read by its layout.  Where that is another one, the child may die of it; it has
told the facts before, so the file is not blamed and the needs count as unknown.
"""

from __future__ import annotations

import contextlib
import ctypes as C  # noqa: N812 - as in the ggml module
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .. import spawn
from ..arena import KV, OUTPUTS, SCRATCH, STAGING, WEIGHTS, Need
from ..config import NULL_MODEL, ModelOptions
from ..errors import BadModel, EngineClosed, EngineFailed, ModelNotFound, UnsupportedModel
from .base import ModelInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

IDLE_S = 5.0
MAGIC = b"GGUF"
MAPPED = "mapped weights"
UPLOAD_BUFFERS = 4 << 20  # bytes of pinned memory through which libllama sends weights to a GPU
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may take: seconds, seconds of CPU, and bytes of addresses above what the helper has mapped.

    The largest vocabularies take a few hundred MiB.
    """

    wall_s: float = 60.0
    cpu_s: int = 60
    address_space: int = 8 << 30


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Report:
    """What a child found: the model's facts, the buffers a load will ask for, and bytes that will lie elsewhere.

    No ``needs`` at all: they are unknown.  ``splits``: parts that a step's graph falls into, because of devices that
    can not compute some operation; 1 or 2 where a model lies on one device.
    """

    info: ModelInfo
    needs: tuple[Need, ...]
    outside: dict[str, int]
    splits: int = 1


class Prober:
    """Keeps the helper process and remembers what it found, by the file's identity and the options.

    One at a time: callers wait for each other.  The helper starts with a question and leaves when none came for a
    while, so that a box that serves keeps no second process in memory.

    ``accounts``: whether libllama's accounts of its buffers may be read, by a layout that was checked.
    """

    def __init__(self, limits: Limits = LIMITS, *, accounts: bool = True) -> None:
        self._limits, self._accounts = limits, accounts
        self._closed = False
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[str] | None = None
        self._known: dict[tuple[Any, ...], Report] = {}

    def examine(self, options: ModelOptions, threads: int) -> Report:
        """Return the report on ``options.path``.

        Raises ModelNotFound if there is no such file, BadModel if it is not a sound GGUF that libllama accepts,
        EngineClosed after `close`.
        """
        options = options if options.batch else options.settled()
        key = (*_identity(options.path), options)
        with self._lock:
            if key not in self._known:
                self._known[key] = self._ask(options, threads)
            return self._known[key]

    def _ask(self, options: ModelOptions, threads: int) -> Report:
        absolute = replace(options, path=str(Path(options.path).absolute()))
        question = {
            "options": asdict(absolute), "threads": threads, "accounts": self._accounts, "limits": asdict(self._limits),
        }
        line = json.dumps(question) + "\n"
        answer = self._talk(line) or self._talk(line)  # a second time: the helper may just have left, being idle
        if answer is None:
            raise EngineFailed("the process that examines model files ended unexpectedly: try again")
        if "unsupported" in answer:
            raise UnsupportedModel(answer["unsupported"])
        if "reason" in answer:
            raise BadModel(f"{options.path} is not a model that can be run", answer["reason"])
        needs = tuple(Need(options.name, kind, size, place) for kind, size, place in answer["needs"])
        return Report(ModelInfo(**answer["info"]), needs, answer["outside"], answer.get("splits", 1))

    def _talk(self, line: str) -> dict[str, Any] | None:
        """Send a line to the helper, started if need be, and return its answer; None if it is gone."""
        if self._closed:
            raise EngineClosed("the runtime is closed: make a new one")
        if self._helper is None or self._helper.poll() is not None:
            self._stop()
            self._helper = _start_helper()
        stdin, stdout = self._helper.stdin, self._helper.stdout
        assert stdin is not None  # noqa: S101 - Popen was given pipes
        assert stdout is not None  # noqa: S101 - the same
        try:
            stdin.write(line)
            stdin.flush()
            if not select.select([stdout], [], [], self._limits.wall_s + 10)[0]:
                raise TimeoutError
            answer: dict[str, Any] = json.loads(stdout.readline())
        except (OSError, ValueError):
            self._stop()
            return None
        return answer

    def _stop(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.kill()
            with contextlib.suppress(OSError):
                helper.communicate()

    def close(self) -> None:
        """End the helper for good; who waits for its answer gets EngineClosed."""
        self._closed = True
        while not self._lock.acquire(timeout=0.02):
            if (helper := self._helper) is not None:
                helper.kill()
        self._stop()
        self._lock.release()


def _identity(path: str) -> tuple[int, int, int, int]:
    """Return device, inode, size and time of change; raises for what is plainly no GGUF file."""
    if path == NULL_MODEL:
        raise UnsupportedModel(f"{NULL_MODEL} is a fake that has no file and takes no arena: give a GGUF file")
    try:
        if Path(path).exists() and not Path(path).is_dir() and not Path(path).is_file():
            raise BadModel(f"{path} is no ordinary file: give a GGUF file")
        with Path(path).open("rb") as file:
            magic, facts = file.read(4), os.fstat(file.fileno())
    except IsADirectoryError:
        raise BadModel(f"{path} is a folder: give a GGUF file, or convert it with `arenite convert`") from None
    except PermissionError:
        raise ModelNotFound(f"{path} can not be read: check its permissions") from None
    except (OSError, ValueError):
        raise ModelNotFound(f"there is no file {path}: check the path") from None
    if magic != MAGIC:
        raise BadModel(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _start_helper() -> subprocess.Popen[str]:
    """Start `serve` in a clean process: nothing inherited but three pipes, the very same package imported."""
    return spawn.start(
        __name__, "serve", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        encoding="utf-8",
    )


# ---- in the helper ----


def serve() -> None:
    """Answer one JSON line per question until standard input ends, or is silent for `IDLE_S` seconds."""
    from . import libllama  # noqa: F401, PLC0415 - imported once, here, so that every fork finds it loaded

    while select.select([sys.stdin], [], [], IDLE_S)[0] and (line := sys.stdin.readline()):
        sys.stdout.write(json.dumps(_fork_and_wait(json.loads(line))) + "\n")
        sys.stdout.flush()


def _fork_and_wait(question: dict[str, Any]) -> dict[str, Any]:
    answer_read, answer_write = os.pipe()
    said_read, said_write = os.pipe()
    child, limits = os.fork(), Limits(**question["limits"])
    if child == 0:
        os.close(answer_read)
        os.close(said_read)
        _child(question, limits, answer_write, said_write)
    os.close(answer_write)
    os.close(said_write)
    answer, said, in_time = _collect(answer_read, said_read, limits.wall_s)
    if not in_time:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    found: dict[str, Any] = {}
    for line in answer.splitlines():
        with contextlib.suppress(ValueError):  # the child died in the middle of it
            found |= json.loads(line)
    if found:
        return {"needs": [], "outside": {}, **found}
    last = _last_line(said)
    if not in_time:
        return {"reason": f"libllama did not finish within {limits.wall_s:g} s ({last})"}
    if os.WIFSIGNALED(status):
        return {"reason": f"libllama was ended by {signal.Signals(os.WTERMSIG(status)).name} ({last})"}
    return {"reason": last}


def _collect(answer: int, said: int, seconds: float) -> tuple[bytes, bytes, bool]:
    """Read both pipes to their end, for so many seconds at most; keeps the tail of what was said."""
    texts, until = {answer: b"", said: b""}, time.monotonic() + seconds
    open_pipes = [answer, said]
    while open_pipes and (left := until - time.monotonic()) > 0:
        for pipe in select.select(open_pipes, [], [], left)[0]:
            if data := os.read(pipe, 1 << 16):
                texts[pipe] = (texts[pipe] + data)[-(4 << 20):]
            else:
                open_pipes.remove(pipe)
    os.close(answer)
    os.close(said)
    return texts[answer], texts[said], not open_pipes


def _last_line(said: bytes) -> str:
    lines = [" ".join(line.split()) for line in said.decode("utf-8", "replace").splitlines()]
    return next((line for line in reversed(lines) if line), "no reason was given")


def _child(question: dict[str, Any], limits: Limits, answer: int, said: int) -> None:
    """Open the file under limits and leave.  Never returns."""
    code = 1
    try:
        C.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(said, 1)  # the helper's own standard output carries answers and nothing else
        os.dup2(said, 2)  # a native abort speaks on standard error
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        if question["options"]["gpus"]:
            pass  # CUDA reserves addresses for all memory of the machine and its GPUs
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # no driver is started that this file has no need of
            roof = pages * resource.getpagesize() + limits.address_space
            resource.setrlimit(resource.RLIMIT_AS, (roof, roof))
        resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 1))  # SIGXCPU says why
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for found in _examine(ModelOptions(**question["options"]), question["threads"], accounts=question["accounts"]):
            os.write(answer, json.dumps(found).encode() + b"\n")
        code = 0
    except UnsupportedModel as error:
        os.write(answer, json.dumps({"unsupported": str(error)}).encode())
    except BadModel as error:
        os.write(answer, json.dumps({"reason": error.reason or str(error)}).encode())
    except MemoryError:
        os.write(2, b"the file asks for more memory than a model of its size can need\n")
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear one line
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _examine(options: ModelOptions, threads: int, *, accounts: bool) -> Iterator[dict[str, Any]]:
    """Yield the facts, and then, if the accounts can be read, the needs."""
    from . import ggml, libllama  # noqa: PLC0415 - only the helper's child needs it

    log = ggml.log()
    model = libllama.open_model(options, no_alloc=True)
    context = libllama.open_context(model, options, threads)
    info = libllama.read_info(model, context, options, threads)
    splits = [int(pair[0]) for pair in re.findall(r"splits = (\d+)( / \d+)?", log.text())]  # of the largest step
    log.clear()
    vocabulary = libllama.LlamaVocabulary(model)
    vocabulary.encode("probe 123", special=True, start=True)
    for token in range(0, info.vocabulary, max(1, info.vocabulary // 64)):
        vocabulary.piece(token)
    yield {"info": asdict(info), "splits": max(splits, default=1)}
    if not accounts or not (rows := breakdown(context)):
        return
    hosts = ("CPU", "CPU_REPACK")
    mapped = options.weights == "mapped"
    left = {row.name for row in rows if mapped and (row.name == "CPU" or row.name.endswith("_Host"))}
    outside = {MAPPED: sum(row.weights for row in rows if row.name in left)} if mapped else {}
    needs = [(WEIGHTS, row.weights, row.name) for row in rows if row.name not in left]
    # libllama puts the output vectors where the device of the output layer likes to write them: pinned memory of a GPU
    pinned = next((row.name for row in rows if row.name.endswith("_Host")), "CPU")
    needs += [(OUTPUTS, 4 * info.vocabulary * (options.slots + 1), pinned)]
    needs += [(KV, row.cache, row.name) for row in rows]
    needs += [(KV, 1, row.name) for row in rows if row.cache] * (libllama.caches(model) - 1)  # each is rounded up
    needs += [(SCRATCH, row.scratch, row.name) for row in rows]
    if pinned != "CPU" and not mapped:  # room that outputs and scratch take only after the weights are there
        later = sum(size for kind, size, place in needs if place == pinned and kind in (OUTPUTS, SCRATCH))
        needs += [(STAGING, UPLOAD_BUFFERS - later, pinned)] if later < UPLOAD_BUFFERS else []
    placed = [(kind, size, "CPU" if place in hosts else place) for kind, size, place in needs if size]
    yield {"needs": placed, "outside": outside}


@dataclass(frozen=True, slots=True)
class Row:
    """Bytes that one buffer type will hold."""

    name: str
    weights: int
    cache: int
    scratch: int


class _Node(C.Structure):
    """A node of libstdc++'s ``std::map<ggml_backend_buffer_type_t, llama_memory_breakdown_data>``."""

    _fields_: ClassVar = [
        ("colour", C.c_int), ("parent", C.c_void_p), ("left", C.c_void_p), ("right", C.c_void_p),
        ("key", C.c_void_p), ("weights", C.c_size_t), ("cache", C.c_size_t), ("scratch", C.c_size_t),
    ]


class _Map(C.Structure):
    """The map itself; returned by value, which for its size means through memory on every ABI that we run on."""

    _fields_: ClassVar = [
        ("compare", C.c_void_p), ("colour", C.c_int), ("root", C.c_void_p), ("leftmost", C.c_void_p),
        ("rightmost", C.c_void_p), ("count", C.c_size_t),
    ]


def breakdown(context: int) -> list[Row]:
    """Return what each buffer type holds, as libllama accounts for it, in the order in which it allocates.

    Empty if the accounts can not be read.
    The only exact source is a C++ function that returns a map by value (``llama_get_memory_breakdown``,
    llama-ext.h), so its tree is walked here.  Only ever called in a child that may die of it.
    """
    from . import ggml  # noqa: PLC0415 - only the helper's child needs it

    try:
        function = ggml.lib["_Z26llama_get_memory_breakdownPK13llama_context"]
    except AttributeError:  # another version of the library
        return []
    function.restype, function.argtypes = _Map, [C.c_void_p]
    found: _Map = function(context)
    rows: list[Row] = []
    left = [found.root]
    while left and len(rows) <= found.count:
        if address := left.pop():
            node = _Node.from_address(address)
            name = ggml.lib.ggml_backend_buft_name(node.key).decode()
            rows.append(Row(name, node.weights, node.cache, node.scratch))
            left += [node.left, node.right]
    return sorted(rows, key=lambda row: row.name) if len(rows) == found.count else []
