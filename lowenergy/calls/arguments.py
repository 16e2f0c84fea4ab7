"""Arguments of the calls that are plain numbers and paths: read, or refused by one line that names them."""

import operator
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lowenergy.base.errors import UserError

SEEDS = 2**63  # as many as torch.Generator takes


def whole(name: str, value: Any, least: int = 1) -> int:
    """An integer, of whatever package.

    Raises:
        UserError: it is none, or below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise UserError(f"{name}={value!r}: give a whole number") from None
    if number < least:
        raise UserError(f"{name}={number}: give at least {least}")
    return number


def seed_of(value: Any) -> int:
    """Of random numbers.

    Raises:
        UserError: it is no whole number from 0 to 2^63 - 1.
    """
    number = whole("seed", value, least=0)
    if number >= SEEDS:
        raise UserError(f"seed={number}: give one below 2^63")
    return number


def above_zero(name: str, value: Any) -> float:
    """A finite number above 0.

    Raises:
        UserError: it is none.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{name}={value!r}: give a number") from None
    if not 0 < number < float("inf"):
        raise UserError(f"{name}={number}: give a number above 0")
    return number


def trusted(value: Any) -> Collection[str]:
    """Whose code a file may name; None is nobody's.

    Raises:
        UserError: one name by itself, which would be a set of letters.
    """
    if value is None:
        return ()
    if isinstance(value, str | os.PathLike):
        raise UserError(f"trust={value!r}: give a list, trust=[{os.fspath(value)!r}]")
    return tuple(map(str, value))


def path_of(name: str, value: Any) -> Path:
    """Of a file or a directory.

    Raises:
        UserError: it is no path.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise UserError(f"{name}: {type(value).__name__} is no path; give the name of a file")
    if "\0" in os.fspath(value):
        raise UserError(f"{name}: {value!r} has a character that no file's name has")
    return Path(value)
