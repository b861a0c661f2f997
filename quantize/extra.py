"""The one place that imports what only the extra ``convert`` installs."""

from __future__ import annotations

import importlib
from typing import Any

from ..runtime.errors import MissingDependency


def gguf() -> Any:
    """Return the library ``gguf``.  Raises MissingDependency if it is not installed."""
    try:
        library = importlib.import_module("gguf")
        importlib.import_module("gguf.quants")
    except ImportError as error:
        raise MissingDependency(f"converting needs gguf ({error}): pip install 'arenite[convert]'") from None
    return library
