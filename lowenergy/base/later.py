"""Functions that are imported only when they are called, so that reading parameters does not wait for torch."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def later(place: str) -> Callable[..., Any]:
    """A stand-in for the function at this place, such as `lowenergy.compression.prune.pruning:compress`."""
    module, _, name = place.partition(":")

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(module), name)(*args, **kwargs)

    return call
