"""Configurations made of parts: dataclasses whose fields may be dataclasses, with flat names for what stands in the parts.

The command's flags, `config.json` and `of(...)` in Python use the flat names, which are unique within a configuration.
"""

from __future__ import annotations

import difflib
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from rldistill.types import UserError, as_flag

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Configuration = TypeVar("Configuration", bound="DataclassInstance")


def flat(config: DataclassInstance) -> dict[str, Any]:
    """All settings by their flat names, part after part."""
    settings: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        settings |= flat(value) if _is_part(value) else {field.name: value}
    return settings


def given(config: DataclassInstance) -> list[str]:
    """Flat names of the settings that are not as in a fresh configuration of this type."""
    defaults = flat(type(config)())
    return [name for name, value in flat(config).items() if value != defaults[name]]


def changed(config: Configuration, **settings: Any) -> Configuration:
    """The configuration with some settings replaced, by their flat names.

    Raises:
        UserError: there is no setting of a name; the message gives the nearest one.
    """
    places = _places(type(config))
    own: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        if name not in places:
            nearest = difflib.get_close_matches(name, places, 1)
            advice = f"; did you mean {nearest[0]}?" if nearest else ""
            raise UserError(f"{type(config).__name__} has no setting {name!r}{advice}")
        part = places[name]
        if part is None:
            own[name] = value
        else:
            parts.setdefault(part, {})[name] = value
    return replace(config, **own, **{part: changed(getattr(config, part), **inner) for part, inner in parts.items()})


def check_choices(config: DataclassInstance) -> None:
    """Compares settings of a few named choices with them, part after part: the command does, Python does not.

    Raises:
        UserError: a setting is none of its choices.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if _is_part(hint):
            check_choices(value)
        elif get_origin(hint) is Literal and value not in get_args(hint):
            raise UserError(f"{as_flag(name)} is one of {', '.join(get_args(hint))}, not {value!r}")


@cache
def kinds_of(kind: type[DataclassInstance]) -> dict[str, Any]:
    """The declared types of all settings by their flat names."""
    kinds: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        kinds |= kinds_of(hint) if _is_part(hint) else {name: hint}
    return kinds


@cache
def _places(kind: type[DataclassInstance]) -> dict[str, str | None]:
    """Flat names to the part that they stand in, None for those of the configuration itself."""
    places: dict[str, str | None] = {}
    hints = get_type_hints(kind)
    for field in fields(kind):
        inner = _places(hints[field.name]) if _is_part(hints[field.name]) else {field.name: None}
        for name in inner:
            if name in places:
                raise TypeError(f"two settings of {kind.__name__} are called {name}")
            places[name] = field.name if _is_part(hints[field.name]) else None
    return places


def _is_part(value: Any) -> bool:
    return is_dataclass(value)
