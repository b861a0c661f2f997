"""`benchmarks/gpu_check.py`: all its parts on the CPU, what becomes of one that fails, and the same on a fake GPU."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .fake_gpu import _built, needs_fake_gpu

CHECKOUT = Path(os.environ.get("ARENITE_CHECKOUT", Path(__file__).parent.parent))  # benchmarks are not in the wheel
COMMAND = [sys.executable, "-m", "arenite.benchmarks.gpu_check", "--small", "--json"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder in which the random models are made once."""
    return tmp_path_factory.mktemp("gpu_check")


def check(place: Path, *arguments: str, **environment: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [*COMMAND, "--folder", str(place / "results"), *arguments], cwd=place, env=_environment(**environment),
        capture_output=True, text=True, check=False, timeout=300,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def _environment(**settings: str) -> dict[str, str]:
    paths = [settings.pop("PYTHONPATH", "").split(os.pathsep)[0], str(CHECKOUT / ".dev")]
    return {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def rows(report: dict[str, Any], part: str) -> list[dict[str, Any]]:
    return [row for row in report["rows"] if row["part"] == part]


def test_all_parts_run_on_the_cpu_and_are_written_down(place: Path) -> None:
    code, report = check(place, "--device", "CPU")
    assert code == 0, [row for row in report["rows"] if row["ok"] is False]
    assert report["skipped"] == []
    assert {row["part"] for row in report["rows"]} == {"tokens", "arena", "streams", "speed", "loads", "abort"}
    assert sum(row["ok"] is True for row in report["rows"]) >= 5
    (table,) = (place / "results").glob("gpu-check-cpu-*.csv")
    with table.open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [row["what"] for row in written] == [row["what"] for row in report["rows"]]
    assert str(place) not in table.read_text(encoding="utf-8"), "a path of one machine means nothing elsewhere"
    assert json.loads(table.with_suffix(".json").read_text(encoding="utf-8")) == report


def test_a_part_that_does_not_finish_takes_no_other_down(place: Path) -> None:
    code, report = check(place, "--device", "CPU", "--parts", "tokens,arena", "--limit", "0")
    assert code == 1
    assert [row["what"] for row in report["rows"]] == ["tokens did not finish", "arena did not finish"]
    code, report = check(place, "--device", "CUDA9", "--parts", "tokens,loads")
    assert code == 1
    assert [row["ok"] for row in report["rows"]] == [False, False]
    assert "CUDA9" in report["rows"][0]["figure"]
    assert set(report["skipped"]) == {"arena", "streams", "speed", "abort"}


@pytest.mark.parametrize("arguments", [["--parts", "tokens,nothing"], ["--shapes", "9T"]])
def test_unknown_parts_and_shapes_are_named(place: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=place, env=_environment(), capture_output=True, text=True, check=False, timeout=60,
    )
    assert done.returncode == 2
    assert "known are" in done.stderr


@needs_fake_gpu
def test_on_a_gpu_that_computes_nothing_the_memory_is_right_and_the_tokens_are_wrong(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    environment = _built(tmp_path_factory.mktemp("fakecuda"))
    code, report = check(place, **environment)
    assert code == 1
    assert report["device"] == "fake GPU of the tests, 4 GiB"
    assert any(row["ok"] is False for row in rows(report, "tokens")), "the check can fail"
    for part in ("arena", "streams", "speed", "loads", "abort"):
        found = rows(report, part)
        assert len(found) > 1 or part == "loads", found
        assert all(row["ok"] is not False for row in found if not row["what"].startswith("tokens with")), found
    taken = {row["what"]: row["figure"] for row in rows(report, "arena")}
    assert taken["bytes of the device taken while serving"] == "0"
    assert int(taken["outside the arena: CUDA0 scratch pools and workspaces"]) > 0
