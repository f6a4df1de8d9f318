"""Type checks of frozen dataclasses, and their JSON form."""

from __future__ import annotations

import dataclasses
import functools
import numbers
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from lorage_jax.errors import ConfigError

T = TypeVar("T")


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_kind(value: Any, kind: Any, name: str, expected: str, unlike: Any = ()) -> None:
    """Raises ConfigError unless the argument `name` is of this kind, and of none of `unlike`.

    `expected` says what to do.
    """
    require(
        isinstance(value, kind) and not isinstance(value, unlike),
        f"{name} is of type {type(value).__name__}; expected {expected}.",
    )


def require_least(config: Any, low: int, *names: str) -> None:
    """Raises ConfigError unless each of these fields is at least `low`."""
    for name in names:
        value = getattr(config, name)
        require(value >= low, f"{name} is {value}; expected {low} or more.")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def check_types(config: Any) -> None:
    """Raises ConfigError unless every field of the dataclass has the type of its annotation.

    An int is also a float; a bool is not an int. A `Literal` field must be one of its choices.
    """
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        require(_fits(hint, value), f"{name} is {value!r}; expected {_expected(hint)}.")


def at_home(path: str) -> str:
    """A path, URL or name with `~` in front replaced by the home folder."""
    return str(home_path(path)) if path.startswith("~") else path


def home_path(path: str | Path) -> Path:
    """A path with `~` in front replaced by the home folder.

    Raises ConfigError if that is not known, as of a user who is not there.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{path}: the home folder {Path(path).parts[0]} is not known here; expected the path "
            "in full."
        ) from None


def learnt_from() -> str:
    """A field of a method's settings: a folder or file that it learns from, empty if there is none.

    Its contents belong to the identity of what was trained with it.
    """
    return dataclasses.field(default="", metadata={"learnt_from": True})


def places_learnt_from(settings: Any) -> tuple[str, ...]:
    """The folders and files in the `learnt_from` fields of a method's settings, if it has any."""
    if settings is None:
        return ()
    marked = [one.name for one in dataclasses.fields(settings) if "learnt_from" in one.metadata]
    return tuple(place for name in marked if (place := getattr(settings, name)))


def expand_home(config: Any, *paths: str) -> None:
    """Replaces `~` by the home folder in the paths of a frozen dataclass, as it is made."""
    for name in paths:
        object.__setattr__(config, name, at_home(getattr(config, name)))


def _fits(hint: Any, value: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in args)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(arg, value) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        hints = args[:1] * len(value) if args[-1] is Ellipsis else args
        return len(value) == len(hints) and all(map(_fits, hints, value))
    if origin is not None:  # dict[str, float]: only the container is checked
        return isinstance(value, origin)
    if hint is Any:
        return True
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return isinstance(value, hint)


def _expected(hint: Any) -> str:
    """An annotation in words, such as `int`, `one of a, b` or `one of a, b, or None`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(_expected(arg) for arg in args)
    if hint is types.NoneType:
        return "None"
    return str(hint) if origin is not None or hint is Any else hint.__name__


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a dataclass to plain JSON values (tuples become lists)."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """The inverse of `to_dict`.

    Raises ConfigError, naming the field, if one is unknown, missing or invalid.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__}: expected an object, got {type(values).__name__}.")
    hints = _hints(cls)
    known = {f.name for f in dataclasses.fields(cast(Any, cls))}
    unknown = sorted(set(values) - known)
    require(not unknown, f"{cls.__name__} has no field {', '.join(unknown)}.")
    try:
        return cls(**{k: _typed(hints[k], v) for k, v in values.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{cls.__name__}: {error}") from None


def _typed(hint: Any, value: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _typed(next(a for a in args if a is not type(None)), value)
    if origin is tuple and isinstance(value, (list, tuple)):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_typed(args[0], v) for v in value)
        return tuple(_typed(a, v) for a, v in zip(args, value, strict=True))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value)
    return value
