"""Where images come from: a module per source, found by its name; and the data sets of torchvision.

Each module has

    read(p) -> (train, test, classes)     test is None where the source has no test set of its own

with images uint8 (n, c, h, w) of any one size, or `Files` that are read when they are wanted; `lowenergy.data.prepare`
splits and resizes. A source with validation images of its own gives them as a fourth.
"""

from importlib import import_module
from importlib.util import find_spec

from lowenergy.data.images import DataError, Source
from lowenergy.data.torchvision import PREFIX, read_torchvision
from lowenergy.params import Data


def read(p: Data) -> Source:
    """The images of the params' source.

    Raises:
        DataError: they are missing, truncated or of the wrong format.
    """
    if p.source.startswith(PREFIX):
        return read_torchvision(p)
    if not (p.source.isidentifier() and find_spec(f"{__name__}.{p.source}")):  # a model file may name any
        raise DataError(f"data.source {p.source}: no file of lowenergy/data/sources is called so")
    return Source(*import_module(f"lowenergy.data.sources.{p.source}").read(p))
