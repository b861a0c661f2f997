"""What a cgroup allows is less than what the machine has; the tightest limit above the process binds."""

from __future__ import annotations

from pathlib import Path

import pytest

from arenite.runtime import machine


def tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put this process into a made-up tree, ``/system.slice/arenite.service``."""
    own = tmp_path / "own"
    own.write_text("0::/system.slice/arenite.service\n")
    root = tmp_path / "cgroup"
    real = Path.read_text
    monkeypatch.setattr(machine, "_CGROUP", root)
    monkeypatch.setattr(
        Path, "read_text",
        lambda path, **settings: real(own if str(path) == "/proc/self/cgroup" else path, **settings),
    )
    return root


def test_without_limits_the_machine_counts(cgroup: Path) -> None:
    tree(cgroup, {"system.slice/memory.max": "max\n", "system.slice/cpu.max": "max 100000\n"})
    assert machine.total_memory() > 1 << 29
    assert machine.usable_cores() >= 1


def test_the_tightest_limit_above_binds(cgroup: Path) -> None:
    tree(cgroup, {
        "system.slice/arenite.service/memory.max": "max\n", "system.slice/memory.max": f"{64 << 20}\n",
        "system.slice/memory.current": f"{40 << 20}\n", "system.slice/memory.stat": f"inactive_file {16 << 20}\n",
        "system.slice/cpu.max": "100000 100000\n",
    })
    assert machine.total_memory() == 64 << 20
    assert machine.available_memory() == 40 << 20, "page cache that can be reclaimed is free"
    assert machine.usable_cores() == 1


def test_the_machine_in_words() -> None:
    assert "cores" in machine.describe()
    assert "GiB" in machine.describe()
