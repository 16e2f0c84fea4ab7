"""Dividing a file's bits among layers: each where it lowers the loss most."""

from collections.abc import Mapping
from typing import TypeVar

Way = TypeVar("Way")  # to store a layer, such as a number of bits


def divide_bits(choices: Mapping[str, Mapping[Way, tuple[int, float]]], budget: int) -> dict[str, Way]:
    """The way in which each layer is stored, found from the smallest ones on by what each further bit gains.

    Args:
        choices: of each layer, the ways to store it: how many bits each takes, and the loss that it adds.
        budget: bits of all layers together; the smallest way of every layer is given in any case.
    """
    found = {name: min(ways, key=lambda way: ways[way]) for name, ways in choices.items()}
    left = budget - sum(choices[name][way][0] for name, way in found.items())
    while True:
        best, step = 0.0, None
        for name, ways in choices.items():
            size, loss = ways[found[name]]
            for way, (larger, lower) in ways.items():
                if 0 < larger - size <= left and lower < loss and (loss - lower) / (larger - size) > best:
                    best, step = (loss - lower) / (larger - size), (name, way, larger - size)
        if step is None:
            return found
        name, way, more = step
        found[name], left = way, left - more
