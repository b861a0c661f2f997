"""What people get wrong: one line that says what to do, the exit code of the design, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import arenite
from arenite.runtime.backends import probe
from arenite.runtime.backends.probe import Limits, Prober
from arenite.runtime.config import ModelOptions

from . import checkpoints

FLIPPED = 200


def command(
    *arguments: str, timeout: float = 120, text: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "arenite", *arguments], capture_output=True, text=True, timeout=timeout, check=False,
        input=text, env={**os.environ, **variables},
    )


def clean(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in an empty folder and a session of its own; neither may hold anything when it has ended."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-m", "arenite", *arguments]
        pipe, places = subprocess.PIPE, {"TMPDIR": folder, "XDG_CACHE_HOME": folder, "HOME": folder}
        with subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=folder, start_new_session=True,
                              env={**os.environ, **places}) as process:
            out, said = process.communicate(text, timeout=120)
        assert not list(Path(folder).iterdir())
    assert not in_session(process.pid)
    return subprocess.CompletedProcess(line, process.returncode, out, said)


def in_session(leader: int) -> list[str]:
    """Return the processes of a session that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended just now
            fields = path.read_text().rpartition(")")[2].split()  # state, parent, group, session, ...
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(path.parent.name)
    return found


def expect_refused(code: int, says: str, *arguments: str) -> None:
    done = clean(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("arenite: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def children(parent: int) -> list[int]:
    """Return the processes that ``parent``, which has one thread, waits for; ended ones included."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def tiny() -> str:
    return str(checkpoints.gguf_file("tiny", "f16"))


def damaged(folder: Path, raw: bytes, name: str = "damaged.gguf") -> str:
    path = folder / name
    path.write_bytes(raw)
    return str(path)


def patched(old: bytes, new: bytes) -> bytes:
    raw = Path(tiny()).read_bytes()
    assert len(old) == len(new)
    assert old in raw
    return raw.replace(old, new)


def test_files(tmp_path: Path) -> None:
    raw = Path(tiny()).read_bytes()
    expect_refused(1, "there is no file", "run", str(tmp_path / "none.gguf"), "hello")
    expect_refused(1, "is a folder", "run", str(tmp_path), "hello")
    expect_refused(1, "is not a GGUF file", "run", damaged(tmp_path, b"hello world" * 100), "hello")
    expect_refused(1, "is not a GGUF file", "plan", damaged(tmp_path, b""))
    expect_refused(1, "not a model that can be run", "run", damaged(tmp_path, raw[: len(raw) // 2]), "hello")
    expect_refused(1, "not a model that can be run", "run", damaged(tmp_path, raw[:100]), "hello")
    unknown = patched(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0llamb")
    expect_refused(1, "unknown model architecture", "run", damaged(tmp_path, unknown), "hello")


def test_usage() -> None:
    expect_refused(2, "--help", "run", tiny(), "hello", "--tempreature", "1")
    expect_refused(2, "--help", "run")
    expect_refused(2, "No such command", "rum")
    expect_refused(2, "is not a size", "run", tiny(), "hello", "--arena", "9" * 400)
    expect_refused(2, "2XiB", "run", tiny(), "hello", "--arena", "2XiB")
    expect_refused(2, "--kv-type", "run", tiny(), "hello", "--kv-type", "q9")


def test_values(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text("[]")
    expect_refused(2, "temperature is -1", "run", tiny(), "hello", "--temperature", "-1")
    expect_refused(2, "top_p", "run", tiny(), "hello", "--top-p", "7")
    expect_refused(2, "max_tokens", "run", tiny(), "hello", "--max-tokens", "0")
    expect_refused(2, "max_tokens is far outside", "run", tiny(), "hello", "--max-tokens", "9" * 400)
    expect_refused(1, "never holds them", "run", tiny(), "x" * 100_000, "--context", "256")
    expect_refused(1, "the context holds 256", "run", tiny(), "hello " * 400)
    expect_refused(1, "needs", "run", tiny(), "hello", "--arena", "100KiB")
    expect_refused(2, "context is 3", "run", tiny(), "hello", "--context", "3")
    expect_refused(2, "top_k is -1", "run", tiny(), "hello", "--top-k", "-1")
    expect_refused(2, "streams is 0", "plan", tiny(), "--streams", "0")
    expect_refused(2, "give numbers by comma", "bench", tiny(), "--streams", "x")
    expect_refused(2, "--tokens", "bench", tiny(), "--tokens", "1")
    expect_refused(2, "holds no JSON object", "run", tiny(), "hello", "--schema", str(schema))
    expect_refused(2, "--schema", "run", tiny(), "hello", "--schema", str(tmp_path / "none.json"))
    schema.write_text("[" * 200_000)
    expect_refused(2, "--schema", "run", tiny(), "hello", "--schema", str(schema))
    schema.write_text('{"type": "nothing"}')
    expect_refused(2, "--schema", "run", tiny(), "hello", "--schema", str(schema))


def test_the_fake_has_no_file_to_look_at() -> None:
    for name in ("plan", "bench"):
        expect_refused(1, "null: is a fake that has no file", name, "null:")


def test_a_name_that_is_not_utf8_is_shown_with_escapes(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/b\xff\xfe.gguf")
    Path(path).write_bytes(Path(tiny()).read_bytes())
    for how in ("utf-8:strict", "ascii:strict"):
        small = (path, "--context", "256", "--streams", "2", "--threads", "1")
        done = command("run", *small, "h\u00e9", "--max-tokens", "2", "--json", PYTHONIOENCODING=how)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["model"] == "b\udcff\udcfe"
        assert "b\\udcff" in done.stderr
        drawing = str(tmp_path / "a.svg")
        for arguments in ((), ("--json",), ("--svg", drawing)):
            done = command("plan", *small, *arguments, PYTHONIOENCODING=how)
            assert (done.returncode, done.stderr) == (0, "")
            assert "b\\udcff" in done.stdout
        assert "b\\udcff" in Path(drawing).read_text(encoding="utf-8")


def test_standard_input_without_an_end_or_closed_is_one_line() -> None:
    for line, code, says in (("yes | {} -", 1, "holds more than"), ("{} <&-", 2, "standard input is closed")):
        shell = line.format(f"{sys.executable} -m arenite run null:")
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_values_in_python() -> None:
    with arenite.Runtime() as runtime:
        for settings in ({"name": 5}, {"flash_attention": "yes"}, {"deterministic": 1}):
            with pytest.raises(arenite.ConfigError, match=f"{next(iter(settings))} is .*: give"):
                runtime.load("null:", **settings)
        model = runtime.load("null:", context=256, streams=1)
        for settings in ({"stop": 5}, {"raw": "yes"}, {"enforce": 1}):
            with pytest.raises(arenite.InvalidRequest, match=f"{next(iter(settings))} is .*: give"):
                model.submit("hello", **settings)
        with pytest.raises(arenite.InvalidRequest, match="give True or False"):
            model.tokenize("hello", raw=1)  # type: ignore[arg-type]
        for tokens in ("abc", 5, [1.5], [None], [True]):
            with pytest.raises(arenite.InvalidRequest, match="give a list of whole numbers"):
                model.detokenize(tokens)  # type: ignore[arg-type]
        with pytest.raises(arenite.InvalidRequest, match="token 257 is not in the vocabulary"):
            model.forget([257])


def test_tokens_may_be_any_whole_numbers() -> None:
    with arenite.Runtime() as runtime:
        model = runtime.load("null:", context=256, streams=1)
        plain = model.generate([104, 105], max_tokens=4)
        array = np.array([104, 105], np.int64)
        for tokens in (array, list(array), (104, np.uint8(105))):
            assert model.generate(tokens, max_tokens=4).tokens == plain.tokens
            assert model.detokenize(tokens) == "hi"
        assert model.detokenize([]) == ""


def test_a_plan_that_does_not_fit_is_shown_and_fails_with_the_numbers() -> None:
    done = command("plan", tiny(), "--arena", "64KiB", "--json")
    assert done.returncode == 1
    shown = json.loads(done.stdout)
    assert shown["fits"] is False
    assert f"needs {shown['needed_bytes']:,} bytes" in done.stderr


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    name = patched(b"random", b"\xff\xfe\xff\xfe\xff\xfe")
    with arenite.Runtime() as runtime:
        with pytest.raises(arenite.BadModel, match=r"general\.name is not UTF-8"):
            runtime.load(damaged(tmp_path, name))
        template = patched(b"add_generation_prompt", b"add_generation_" + b"\xff" * 6)
        with pytest.raises(arenite.BadModel, match="chat template is not UTF-8"):
            runtime.load(damaged(tmp_path, template, "two.gguf"))
        prompt = runtime.load(tiny()).tokenize("\ud800 lone surrogate", raw=True)
        assert prompt


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    expect_refused(1, "no ordinary file", "run", str(tmp_path / "pipe.gguf"), "hello")


def test_the_folder_that_we_stand_in_is_not_imported_from(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    done = subprocess.run(
        [str(Path(sys.executable).parent / "arenite"), "plan", tiny(), "--json"], cwd=tmp_path, capture_output=True,
        text=True, check=False, timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_places_that_can_not_be_written_are_one_line(tmp_path: Path) -> None:
    expect_refused(1, "No such file", "plan", tiny(), "--svg", str(tmp_path / "none" / "a.svg"))


def test_a_changed_file_is_probed_again(tmp_path: Path) -> None:
    path = Path(damaged(tmp_path, Path(tiny()).read_bytes()))
    prober, options = Prober(), ModelOptions(str(path), threads=1)
    try:
        first = prober.examine(options, 1)
        assert prober.examine(options, 1) is first
        path.write_bytes(path.read_bytes()[:4000])
        with pytest.raises(arenite.BadModel):
            prober.examine(options, 1)
    finally:
        prober.close()


def test_a_helper_that_left_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    prober = Prober()
    try:
        prober.examine(ModelOptions(tiny(), context=512), 1)
        helper = prober._helper
        assert helper is not None
        helper.kill()  # as if it had left between our look and our question
        monkeypatch.setattr(helper, "poll", lambda: None)
        assert prober.examine(ModelOptions(tiny(), context=1024), 1).info.cells == 1024
    finally:
        prober.close()


def test_a_native_abort_is_a_typed_error_and_the_prober_goes_on(tmp_path: Path) -> None:
    """Two tokens of the same letters pass libllama's parser and fail an assertion behind it."""
    twice = patched(struct.pack("<Q", 2) + b"\xc4\x82", struct.pack("<Q", 2) + b"\xc4\x80")
    prober = Prober()
    try:
        with pytest.raises(arenite.BadModel, match=r"ended by SIGABRT \(.*GGML_ASSERT"):
            prober.examine(ModelOptions(damaged(tmp_path, twice)), 1)
        prober.examine(ModelOptions(tiny()), 1)
    finally:
        prober.close()


def test_head_counts_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    raw = Path(tiny()).read_bytes()
    key = b"llama.attention.head_count" + struct.pack("<I", 4)
    at = raw.index(key) + len(key)
    prober = Prober()
    try:
        for number in (0, 3, 1 << 20, (1 << 32) - 1):
            wrecked = damaged(tmp_path, raw[:at] + struct.pack("<I", number) + raw[at + 4:], f"{number}.gguf")
            with pytest.raises(arenite.BadModel):
                prober.examine(ModelOptions(wrecked), 1)
    finally:
        prober.close()


# What a helper does in the middle of a file, in the place of libllama.
WRECKS = {
    "sleeps": "time.sleep(600)",
    "spins": "exec('while True: pass')",
    "dies": "os.kill(os.getpid(), signal.SIGSEGV)",
    "grows": "bytearray(3 << 30)",
    "empty": "[]",
}


def wreck_helpers(monkeypatch: pytest.MonkeyPatch, function: str, how: str) -> None:
    """Start helpers in which a function of the package does something else."""
    code = (
        "import os, signal, sys, time; sys.path[:0] = {root!r}; from arenite.runtime.backends import libllama, probe; "
        f"{function} = lambda *_: {WRECKS[how]}; probe.serve()"
    ).format(root=[str(Path(arenite.__file__).parent.parent)])

    def start() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-P", "-c", code], stdin=pipe, stdout=pipe, text=True)

    monkeypatch.setattr(probe, "_start_helper", start)


@pytest.mark.parametrize(("how", "says"), [
    ("sleeps", r"libllama did not finish within 0\.5 s"),
    ("spins", "libllama was ended by SIGXCPU"),
    ("dies", "libllama was ended by SIGSEGV"),
    ("grows", "asks for more memory than a model of its size can need"),
])
def test_time_and_memory_of_an_examination_are_limited(monkeypatch: pytest.MonkeyPatch, how: str, says: str) -> None:
    wreck_helpers(monkeypatch, "libllama.read_info", how)
    prober = Prober(Limits(wall_s=0.5 if how == "sleeps" else 60.0, cpu_s=1, address_space=2 << 30))
    try:
        with pytest.raises(arenite.BadModel, match=says):
            prober.examine(ModelOptions(tiny()), 1)
        helper = prober._helper
        assert helper is not None
        assert helper.poll() is None, "the helper goes on"
        assert not children(helper.pid), "the child is gone"
    finally:
        prober.close()


def test_what_libllama_itself_takes_is_limited_too() -> None:
    prober = Prober(Limits(address_space=64 << 10))
    try:
        with pytest.raises(arenite.BadModel):
            prober.examine(ModelOptions(tiny()), 1)
    finally:
        prober.close()


def test_closing_ends_an_examination_under_way_and_lets_no_other_start(monkeypatch: pytest.MonkeyPatch) -> None:
    wreck_helpers(monkeypatch, "libllama.read_info", "sleeps")
    prober, ends = Prober(), queue.Queue[arenite.Error]()

    def ask() -> None:
        with pytest.raises(arenite.EngineClosed) as caught:
            prober.examine(ModelOptions(tiny()), 1)
        ends.put(caught.value)

    waiting = [threading.Thread(target=ask) for _ in range(3)]
    for thread in waiting:
        thread.start()
    while (helper := prober._helper) is None or not children(helper.pid):
        time.sleep(0.01)
    (child,) = children(helper.pid)
    prober.close()
    for thread in waiting:
        thread.join(20)
    assert ends.qsize() == 3
    assert prober._helper is None
    assert helper.returncode is not None
    while Path(f"/proc/{child}").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        time.sleep(0.01)  # it dies with its helper
    ask()


FLIP = """
import sys, arenite
bad = good = 0
with arenite.Runtime(arena="64MiB") as runtime:
    for path in sys.argv[1:]:
        try:
            model = runtime.load(path, context=256, streams=2, batch=32, threads=1)
        except arenite.Error as error:
            assert isinstance(error, arenite.ModelError), repr(error)
            assert str(error) and "\\n" not in str(error), repr(error)
            bad += 1
            continue
        model.generate([5, 6, 7], max_tokens=2)
        model.close()
        good += 1
    assert runtime.status().arena.leased == 0
print(bad, good)
"""


def test_flipped_header_bytes_never_crash_hang_or_leak(tmp_path: Path) -> None:
    raw = Path(tiny()).read_bytes()
    header = raw.index(b"token_embd.weight") + 400
    choose, paths = random.Random(260), []
    for number in range(FLIPPED):
        wrecked = bytearray(raw)
        for _ in range(choose.choice([1, 1, 2, 8])):
            area = choose.choice([24, 1500, header])
            wrecked[choose.randrange(min(area, header))] ^= 1 << choose.randrange(8)
        paths.append(damaged(tmp_path, bytes(wrecked), f"{number}.gguf"))
    done = subprocess.run(
        [sys.executable, "-c", FLIP, *paths], capture_output=True, text=True, timeout=400, check=False,
        env={**os.environ, "GOMP_SPINCOUNT": "1000"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    bad, good = map(int, done.stdout.split())
    assert bad + good == FLIPPED
    assert bad >= FLIPPED // 4
