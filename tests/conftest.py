"""What all tests share.  Set before anything loads libgomp: a busy neighbour must not make tests slow."""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from arenite.quantize import convert

if TYPE_CHECKING:
    from collections.abc import Iterator

settings.register_profile("arenite", deadline=None, derandomize=True)
settings.load_profile("arenite")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give one folder for converted models, which the demo uses as well."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the third-party checkpoint stories260k as an f32 GGUF file; only for tests marked ``reference``."""
    if "ARENITE_REFERENCE_MODELS" not in os.environ:
        pytest.skip("ARENITE_REFERENCE_MODELS is not set")
    source = Path(os.environ["ARENITE_REFERENCE_MODELS"]) / "stories260k"
    return convert(source, tmp_path_factory.mktemp("stories") / "stories.gguf", type="f32").path
