"""Read those arguments of the calls that are plain numbers and paths, or refuse them with one line that names them."""

import operator
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lowenergy.base.errors import UserError

SEEDS = 2**63  # seeds are below this; torch.Generator takes all of them


def whole(name: str, value: Any, least: int = 1) -> int:
    """Return `value` as an int; it may be an integer of any package, such as numpy.

    Raises:
        UserError: it is not an integer, or is below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise UserError(f"{name}={value!r}: give a whole number") from None
    if number < least:
        raise UserError(f"{name}={number}: give at least {least}")
    return number


def seed_of(value: Any) -> int:
    """Return `value` as a seed of random numbers.

    Raises:
        UserError: it is not a whole number from 0 to 2^63 - 1.
    """
    number = whole("seed", value, least=0)
    if number >= SEEDS:
        raise UserError(f"seed={number}: give one below 2^63")
    return number


def above_zero(name: str, value: Any) -> float:
    """Return `value` as a finite float above 0.

    Raises:
        UserError: it is not one.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{name}={value!r}: give a number") from None
    if not 0 < number < float("inf"):
        raise UserError(f"{name}={number}: give a number above 0")
    return number


def trusted(value: Any) -> Collection[str]:
    """The names of modules and files whose code a model file may refer to; none for None.

    Raises:
        UserError: it is a single name, which would be read as a collection of letters.
    """
    if value is None:
        return ()
    if isinstance(value, str | os.PathLike):
        raise UserError(f"trust={value!r}: give a list, trust=[{os.fspath(value)!r}]")
    return tuple(map(str, value))


def path_of(name: str, value: Any) -> Path:
    """Return `value` as the path of a file or a directory.

    Raises:
        UserError: it is not a path, or contains a null character.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise UserError(f"{name}: {type(value).__name__} is no path; give the name of a file")
    if "\0" in os.fspath(value):
        raise UserError(f"{name}: {value!r} has a character that no file's name has")
    return Path(value)
