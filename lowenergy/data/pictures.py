"""Images as one picture."""

from pathlib import Path

from torch import Tensor

from lowenergy.base import files
from lowenergy.data.images import to_bytes


def write_grid(images: Tensor, path: Path, columns: int = 10) -> None:
    """Images (n, c, h, w) in [-1, 1], small ones enlarged to about 32 pixels a side."""
    from torchvision.io import encode_png
    from torchvision.utils import make_grid

    scale = max(1, round(32 / images.shape[-1]))
    enlarged = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(enlarged, nrow=columns, padding=2, pad_value=0.0)
    files.write_bytes(path, encode_png(to_bytes(grid)).numpy().tobytes())
