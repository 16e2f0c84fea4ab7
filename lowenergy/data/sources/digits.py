"""scikit-learn's bundled digits: 1,797 images of 8x8, nothing to download."""

import torch

from lowenergy.data.images import Split
from lowenergy.params import Data


def read(p: Data) -> tuple[Split, None, list[str]]:
    from sklearn.datasets import load_digits

    digits = load_digits()  # values 0..16
    images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    return Split(images, torch.from_numpy(digits.target).long()), None, [str(digit) for digit in range(10)]
