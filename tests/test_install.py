"""The wheel in a fresh environment, called from another folder."""

from __future__ import annotations

import ast
import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
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


EXTRAS = {"convert": {"gguf"}, "train": {"tokenizers", "torch", "safetensors"}}  # asked for where they are used


def test_the_wheel_asks_for_what_it_imports_and_for_nothing_else(wheel: Path) -> None:
    """The environment above borrows its dependencies, so that it can not miss one."""
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    asked: dict[str, set[str]] = {}
    for line in email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist", []):
        requirement, _, marker = line.partition(";")
        extra = marker.partition("extra ==")[2].strip(" '\"")
        asked.setdefault(extra, set()).add(re.split(r"[^\w.-]", requirement.strip())[0].lower().replace("_", "-"))
    known = packages_distributions()
    imported = {
        package for name in archive.namelist() if name.endswith(".py")
        for package in _packages(archive.read(name).decode()) if package not in {*sys.stdlib_module_names, "arenite"}
    }
    optional = set().union(*EXTRAS.values())
    needed = {known[package][0].lower().replace("_", "-") for package in imported - optional}
    assert needed == asked[""]
    for extra, packages in EXTRAS.items():
        assert packages & imported <= asked[extra] | asked["dev"], extra


def _packages(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.skipif(not (CHECKOUT / "pyproject.toml").exists(), reason="there is no checkout here")
def test_versions_agree() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    init = (CHECKOUT / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{project["version"]}"' in init
    assert f"## [{project['version']}]" in (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
