"""Draw images as one picture."""

import io
from pathlib import Path

import torch
from torch import Tensor

from lowenergy.base import files
from lowenergy.base.figures import GAP
from lowenergy.data.images import to_bytes


def write_grid(images: Tensor, path: Path, columns: int = 10) -> None:
    """Write images (n, c, h, w) in [-1, 1] as one PNG, small ones enlarged to about 32 pixels a side."""
    from PIL import Image

    scale = max(1, round(32 / images.shape[-1]))
    images = to_bytes(images).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    n, channels, height, width = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    high, wide = height + GAP, width + GAP
    sheet = torch.full((channels, GAP + rows * high, GAP + columns * wide), 128, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = GAP + i // columns * high, GAP + i % columns * wide
        sheet[:, top : top + height, left : left + width] = image
    out = io.BytesIO()
    Image.fromarray(sheet.expand(3, -1, -1).permute(1, 2, 0).numpy()).save(out, "PNG")
    files.write_bytes(path, out.getvalue())
