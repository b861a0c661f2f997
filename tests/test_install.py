"""The wheel in a fresh environment, called from another folder."""

from __future__ import annotations

import os
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

from .installed import ROOT, build_wheel, environment

CHECKOUT = Path(os.environ.get("ARENITE_CHECKOUT", ROOT))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the wheel that `make test` built, or build it."""
    if given := os.environ.get("ARENITE_WHEEL"):
        return Path(given)
    return build_wheel(tmp_path_factory.mktemp("dist"))


def test_the_commands_run_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env", wheel)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for line in ([str(python), "-m", "arenite", "--help"], [str(python.parent / "arenite"), "--help"],
                 [str(python.parent / "arenite"), "run", "null:", "hello", "--max-tokens", "5", "--quiet"]):
        done = subprocess.run(line, cwd=elsewhere, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    where = subprocess.run(
        [str(python), "-c", "import arenite; print(arenite.__file__)"], cwd=elsewhere, capture_output=True, text=True,
        check=True, timeout=60,
    )
    assert where.stdout.startswith(str(tmp_path))


def test_the_wheel_holds_the_package_and_nothing_else_at_the_top(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"arenite"}
    assert "arenite/examples/assistant/model/model.safetensors" in names
    assert "arenite/py.typed" in names
    assert not any("__pycache__" in name or "results" in name for name in names)


@pytest.mark.skipif(not (CHECKOUT / "pyproject.toml").exists(), reason="there is no checkout here")
def test_versions_agree() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    init = (CHECKOUT / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{project["version"]}"' in init
    assert f"## [{project['version']}]" in (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
