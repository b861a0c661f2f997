"""Build the wheel, install it into an environment of its own, and run the tests there: what users get is tested.

Called by ``make test``; arguments go to pytest.  Dependencies are those of the calling interpreter.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def environment(folder: Path, wheel: Path) -> Path:
    """Make a virtual environment that has the wheel, and our dependencies by reference; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--force-reinstall",
         "--no-warn-script-location", str(wheel)], check=True,
    )
    purelib = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()
    (llama_cpp,) = importlib.util.find_spec("llama_cpp").submodule_search_locations  # type: ignore[union-attr, misc]
    Path(purelib, "dependencies.pth").write_text(f"{Path(llama_cpp).parent}\n", encoding="utf-8")
    return python


def build_wheel(folder: Path) -> Path:
    """Build this checkout's wheel into ``folder``."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)],
        check=True,
    )
    return next(folder.glob("arenite-*.whl"))


def main() -> int:
    """Run the tests against the installed wheel; returns pytest's exit code."""
    with tempfile.TemporaryDirectory(prefix="arenite-test-") as name:
        folder = Path(name)
        wheel = build_wheel(folder / "dist")
        python = environment(folder / "env", wheel)
        work = folder / "work"
        shutil.copytree(ROOT / "tests", work / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", work)
        settings = {"ARENITE_WHEEL": str(wheel), "ARENITE_CHECKOUT": str(ROOT), "GOMP_SPINCOUNT": "1000"}
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", *sys.argv[1:]]
        return subprocess.run(command, cwd=work, env={**os.environ, **settings, "PATH": path}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
