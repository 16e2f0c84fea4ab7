"""Where images come from: a module per source, found by its name; and the data sets of torchvision.

Each module has

    read(p) -> (train, test, classes)     test is None where the source has no test set of its own

with images uint8 (n, c, h, w) of any one size, or `Files` that are read when they are wanted; `lowenergy.data.prepare`
splits and resizes.
"""

from importlib import import_module

from lowenergy.base.params import Data
from lowenergy.data.images import Files, Split
from lowenergy.data.torchvision import PREFIX, read_torchvision

Source = tuple[Split | Files, Split | None, list[str]]


def read(p: Data) -> Source:
    """The images of the params' source.

    Raises:
        DataError: they are missing, truncated or of the wrong format.
    """
    if p.source.startswith(PREFIX):
        return read_torchvision(p.source, p.root, p.image_size)
    found: Source = import_module(f"lowenergy.data.sources.{p.source}").read(p)
    return found
