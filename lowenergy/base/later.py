"""Functions that are imported when they are called: whoever only reads parameters does not wait for torch."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def later(place: str) -> Callable[..., Any]:
    """The function at this place, such as `lowenergy.compression.prune.pruning:compress`."""
    module, _, name = place.partition(":")

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(module), name)(*args, **kwargs)

    return call
