"""Where images come from: a module per source, found by its name.

Each module has

    read(p) -> (train, test, classes)     test is None where the source has no test set of its own

with images uint8 (n, c, h, w) of any one size; `lowenergy.data.prepare` splits and resizes.
"""

from importlib import import_module

from lowenergy.base.params import Data
from lowenergy.data.images import Split

Source = tuple[Split, Split | None, list[str]]


def read(p: Data) -> Source:
    """The images of the params' source.

    Raises:
        DataError: they are missing, truncated or of the wrong format.
    """
    found: Source = import_module(f"lowenergy.data.sources.{p.source}").read(p)
    return found
