"""Your own images: one sub-directory per class."""

from pathlib import Path

import torch

from lowenergy.base.params import Data
from lowenergy.data.images import DataError, Split


def read(p: Data) -> tuple[Split, None, list[str]]:
    from PIL import Image, UnidentifiedImageError
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    folder, size = p.folder, p.image_size
    assert size is not None  # the schema insists
    if not Path(folder).is_dir():
        raise DataError(f"data.folder {folder}: no such directory; give one with a sub-directory of images per class")
    resize = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size), v2.PILToTensor()])
    mode = "L" if p.channels == 1 else "RGB"
    try:
        found = ImageFolder(folder, loader=lambda path: Image.open(path).convert(mode), transform=resize)
    except FileNotFoundError as error:
        raise DataError(
            f"data.folder {folder}: {error} Put the images of each class in a sub-directory of their own"
        ) from None
    if len(found.classes) < 2:
        raise DataError(f"data.folder {folder}: one class ({found.classes[0]}) only; at least two are needed")
    images = torch.empty(len(found), p.channels, size, size, dtype=torch.uint8)
    for i, (path, _) in enumerate(found.samples):
        try:
            images[i] = found[i][0]
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise DataError(f"{path}: not a readable image ({error}); repair or remove it") from None
    return Split(images, torch.tensor(found.targets)), None, found.classes
