"""Your own images: one sub-directory per class. Read when they are written to the splits, so that memory holds few."""

from pathlib import Path

import torch

from lowenergy.base.params import Data
from lowenergy.data.images import DataError, Files


def read(p: Data) -> tuple[Files, None, list[str]]:
    from torchvision.datasets import ImageFolder

    folder, size = p.folder, p.image_size
    assert size is not None  # the schema insists
    if not Path(folder).is_dir():
        raise DataError(f"data.folder {folder}: no such directory; give one with a sub-directory of images per class")
    try:
        found = ImageFolder(folder)
    except FileNotFoundError as error:
        raise DataError(
            f"data.folder {folder}: {error} Put the images of each class in a sub-directory of their own"
        ) from None
    if len(found.classes) < 2:
        raise DataError(f"data.folder {folder}: one class ({found.classes[0]}) only; at least two are needed")
    return (
        Files([path for path, _ in found.samples], torch.tensor(found.targets), p.channels, size),
        None,
        found.classes,
    )
