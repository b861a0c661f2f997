"""What differs between two settings, and what of it a running service takes over without a restart (SIGHUP)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from .settings import Settings
from .tables import as_text, hints_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..runtime.config import ModelOptions

LIVE = frozenset({"log.level", "limits", "zeromq.allow", "model"})  # keys, and sections with all their keys


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.  ``old`` and ``new`` are None where the key, or the whole model, is not there.

    ``key``: its path.  A model's number is that in the new file, of a removed one that in the old file; ``model`` is
    its name, empty for other keys.  A change of ``model[0]`` itself is a model that was added or removed.
    ``text``: one line for the log.
    """

    key: str
    old: Any
    new: Any
    live: bool
    model: str = ""
    text: str = ""


def changes(old: Settings, new: Settings) -> tuple[Change, ...]:
    """Return the differences in the order of the file, models by their names: their order does not count.

    What a file that is named holds (allow-list, secret, model) is not looked at.
    """
    found: list[Change] = []
    for section in (each.name for each in fields(Settings)):
        if section == "model":
            found += _models(old.model, new.model)
        else:
            found += _keys(section, getattr(old, section), getattr(new, section))
    return tuple(found)


def applied(old: Settings, new: Settings) -> Settings:
    """Return what is in force once the live changes are: ``new``, with the keys of ``old`` that need a restart.

    Raises ConfigError if these contradict each other; then a restart is needed for the live ones, too.
    """
    sections = {
        section: replace(getattr(new, section), **{
            each.name: getattr(getattr(old, section), each.name)
            for each in fields(getattr(new, section)) if not _live(f"{section}.{each.name}")
        })
        for section in (each.name for each in fields(Settings)) if section != "model"
    }
    return Settings(model=new.model, **sections)


def _live(key: str) -> bool:
    return key in LIVE or key.partition(".")[0] in LIVE


def _keys(section: str, old: Any, new: Any, *, model: str = "") -> Iterator[Change]:
    """Yield the keys of one section (or model) that differ."""
    hints = hints_of(type(new))
    for each in fields(new):
        before, after = getattr(old, each.name), getattr(new, each.name)
        if before != after:
            key, live = f"{section}.{each.name}", bool(model) or _live(f"{section}.{each.name}")
            line = f"{key}: {as_text(hints[each.name], before)} -> {as_text(hints[each.name], after)}"
            yield Change(key, before, after, live, model, line if live else f"{line} (needs a restart)")


def _models(old: tuple[ModelOptions, ...], new: tuple[ModelOptions, ...]) -> Iterator[Change]:
    before = {model.name: model for model in old}
    for at, model in enumerate(new):
        if model.name in before:
            yield from _keys(f"model[{at}]", before[model.name], model, model=model.name)
        else:
            yield Change(f"model[{at}]", None, model, live=True, model=model.name,
                         text=f"model[{at}]: {model.name} added")
    for at, model in enumerate(old):
        if model.name not in {each.name for each in new}:
            yield Change(f"model[{at}]", model, None, live=True, model=model.name,
                         text=f"model[{at}]: {model.name} removed")
