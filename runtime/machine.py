"""What this machine has: cores that may be used, memory that is free.  Read when asked, never cached."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_V1_UNLIMITED = 1 << 60  # version 1 writes "no limit" as a huge number


def _groups(controller: str) -> list[Path]:
    """Return the folders of this process's cgroup and all above it: a limit of any of them binds."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:  # version 2: "0::/path"; version 1: "4:memory:/path"
        number, names, path = line.split(":", 2)
        root = _CGROUP if number == "0" else _CGROUP / controller
        if (number == "0" and not names) or controller in names.split(","):
            own = root / path.lstrip("/")
            return [own, *(folder for folder in own.parents if folder.is_relative_to(root))]
    return []


def _number(path: Path) -> int | None:
    """Read a number from a file of a cgroup; None where there is none, or no limit."""
    try:
        value = int(path.read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return value if 0 <= value < _V1_UNLIMITED else None


def _memory_room() -> tuple[int | None, int | None]:
    """Return the lowest memory limit above this process, and the least that is still free under any; None: no limit."""
    limits, rooms = [], []
    for folder in _groups("memory"):
        for limit_name, used_name in (("memory.max", "memory.current"),
                                      ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is not None:
                limits.append(limit)
                rooms.append(limit - (used or 0) + _reclaimable(folder))
    return min(limits, default=None), min(rooms, default=None)


def _reclaimable(folder: Path) -> int:
    """Return the bytes of page cache that a cgroup is charged with and gives up when asked."""
    try:
        lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)


def usable_cores() -> int:
    """Physical cores that this process may run on: psutil's count, cut by affinity and by the CPU quota.

    Two threads of one physical core share its vector units, so the logical count would slow a decode step down.
    """
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(physical, allowed, _cores_by_quota() or physical))


def _cores_by_quota() -> int | None:
    """Return how many cores the tightest CPU quota above this process amounts to; None: no quota."""
    found = []
    for folder in _groups("cpu"):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        with contextlib.suppress(OSError, ValueError, IndexError):
            words = (folder / "cpu.max").read_text(encoding="utf-8").split()
            quota, period = (None if words[0] == "max" else int(words[0])), int(words[1])
        if quota and period:
            found.append(max(1, quota // period))
    return min(found, default=None)


def total_memory() -> int:
    """Bytes of memory that this process could ever have: the machine's, cut by the limits of its cgroups."""
    total, (limit, _) = int(psutil.virtual_memory().total), _memory_room()
    return total if limit is None else min(total, limit)


def available_memory() -> int:
    """Bytes that can be taken now without swapping, cut by what the cgroups still allow."""
    available, (_, room) = int(psutil.virtual_memory().available), _memory_room()
    return available if room is None else max(0, min(available, room))


def resident_memory() -> int:
    """Bytes of this process that are in memory now (RSS)."""
    return int(psutil.Process().memory_info().rss)


def process_facts(pid: int) -> tuple[int, int]:
    """Return the bytes of a process that are in memory now, and its threads; zeros if it is gone."""
    try:
        process = psutil.Process(pid)
        return int(process.memory_info().rss), int(process.num_threads())
    except psutil.Error:
        return 0, 0


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, and theirs; none if it is gone."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def describe() -> str:
    """Return the machine in words, as it stands beside measured figures: ``2 cores (x86_64, AVX-512), 24 GiB``."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        flags = ""
    vector = next((name for word, name in (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("asimd", "NEON"))
                   if word in flags), "")
    arch = os.uname().machine + (f", {vector}" if vector else "")
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return f"{cores} cores ({arch}), {round(psutil.virtual_memory().total / (1 << 30))} GiB"
