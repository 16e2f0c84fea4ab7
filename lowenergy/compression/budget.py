"""Divide a file's bits among layers, each bit where it lowers the loss most."""

from collections.abc import Mapping
from typing import TypeVar

Way = TypeVar("Way")  # a way to store a layer, such as a number of bits


def divide_bits(choices: Mapping[str, Mapping[Way, tuple[int, float]]], budget: int) -> dict[str, Way]:
    """Choose the way in which each layer is stored: start with the smallest, then spend bits where each gains most.

    Args:
        choices: for each layer, the ways to store it: how many bits each takes, and the loss that it adds.
        budget: bits of all layers together; every layer gets at least its smallest way, whatever the budget.
    """
    chosen = {name: min(ways, key=lambda way: ways[way]) for name, ways in choices.items()}
    left = budget - sum(choices[name][way][0] for name, way in chosen.items())
    while True:
        best, step = 0.0, None
        for name, ways in choices.items():
            size, loss = ways[chosen[name]]
            for way, (larger, lower) in ways.items():
                if 0 < larger - size <= left and lower < loss and (loss - lower) / (larger - size) > best:
                    best, step = (loss - lower) / (larger - size), (name, way, larger - size)
        if step is None:
            return chosen
        name, way, more = step
        chosen[name], left = way, left - more
