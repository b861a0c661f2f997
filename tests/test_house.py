"""The house's own rules: imports go one way, few may import a third party, and public names are the exported ones."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest

import arenite

ROOT = Path(arenite.__file__).parent
ROOMS = {  # room -> rooms of ours that it may import
    "runtime": {"runtime"},
    "quantize": {"quantize", "runtime"},
    "adapters": {"adapters", "runtime"},
    "benchmarks": {"benchmarks", "runtime", "quantize"},
    "examples": {"examples", "adapters", "quantize", "runtime"},
}
# Inside runtime/ a module imports from floors below its own only.
FLOORS = [
    {"errors", "machine", "sandbox", "spawn"},
    {"forms", "sizes", "cells", "prefix", "pace"},
    {"arena", "config", "request", "text", "chat", "typed"},
    {"console", "sampling", "backends.base"},
    {"events", "grammar"},
    {"ticket", "stats", "sequence", "mailbox", "backends.ggml", "backends.null"},
    {"pool", "session", "backends.places", "journal"},
    {"scheduler", "picture", "backends.slab", "backends.libllama"},
    {"lane", "backends.llama", "backends.probe", "backends.raw"},
    {"backends.gpu"},
    {"backends.loader"},
    {"engine"},
    {"worker"},
    {"child"},
    {"remote"},
    {"api"},
    {"cli", "doctor"},
    {"bench"},
]
THIRD_PARTIES = {  # package -> the only modules that may import it; a name ending in . means the whole folder
    "llama_cpp": {"runtime.backends.ggml"},
    "llguidance": {"runtime.grammar", "runtime.backends.libllama", "runtime.backends.null"},
    "msgspec": {"adapters."},
    "zmq": {"adapters."},
    "psutil": {"runtime.machine"},
    "jinja2": {"runtime.chat", "runtime.sandbox"},
    "gguf": {"quantize.extra"},
    "tokenizers": {"examples.assistant."},
    "torch": {"examples.assistant."},
    "safetensors": {"examples.assistant."},
    "click": {"__main__", "runtime.console", "runtime.cli", "runtime.doctor", "runtime.bench", "quantize.cli",
              "adapters.serve", "adapters.run", "adapters.top", "examples.assistant.", "benchmarks."},
    "rich": {"runtime.console", "runtime.picture", "runtime.doctor", "runtime.bench", "examples.assistant.",
             "benchmarks."},
    "numpy": {"runtime.grammar", "runtime.sampling", "runtime.lane", "runtime.prefix", "runtime.pool",
              "runtime.scheduler", "runtime.backends.", "runtime.bench", "quantize.",
              "benchmarks.", "examples.assistant."},
}


def modules() -> dict[str, Path]:
    """Every module that is installed, by its name below ``arenite``."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] not in ROOMS and parts not in {("__main__",), ("__init__",)}:
            continue
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path) -> set[str]:
    """Absolute names of all imports of a module, wherever they stand, type-checking ones included."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = ["arenite", *package[: len(package) - node.level + 1]]
                start = ".".join([*base, *([node.module] if node.module else [])])
            else:
                start = str(node.module)
            found |= {start} | {f"{start}.{alias.name}" for alias in node.names}
    return found


MODULES = modules()


def test_the_rooms_are_there() -> None:
    assert set(ROOMS) <= {name.split(".")[0] for name in MODULES}


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in ROOMS])
def test_imports_between_rooms_go_one_way(name: str) -> None:
    targets = imports(name, MODULES[name])
    ours = {room for room in ROOMS if any(f"{target}.".startswith(f"arenite.{room}.") for target in targets)}
    assert ours <= ROOMS[name.split(".", 1)[0]]


def test_every_module_of_the_runtime_has_its_floor() -> None:
    known = {f"runtime.{module}" for floor in FLOORS for module in floor} | {"runtime", "runtime.backends"}
    assert {name for name in MODULES if name.startswith("runtime")} == known


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("runtime.")])
def test_inside_the_runtime_imports_go_downwards(name: str) -> None:
    floor = {f"arenite.runtime.{module}": level for level, modules in enumerate(FLOORS) for module in modules}
    own = floor.get(f"arenite.{name}", -1)
    above = {target for target in imports(name, MODULES[name]) if floor.get(target, -1) >= own >= 0}
    assert not above - {f"arenite.{name}"}


@pytest.mark.parametrize("package", sorted(THIRD_PARTIES))
def test_only_the_named_modules_import_a_third_party(package: str) -> None:
    allowed = THIRD_PARTIES[package]
    for name, path in MODULES.items():
        if any(target.split(".")[0] == package for target in imports(name, path)):
            assert name in allowed or any(room.endswith(".") and f"{name}.".startswith(room) for room in allowed), name


def test_no_other_third_party_is_imported() -> None:
    known = {*sys.stdlib_module_names, *THIRD_PARTIES, "arenite", "__future__"}
    assert {target.split(".")[0] for name, path in MODULES.items() for target in imports(name, path)} <= known


def test_what_the_package_imports_is_what_it_exports() -> None:
    tree = ast.parse(MODULES["__init__"].read_text(encoding="utf-8"))
    imported = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                for alias in node.names}
    assert imported | {"__version__"} == set(arenite.__all__)


def test_public_names_are_sorted_exist_and_are_documented() -> None:
    names = arenite.__all__
    assert names == sorted(names)
    for name in names:
        assert getattr(arenite, name) is not None
        if isinstance(getattr(arenite, name), type):
            assert getattr(arenite, name).__doc__


def test_every_error_is_public_and_in_the_tree_of_the_docstring() -> None:
    errors = importlib.import_module("arenite.runtime.errors")
    found = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    kinds = {name: kind for name, kind in found.items() if issubclass(kind, arenite.Error)}
    assert set(kinds) <= set(arenite.__all__)
    assert all(name in (errors.__doc__ or "") for name in kinds)
    codes = [kind.code for kind in kinds.values()]
    assert len(set(codes)) == len(codes)


def test_each_module_says_what_it_is_for() -> None:
    for name, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), name


def test_nothing_else_is_installed_beside_the_package() -> None:
    found = {module.name for module in pkgutil.iter_modules([str(ROOT)])}
    assert found == {*ROOMS, "__main__"} | (found & {"tests", "systemd"}), "tests and systemd only in a checkout"
