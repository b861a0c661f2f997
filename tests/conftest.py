"""What all tests share.  Set before anything loads libgomp: a busy neighbour must not make tests slow."""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
