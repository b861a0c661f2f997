"""What people get wrong: one line that says what to do, the exit code of the design, nothing left behind."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import arenite
from arenite.runtime.backends.probe import Prober
from arenite.runtime.config import ModelOptions

from . import checkpoints

FLIPPED = 200


def command(*arguments: str, timeout: float = 120, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "arenite", *arguments], capture_output=True, text=True, timeout=timeout, check=False,
        input=text,
    )


def expect_refused(code: int, says: str, *arguments: str) -> None:
    done = command(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("arenite: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


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
    expect_refused(1, "temperature is -1", "run", tiny(), "hello", "--temperature", "-1")
    expect_refused(1, "top_p", "run", tiny(), "hello", "--top-p", "7")
    expect_refused(1, "max_tokens", "run", tiny(), "hello", "--max-tokens", "0")
    expect_refused(1, "max_tokens is far outside", "run", tiny(), "hello", "--max-tokens", "9" * 400)
    expect_refused(1, "never holds them", "run", tiny(), "x" * 100_000, "--context", "256")
    expect_refused(1, "the context holds 256", "run", tiny(), "hello " * 400)
    expect_refused(1, "needs", "run", tiny(), "hello", "--arena", "100KiB")
    expect_refused(78, "context is 3", "run", tiny(), "hello", "--context", "3")
    expect_refused(78, "holds no JSON object", "run", tiny(), "hello", "--schema", str(schema))
    expect_refused(78, "--schema", "run", tiny(), "hello", "--schema", str(tmp_path / "none.json"))


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
    """A head count of zero passes libllama's parser and divides by zero, or aborts, behind it."""
    raw = Path(tiny()).read_bytes()
    key = b"llama.attention.head_count" + struct.pack("<I", 4)
    at = raw.index(key) + len(key)
    wrecked = [raw[:at] + struct.pack("<I", n) + raw[at + 4:] for n in (0, 3, 1 << 20, (1 << 32) - 1)]
    prober = Prober()
    try:
        for number, data in enumerate(wrecked):
            with pytest.raises(arenite.BadModel):
                prober.examine(ModelOptions(damaged(tmp_path, data, f"{number}.gguf")), 1)
        prober.examine(ModelOptions(tiny()), 1)
    finally:
        prober.close()


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
