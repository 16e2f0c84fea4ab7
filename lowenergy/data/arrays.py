"""Read images that another program wrote as a NumPy array, .npz or .npy."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowenergy.data.decoding import DARKEST
from lowenergy.data.images import DataError

NAME = "images"  # name of the array in a .npz; if it is the only one, it may have any name


def read_array(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Read images, uint8 (n, c, h, w), from an array of that shape, or without c if that is 1, or with c last.

    Raises:
        DataError: the file is missing or holds anything else; nothing is unpickled.
    """
    advice = "give a .npz or .npy file of uint8 images"
    if not path.is_file():
        raise DataError(f"{path}: {'a directory' if path.is_dir() else 'No such file'}; {advice}")
    try:
        array = _array(path)
    except (DataError, PermissionError):
        raise
    except Exception as error:  # numpy and zipfile raise nearly anything on damaged files
        damaged = "allow_pickle" not in str(error)  # numpy takes whatever it does not know for a pickle
        why = f", or a damaged one ({error})" if damaged else ""
        raise DataError(f"{path}: no .npz or .npy file{why}; {advice}") from None
    channels, height, width = shape
    if array.dtype != np.uint8:
        raise DataError(f"{path}: {array.dtype} where uint8 is needed, 0 for black and 255 for white")
    if channels == 1 and array.shape[1:] == (height, width):
        array = array[:, None]
    elif array.shape[1:] == (height, width, channels) != shape:
        array = np.moveaxis(array, 3, 1)
    if array.shape[1:] != shape:
        raise DataError(f"{path}: an array of {array.shape}, where images of {shape} are needed: (n, c, h, w)")
    return torch.from_numpy(np.ascontiguousarray(array))


def check_brightness(brightest: int, where: str) -> None:
    """Check that 8-bit images use their 8 bits: digits from 0 to 16, say, or masks of 0 and 1, are no pixels.

    Raises:
        DataError: no pixel is brighter than DARKEST of white, though not all are black.
    """
    if 0 < brightest <= DARKEST * 255 + 1:
        raise DataError(f"{where}: no pixel is brighter than {brightest}, and white is 255; scale the images to 0..255")


def _array(path: Path) -> Any:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded as arrays:
        names = arrays.files
        if NAME not in names and len(names) != 1:
            raise DataError(f"{path}: no array `{NAME}` among {', '.join(names) or 'none'}; name it so")
        array = arrays[NAME if NAME in names else names[0]]
    if not isinstance(array, np.ndarray):  # a file in the archive that is not an array
        raise DataError(f"{path}: no array `{NAME}`, but files of other kinds")
    return array
