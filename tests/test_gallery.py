"""The pictures show what their captions say."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.io import decode_png, read_file

from lowenergy import data, networks, params
from lowenergy.data import write_grid
from lowenergy.reporting import front
from lowenergy.scoring import gallery

SPEC = networks.Spec("cnn", 8, "3x3", "swish", "none", channels=1, image_size=8, outputs=10)


def picture(path: Path) -> Tensor:
    return decode_png(read_file(str(path)))


def tile(path: Path, row: int, column: int, size: int = 32) -> Tensor:
    """One 8x8 image of a grid, grey, as it was before enlarging."""
    top, left = 2 + row * (size + 2), 2 + column * (size + 2)
    return picture(path)[0, top : top + size : 4, left : left + size : 4]


def test_a_grid_shows_its_images_in_order(splits: data.Splits, tmp_path: Path) -> None:
    images = splits.test.images[:7]
    write_grid(data.to_float(images), tmp_path / "grid.png", columns=5)
    assert picture(tmp_path / "grid.png").shape == (3, 2 * 34 + 2, 5 * 34 + 2)
    for i, image in enumerate(images):
        assert torch.equal(tile(tmp_path / "grid.png", i // 5, i % 5), image[0])


def test_a_copy_is_shown_above_its_original(splits: data.Splits, tmp_path: Path) -> None:
    training = splits.train.images
    picked = torch.tensor([5, 700, 31, 8])
    noisy = data.to_float(training[picked]) + 0.05 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    gallery.write_neighbours(noisy.clamp(-1, 1), training, tmp_path / "pairs.png", columns=2)
    for i, original in enumerate(picked):
        assert torch.equal(tile(tmp_path / "pairs.png", 2 * (i // 2) + 1, i % 2), training[original, 0])


def test_a_strip_starts_at_noise_and_ends_at_the_chains_end(small: params.Params, tmp_path: Path) -> None:
    downhill = lambda x: 3 * (x - 0.5).square().flatten(1).sum(1)  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    gallery.write_strip(downhill, (1, 8, 8), 60, small.ebm.train.sampler, generator, tmp_path / "strip.png")
    spread = [tile(tmp_path / "strip.png", 0, column).float().std() for column in range(gallery.STATES)]
    assert spread[0] > 50 > 10 > spread[-1]
    assert abs(tile(tmp_path / "strip.png", 1, gallery.STATES - 1).float().mean() - 191) < 6  # 0.5 of [-1, 1]


def test_histograms_are_drawn(tmp_path: Path) -> None:
    scorer = networks.build(SPEC, seed=0).eval()
    gallery.write_classes(scorer, torch.zeros(20, 1, 8, 8), [str(i) for i in range(10)], tmp_path / "classes.png")
    energies = {"train": torch.randn(50), "test": torch.randn(50), "noise": 1e4 + torch.randn(50)}
    gallery.write_energies(energies, tmp_path / "energies.png")
    for name in ("classes", "energies"):
        assert picture(tmp_path / f"{name}.png").float().std() > 10


def test_axes_of_a_narrow_range_have_ticks() -> None:
    for low, high in ((3000.0, 4500.0), (9.0, 11.0), (1e4, 1e6)):
        ticks = front._ticks(low, high, logarithmic=True)
        assert 2 <= len(ticks) <= 7 and all(0.8 * low <= tick <= 1.2 * high for tick in ticks), ticks
