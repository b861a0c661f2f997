"""Programs on a fake GPU: ggml's real CUDA code over a CUDA runtime that remembers and copies, but computes nothing.

It needs a CUDA build of llama-cpp-python (``ARENITE_CUDA_BUILD``: a folder with its wheel) and CUDA's headers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import arenite

HERE = Path(__file__).parent
PRELUDE = """
import ctypes, json, sys
import arenite
fake = ctypes.CDLL("libcudart.so.13")
for name in ("fake_cuda_allocations", "fake_cuda_bytes", "fake_cuda_copies"):
    getattr(fake, name).restype = ctypes.c_size_t
fake.fake_cuda_others.argtypes = [ctypes.c_size_t]
def say(**found):
    print(json.dumps(found))
"""


def _headers() -> Path | None:
    roots = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda", "/usr/lib/cuda"]
    return next((Path(root, "include") for root in roots if Path(root, "include", "cuda_runtime_api.h").exists()), None)


def _wheel() -> Path | None:
    folder = os.environ.get("ARENITE_CUDA_BUILD", "")
    return next(iter(sorted(Path(folder).glob("llama_cpp_python-*.whl"))), None) if folder else None


needs_fake_gpu = pytest.mark.skipif(
    _wheel() is None or _headers() is None or shutil.which("gcc") is None,
    reason="needs ARENITE_CUDA_BUILD (a folder with a CUDA wheel of llama-cpp-python), CUDA's headers and gcc",
)


@cache
def _built(folder: Path) -> dict[str, str]:
    """Unpack the CUDA build, compile the fake runtime, and return the environment that uses both."""
    wheel, headers = _wheel(), _headers()
    assert wheel is not None
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    for name in ("cudart", "cublas"):
        versions = folder / f"{name}.map"
        versions.write_text(f"lib{name}.so.13 {{ global: *; }};\n", encoding="utf-8")
        subprocess.run(
            ["gcc", "-O1", "-fPIC", "-shared", f"-I{headers}", f"-Wl,-soname,lib{name}.so.13",
             f"-Wl,--version-script={versions}", "-o", str(folder / f"lib{name}.so.13"),
             str(HERE / "fakecuda" / f"{name}.c"), "-lpthread"], check=True,
        )
    package = Path(str(arenite.__file__)).parent.parent
    return {
        "LD_LIBRARY_PATH": f"{folder}:{folder / 'site' / 'llama_cpp' / 'lib'}",
        "PYTHONPATH": f"{folder / 'site'}:{package}", "GOMP_SPINCOUNT": "1000",
    }


def run_on_fake_gpu(folder: Path, program: str, *arguments: str, **settings: str) -> dict[str, Any]:
    """Run a program (with `PRELUDE` before it) and return what it says."""
    environment = {**os.environ, **_built(folder), **settings}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program, *arguments], env=environment, capture_output=True, text=True,
        check=False, timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def cli_on_fake_gpu(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command line on the fake GPU."""
    return subprocess.run(
        [sys.executable, "-m", "arenite", *arguments], env={**os.environ, **_built(folder), **settings},
        capture_output=True, text=True, check=False, timeout=120,
    )
