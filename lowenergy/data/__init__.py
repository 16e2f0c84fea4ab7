"""Images: where they come from (`sources`), how they are split and kept, and become batches and pictures."""

from lowenergy.data.arrays import check_brightness, read_array
from lowenergy.data.batches import Batches, augment, shrink
from lowenergy.data.images import DataError, Floats, Split, at_a_time, handful, spaced, to_bytes, to_float
from lowenergy.data.pictures import write_grid
from lowenergy.data.preparing import prepare, test_images
from lowenergy.data.splits import SPLITS, Splits, load, save

__all__ = [
    "SPLITS",
    "Batches",
    "DataError",
    "Floats",
    "Split",
    "Splits",
    "at_a_time",
    "augment",
    "check_brightness",
    "handful",
    "load",
    "prepare",
    "read_array",
    "save",
    "shrink",
    "spaced",
    "test_images",
    "to_bytes",
    "to_float",
    "write_grid",
]
