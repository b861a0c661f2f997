"""Clean child processes of ours: the very same package, nothing inherited but what is named."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def start(module: str, function: str, *arguments: object, **settings: Any) -> subprocess.Popen[Any]:
    """Start ``function(*arguments)`` of a module of this package in a fresh interpreter.

    ``settings``: as for `subprocess.Popen`; descriptors are closed but for those in ``pass_fds``.
    """
    package = module.split(".", maxsplit=1)[0]
    root = str(Path(str(sys.modules[package].__file__)).parent.parent)
    call = f"{function}({', '.join(map(repr, arguments))})"
    code = f"import sys; sys.path.insert(0, {root!r}); from {module} import {function}; {call}"
    return subprocess.Popen([sys.executable, "-P", "-c", code], close_fds=True, **settings)


def die_with_parent(parent: int) -> None:
    """End this process when its parent ends, now if it has ended already."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
