"""Values in nested dictionaries, such as params.yaml, addressed by dotted places: `ebm.train.lr`."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MISSING = object()


def value_at(values: Any, place: str | Sequence[Any]) -> Any:
    """The value at this place; MISSING if there is none."""
    for key in place.split(".") if isinstance(place, str) else place:
        if not isinstance(values, Mapping) or key not in values:
            return MISSING
        values = values[key]
    return values


def with_values(values: Any, changes: Mapping[str, Any]) -> Any:
    """A copy with these places set to these values; missing sections on the way are created."""
    values = copy.deepcopy(values)
    for place, value in changes.items():
        *path, last = place.split(".")
        section = values
        for key in path:
            section = section.setdefault(key, {})
        section[last] = value
    return values


def laid_over(own: Any, below: Any) -> Any:
    """Merge nested dictionaries; where both have a value, the one in `own` wins. `below` is not changed."""
    if not (isinstance(own, Mapping) and isinstance(below, Mapping)):
        return own
    return {**below, **{key: laid_over(value, below.get(key)) for key, value in own.items()}}


def leaves(values: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (place, value) for every value that is not a dictionary, and for every empty dictionary."""
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from leaves(value, f"{at}.{key}" if at else str(key))
    else:
        yield at, values
