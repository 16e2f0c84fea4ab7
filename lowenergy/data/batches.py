"""From splits to batches: which images each batch holds, and how they are augmented."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from lowenergy.data.images import DataError


class Batches:
    """Choose the images of each step's batch: every epoch has a new order, and drops its last batch if incomplete.

    The choice depends only on (seed, step), so a resumed run sees the batches that it would have seen.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, min(batch_size, count), seed
        self.per_epoch = count // self.batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, step: int) -> Tensor:
        """The indices of a step's images, (batch_size,), on the CPU."""
        epoch, batch = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.count, generator=generator)
        return self._order[batch * self.batch_size :][: self.batch_size]


def augment(images: Tensor, crop_padding: int, flip: bool, generator: Generator) -> Tensor:
    """Randomly crop (after reflecting `crop_padding` pixels) and mirror a whole batch at once, (n, c, h, w).

    Raises:
        DataError: there are not so many pixels to reflect.
    """
    n, _, height, width = images.shape
    if crop_padding >= min(height, width):
        raise DataError(f"crop_padding = {crop_padding}: images of {height}x{width} pixels have too few; give less")
    device = images.device
    if flip:
        mirrored = torch.rand(n, 1, 1, 1, generator=generator, device=device) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
    if crop_padding:
        padded = F.pad(images, [crop_padding] * 4, mode="reflect")
        offset = torch.randint(2 * crop_padding + 1, (2, n, 1, 1, 1), generator=generator, device=device)
        rows = offset[0] + torch.arange(height, device=device)[:, None]
        columns = offset[1] + torch.arange(width, device=device)
        index = (rows * padded.shape[3] + columns).flatten(2).expand(-1, images.shape[1], -1)  # (n, c, h*w)
        images = padded.flatten(2).gather(2, index).view_as(images)
    return images


def shrink(images: Tensor, scale: float) -> Tensor:
    """Resize images, (n, c, h, w), to `scale` times their side.

    Raises:
        DataError: that is less than a pixel.
    """
    if scale == 1:
        return images
    if scale * images.shape[2] < 1:
        raise DataError(f"image_scales = {scale}: of images of {images.shape[2]} pixels a side nothing would be left")
    return F.interpolate(images, scale_factor=scale, mode="bilinear", antialias=True)
