"""Where images come from: one module per source, found by its name, and torchvision's data sets.

Each module has

    read(p) -> (train, test, classes)     test is None where the source has no test set of its own

with images uint8 (n, c, h, w) of any one size, or `Files` that are read when they are needed; `lowenergy.data.prepare`
splits and resizes them. A source with validation images of its own returns these as a fourth element.
"""

from importlib import import_module
from importlib.util import find_spec

from lowenergy.data.images import DataError, Source
from lowenergy.data.torchvision import PREFIX, read_torchvision
from lowenergy.params import Data


def read(p: Data) -> Source:
    """Read the images of the source that the params name.

    Raises:
        DataError: they are missing, truncated or of the wrong format.
    """
    if p.source.startswith(PREFIX):
        return read_torchvision(p)
    if not (p.source.isidentifier() and find_spec(f"{__name__}.{p.source}")):  # a model file may name any source
        raise DataError(f"data.source {p.source}: no file of lowenergy/data/sources is called so")
    return Source(*import_module(f"lowenergy.data.sources.{p.source}").read(p))
