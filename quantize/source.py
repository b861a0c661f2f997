"""A checkpoint as Hugging Face lays it out: a folder with config.json, the weights and the tokenizer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import BadModel, ModelNotFound
from .fields import Fields, read_object
from .weights import Stored, open_weights

if TYPE_CHECKING:
    import os

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, slots=True)
class Source:
    """An opened checkpoint.  Holds memory maps of the weights; they go when it does."""

    folder: Path
    config: Fields
    weights: dict[str, Stored]

    def optional(self, name: str) -> Fields:
        """Return the JSON object of a file of the folder, an empty one if there is no such file."""
        path = self.folder / name
        return read_object(path) if path.is_file() else Fields(name)

    def text(self, name: str) -> str | None:
        """Return the text of a file of the folder, None if there is none.  Raises BadModel unless it is UTF-8."""
        try:
            return (self.folder / name).read_text("utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise BadModel(f"{name} can not be read", str(error)) from None

    def license(self) -> str | None:
        """Return the licence that the model card (the front matter of README.md) names."""
        try:
            card = self.text("README.md") or ""
        except BadModel:  # a README is for people; an odd one does not make a model unusable
            return None
        front = re.match(r"---\r?\n(.*?)\n---", card, re.DOTALL)
        found = re.search(r"^license:[ \t]*['\"]?([\w.+-]+)", front[1], re.MULTILINE) if front else None
        return found[1] if found else None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        return False


def open_source(source: str | os.PathLike[str]) -> Source:
    """Open a checkpoint folder.

    Raises ModelNotFound if there is no such folder (hub ids included: nothing is downloaded) and BadModel if it is not
    a checkpoint or a file of it is damaged.
    """
    folder = Path(source)
    if not _exists(folder):
        hint = "downloading by hub id comes in a later version, " if _HUB_ID.fullmatch(str(source)) else ""
        raise ModelNotFound(f"there is no folder {folder}: {hint}give a local checkpoint folder")
    if not folder.is_dir():
        raise BadModel(f"{folder} is a file: give the folder that holds config.json")
    if not (folder / "config.json").is_file():
        raise BadModel(f"{folder} has no config.json: give the folder that save_pretrained() wrote")
    return Source(folder, read_object(folder / "config.json"), open_weights(folder))
