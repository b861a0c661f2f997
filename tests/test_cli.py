"""The command line, as a shell sees it: what is printed where, and exit codes."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import arenite

from . import checkpoints
from .test_bad_input import command

SMALL = ("--context", "256", "--streams", "2", "--batch", "64", "--threads", "1")


def model() -> str:
    return str(checkpoints.gguf_file("tiny", "f16"))


def test_run_prints_the_answer_and_shows_the_arena_beside_it() -> None:
    done = command("run", model(), "hello", "--raw", "--max-tokens", "8", *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")
    for word in ("weights", "kv", "scratch", "outputs", "outside: ggml work buffer", "allocations after the seal: 0"):
        assert word in done.stderr
    again = command("run", model(), "-", "--raw", "--max-tokens", "8", "--quiet", *SMALL, text="hello")
    assert (again.stdout, again.stderr) == (done.stdout, "")


def test_run_json_is_one_object_and_nothing_else() -> None:
    asked = ("run", model(), "hello", "--json", "--max-tokens", "8", "--temperature", "0.9", "--seed", "5", *SMALL)
    done = command(*asked)
    shown = json.loads(done.stdout)
    assert (shown["model"], shown["seed"], shown["reason"]) == ("f16", 5, "length")
    assert shown["answer_tokens"] == 8
    assert json.loads(command(*asked).stdout)["text"] == shown["text"]


def test_mapped_weights_are_named_as_outside() -> None:
    done = command("run", model(), "hello", "--max-tokens", "2", "--weights", "mapped", *SMALL)
    assert "outside: mapped weights" in done.stderr


def test_ctrl_c_cancels_and_exits_with_130() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "arenite", "run", "null:", "hello", "--context", "16000000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in said
    assert time.monotonic() - begin < 20


def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    line = f"{sys.executable} -m arenite run null: hello --context 100000 | head -c 10"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert len(done.stdout) == 10
    assert "Traceback" not in done.stderr


def test_plan_adds_up_and_loads_nothing() -> None:
    done = command("plan", model(), str(checkpoints.gguf_file("tiny", "q8_0")), "--json", *SMALL)
    shown = json.loads(done.stdout)
    assert {need["model"] for need in shown["needs"]} == {"f16", "q8_0"}
    assert shown["needed_bytes"] >= sum(need["bytes"] for need in shown["needs"])
    assert shown["fits"]
    table = command("plan", model(), "--arena", "64MiB", *SMALL)
    assert "planned" in table.stdout
    assert "64.0 MiB" in table.stdout


def test_doctor_finds_what_there_is() -> None:
    done = command("doctor", model(), "--json")
    found = {finding["what"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 0, done.stdout
    assert found["arena beneath ggml"]["state"] == "ok"
    assert found["model"]["state"] == "ok"
    assert "GOMP_SPINCOUNT=1000" in found["libgomp spinning"]["detail"]


def test_doctor_shows_libllamas_own_last_word(tmp_path: Path) -> None:
    path = tmp_path / "half.gguf"
    path.write_bytes(Path(model()).read_bytes()[:30_000])
    done = command("doctor", str(path), "--json")
    found = {finding["what"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    assert found["model"]["state"] == "fail"
    assert "download" in found["model"]["advice"]
    assert "not within the file bounds" in found["libllama's last error"]["detail"]
    assert found["libllama's last error"]["state"] == "note"


def test_doctor_gives_no_advice_about_a_file_that_is_not_there() -> None:
    for path, says in (("none.gguf", "check the path"), ("null:", "give a GGUF file")):
        done = command("doctor", path, "--json")
        found = {finding["what"]: finding for finding in json.loads(done.stdout)["findings"]}
        assert done.returncode == 1
        assert (found["model"]["state"], found["model"]["advice"]) == ("fail", "")
        assert says in found["model"]["detail"]
        assert found["libllama's last error"]["state"] == "ok"


def test_bench_has_the_keys_of_the_design_and_writes_a_row_per_machine(tmp_path: Path) -> None:
    done = command("bench", model(), "--streams", "1,3", "--tokens", "16", "--repeats", "2", "--json", "--csv",
                   str(tmp_path), "--threads", "1")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert set(shown) == {"model", "device", "threads", "raw", "streams", "arena", "rss_bytes"}
    assert set(shown["raw"]) == {"tok_s"}
    keys = {"n", "tok_s", "ratio_to_raw", "ttft_ms_p50", "itl_ms_p50", "itl_ms_p99", "python_ms_per_step"}
    assert [row["n"] for row in shown["streams"]] == [1, 3]
    assert all(set(row) == keys for row in shown["streams"])
    assert shown["arena"]["allocations_after_seal"] == 0
    (path,) = tmp_path.glob("bench-*.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["n"] for row in rows] == ["1", "3"]
    assert rows[0]["command"].startswith("arenite bench f16.gguf")
    assert str(tmp_path) not in path.read_text()


def test_help_of_every_command() -> None:
    shown = command("--help").stdout
    for name in ("bench", "convert", "demo", "doctor", "plan", "run"):
        assert f"\n  {name} " in shown
        done = command(name, "--help")
        assert done.returncode == 0
        assert "Usage: arenite " + name in done.stdout


def test_the_bare_command_shows_its_help_as_it_stands() -> None:
    done = command()
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("Usage: arenite")
    assert len(done.stderr.splitlines()) > 10


def test_input_beyond_all_bounds_is_one_line(tmp_path: Path) -> None:
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 200_000)
    path = str(checkpoints.gguf_file("tiny", "f16"))
    for arguments, text, code in ((("--schema", str(deep)), None, 2), (("-",), "x" * (65 << 20), 1)):
        done = command("run", path, *(["hi"] if text is None else []), *arguments, text=text)
        assert done.returncode == code
        assert len(done.stderr.splitlines()) == 1
        assert "Traceback" not in done.stderr


def test_a_number_that_is_none_is_called_so() -> None:
    with pytest.raises(arenite.InvalidRequest, match="temperature is not a number: it lies from 0 to 100"):
        arenite.Sampling(temperature=float("nan"))
    with pytest.raises(arenite.InvalidRequest, match="from 0 to 1048576"):
        arenite.Sampling(top_k=-1)
