"""Sources become seeded splits, or stop with an error that names the culprit."""

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import with_changes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from torch.nn import functional as F
from torchvision import datasets

from lowenergy import data, params
from lowenergy.base.files import FileError
from lowenergy.data import Batches, DataError, preparing
from lowenergy.targets.classifier import training as of_classifier
from lowenergy.training import Run


def section(values: Any, **changes: Any) -> params.Data:
    return params.check(with_changes(values, {f"data.{key}": value for key, value in changes.items()})).data


def test_digits_are_split_without_loss_or_overlap(splits: data.Splits) -> None:
    sizes = [len(split) for split in (splits.train, splits.validation, splits.test)]
    assert sum(sizes) == 1797
    assert splits.input_shape == (1, 8, 8)
    assert splits.train.images.dtype == torch.uint8
    for split in (splits.validation, splits.test):  # every class has its share
        assert (torch.bincount(split.labels, minlength=10) >= 0.08 * len(split)).all()


def test_same_seed_same_splits(values: Any, splits: data.Splits) -> None:
    again, other = (data.prepare(section(values), seed) for seed in (0, 1))
    assert torch.equal(again.test.images, splits.test.images)
    assert not torch.equal(other.test.images, splits.test.images)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=64))
def test_bytes_survive_the_way_to_the_networks_and_back(pixels: list[int]) -> None:
    images = torch.tensor(pixels, dtype=torch.uint8)
    floats = data.to_float(images)
    assert floats.min() >= -1 and floats.max() <= 1
    assert torch.equal(data.to_bytes(floats), images)


def test_save_and_load(splits: data.Splits, tmp_path: Path) -> None:
    data.save(splits, tmp_path / "splits.safetensors")
    loaded = data.load(tmp_path / "splits.safetensors")
    assert torch.equal(loaded.validation.images, splits.validation.images)
    assert (loaded.classes, loaded.source) == (splits.classes, "digits")
    assert [path.name for path in tmp_path.iterdir()] == ["splits.safetensors"]


def test_truncated_splits_are_refused(splits: data.Splits, tmp_path: Path) -> None:
    path = tmp_path / "splits.safetensors"
    data.save(splits, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match="splits.safetensors: truncated"):
        data.load(path)


def test_images_are_resized_and_coloured(values: Any) -> None:
    prepared = data.prepare(section(values, image_size=16, channels=3, limit=200), seed=0)
    assert prepared.train.images.shape[1:] == (3, 16, 16)
    assert len(prepared.train) + len(prepared.validation) == 200
    grey = prepared.train.images
    assert torch.equal(grey[:, 0], grey[:, 1])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, shade in (("dark", 40), ("light", 200)):
        (tmp_path / name).mkdir()
        for i in range(12):
            pixels = np.clip(rng.normal(shade, 20, (20 + i, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    return tmp_path


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_own_images(values: Any, pictures: Path, channels: int) -> None:
    prepared = data.prepare(
        section(values, source="folder", folder=str(pictures), image_size=16, channels=channels), seed=0
    ).read()
    assert prepared.classes == ["dark", "light"]
    assert prepared.train.images.shape[1:] == (channels, 16, 16)
    means = [prepared.train.images[prepared.train.labels == label].float().mean() for label in (0, 1)]
    assert means[0] < 80 and means[1] > 160  # labels still belong to their images


def test_bad_folders_are_refused(values: Any, pictures: Path) -> None:
    def message(**changes: Any) -> str:
        with pytest.raises(DataError) as error:
            data.prepare(section(values, source="folder", image_size=16, **changes), seed=0).read()
        return str(error.value)

    assert "no such directory" in message(folder=str(pictures / "none"))
    assert "sub-directory of their own" in message(folder=str(pictures / "dark"))
    (pictures / "dark" / "3.png").write_bytes(b"not a picture")
    assert "3.png: not a readable image" in message(folder=str(pictures))
    (pictures / "dark" / "3.png").unlink()
    (pictures / "empty").mkdir()
    assert "empty" in message(folder=str(pictures))
    for name in ("dark", "empty"):
        for path in (pictures / name).glob("*"):
            path.unlink()
        (pictures / name).rmdir()
    assert "one class (light) only" in message(folder=str(pictures))


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return head + array.tobytes()


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    """A torchvision root whose MNIST is random but of the official format."""
    rng = np.random.default_rng(0)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 300), ("t10k", 100)):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    return tmp_path


def test_an_existing_mnist_root_is_taken_as_it_is(values: Any, mnist_root: Path) -> None:
    prepared = data.prepare(section(values, source="mnist", root=str(mnist_root)), seed=0)
    assert prepared.train.images.shape == (270, 1, 28, 28)
    assert len(prepared.test) == 100
    assert prepared.source == "mnist"


@pytest.mark.parametrize("name", ["FashionMNIST", "KMNIST"])
def test_data_sets_of_torchvision_go_by_their_names(values: Any, mnist_root: Path, name: str) -> None:
    (mnist_root / "MNIST").rename(mnist_root / name)
    prepared = data.prepare(section(values, source=f"torchvision.datasets.{name}", root=str(mnist_root)), seed=0).read()
    assert prepared.train.images.shape == (270, 1, 28, 28)
    assert len(prepared.classes) == 10 and prepared.source == f"torchvision.datasets.{name}"


@pytest.mark.parametrize("name", ["SVHN", "CIFAR10"])
def test_colour_data_sets_of_torchvision(
    values: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random pixels in the official formats: one that is split by name and keeps height first, one split by a flag."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8), np.arange(60) % 10
    monkeypatch.setattr(
        getattr(datasets, name), "_check_integrity", lambda self: True
    )  # the checksums of the real ones
    if name == "SVHN":
        for part in ("train", "test"):
            content = {"X": pixels.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None]}
            savemat(tmp_path / f"{part}_32x32.mat", content)
    else:
        place = tmp_path / "cifar-10-batches-py"
        place.mkdir()
        rows = pixels.transpose(0, 3, 1, 2).reshape(60, -1)
        for part in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
            (place / part).write_bytes(pickle.dumps({"data": rows, "labels": labels.tolist()}))
        (place / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
        monkeypatch.setitem(datasets.CIFAR10.meta, "md5", None)
    source = f"torchvision.datasets.{name}"
    prepared = data.prepare(section(values, source=source, root=str(tmp_path), channels=3), seed=0).read()
    assert len(prepared.train) + len(prepared.validation) == (60 if name == "SVHN" else 300)
    assert torch.equal(prepared.test.images, torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    assert prepared.test.labels.tolist() == labels.tolist() and len(prepared.classes) == 10


@pytest.mark.parametrize("name", ["Nothing", "VisionDataset", "VOCDetection"])
def test_what_is_no_data_set_for_classifiers_is_refused(values: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"data.source torchvision.datasets.{name}: "):
        data.prepare(section(values, source=f"torchvision.datasets.{name}", root=str(tmp_path)), seed=0)


def test_classes_in_the_order_of_a_network(values: Any, pictures: Path) -> None:
    folder = section(values, source="folder", folder=str(pictures), image_size=16)
    prepared = data.prepare(folder.model_copy(update={"classes": ["light", "dark"]}), seed=0).read()
    assert prepared.classes == ["light", "dark"]
    means = [prepared.train.images[prepared.train.labels == label].float().mean() for label in (0, 1)]
    assert means[0] > 160 and means[1] < 80
    with pytest.raises(DataError, match="data.classes: lacks dark; there are no images of grey"):
        data.prepare(folder.model_copy(update={"classes": ["light", "grey"]}), seed=0)


def test_images_of_a_folder_are_read_as_they_are_written(values: Any, pictures: Path, tmp_path: Path) -> None:
    """The same file as of images in memory; a picture that cannot be read leaves nothing behind."""
    prepared = data.prepare(section(values, source="folder", folder=str(pictures), image_size=16), seed=0)
    place = tmp_path / "out"
    data.save(prepared, place / "files.safetensors")
    data.save(prepared.read(), place / "memory.safetensors")
    assert (place / "files.safetensors").read_bytes() == (place / "memory.safetensors").read_bytes()
    Path(prepared.test.paths[0]).write_bytes(b"no picture")
    with pytest.raises(DataError, match="not a readable image"):
        data.save(prepared, place / "files.safetensors")
    assert sorted(path.name for path in place.iterdir()) == ["files.safetensors", "memory.safetensors"]


@pytest.mark.parametrize("damage", ["truncate", "garbage", "remove", "gzip"])
def test_damaged_mnist_is_refused(values: Any, mnist_root: Path, damage: str) -> None:
    path = mnist_root / "MNIST/raw/train-images-idx3-ubyte"
    content = path.read_bytes()
    path.unlink()
    if damage != "remove":
        path.write_bytes({"truncate": content[:1000], "garbage": b"x" * 500, "gzip": gzip.compress(content)}[damage])
    with pytest.raises(DataError, match="data.source mnist: the files under .* cannot be used"):
        data.prepare(section(values, source="mnist", root=str(mnist_root)), seed=0)


def test_damaged_cifar_is_refused_before_it_is_unpickled(values: Any, tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    for name in ("train", "test", "meta"):
        (tmp_path / "cifar-100-python" / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(DataError, match="cifar100"):
        data.prepare(section(values, source="cifar100", root=str(tmp_path), channels=3), seed=0)


@given(count=st.integers(1, 50), batch_size=st.integers(1, 60), step=st.integers(0, 200))
def test_batches_are_a_function_of_the_step(count: int, batch_size: int, step: int) -> None:
    batches, again = Batches(count, batch_size, seed=3), Batches(count, batch_size, seed=3)
    for earlier in range(0, step, 7):
        batches(earlier)
    assert torch.equal(batches(step), again(step))


def test_colours_become_the_grey_that_pillow_makes() -> None:
    colours = torch.randint(256, (30, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    colours[0], colours[1:3] = 255, colours[1:3, :1]  # white, and grey already
    grey = preparing._grey(colours)
    of_pillow = [np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in colours]
    assert torch.equal(grey[:, 0], torch.from_numpy(np.stack(of_pillow)))
    assert bool((grey[0] == 255).all()) and torch.equal(grey[1:3], colours[1:3, :1])


def test_a_handful_of_images_that_lie_class_by_class_is_of_all_classes() -> None:
    many = torch.arange(1100, dtype=torch.uint8)[:, None, None, None].expand(1100, 1, 512, 512)
    some = data.handful(many)[:, 0, 0, 0]
    assert len(some) == 500 and torch.equal(some, many[data.spaced(1100, 500), 0, 0, 0])
    assert data.spaced(1100, 500)[[0, -1]].tolist() == [0, 1099] and data.spaced(5, 9).tolist() == [0, 1, 2, 3, 4]


def test_an_epoch_shows_every_image_once() -> None:
    batches = Batches(100, 25, seed=0)
    seen = torch.cat([batches(step) for step in range(4)])
    assert sorted(seen.tolist()) == list(range(100))
    assert not torch.equal(batches(4), batches(0))


def test_augmented_images_are_shifted_copies(generator: torch.Generator) -> None:
    image = torch.rand(1, 1, 8, 8).expand(64, -1, -1, -1)
    padded = torch.nn.functional.pad(image[:1], [2] * 4, mode="reflect")
    crops = {tuple(padded[0, 0, i : i + 8, j : j + 8].flatten().tolist()) for i in range(5) for j in range(5)}
    for out in data.augment(image, crop_padding=2, flip=False, generator=generator):
        assert tuple(out.flatten().tolist()) in crops
    flipped = data.augment(image, crop_padding=0, flip=True, generator=generator)
    mirrored = (flipped == image.flip(3)).flatten(1).all(1)
    assert 10 < int(mirrored.sum()) < 54


def test_images_are_neither_cropped_nor_shrunk_to_nothing(generator: torch.Generator) -> None:
    images = torch.rand(3, 1, 8, 8)
    assert data.augment(images, crop_padding=7, flip=False, generator=generator).shape == images.shape
    with pytest.raises(data.DataError, match="crop_padding = 8: images of 8x8 pixels have too few"):
        data.augment(images, crop_padding=8, flip=False, generator=generator)
    assert data.shrink(images, 0.125).shape[2:] == (1, 1)
    with pytest.raises(data.DataError, match="image_scales = 0.1: of images of 8 pixels a side nothing"):
        data.shrink(images, 0.1)


def test_shrinking_keeps_the_picture(splits: data.Splits) -> None:
    images = data.to_float(splits.train.images[:50])
    small = data.shrink(images, 0.5)
    assert small.shape == (50, 1, 4, 4)
    assert torch.corrcoef(torch.stack([small.flatten(), F.avg_pool2d(images, 2).flatten()]))[0, 1] > 0.95
    assert data.shrink(images, 1.0) is images


def test_classifiers_train_on_small_images_first(
    small: params.Params, splits: data.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(of_classifier, "shrink", lambda images, scale: (seen.append(scale), images)[1])
    train = small.classifier.train.model_copy(update={"epochs": 2, "image_scales": [0.5, 1.0]})
    p = small.classifier.model_copy(update={"train": train})
    of_classifier.train(splits, p, Run("classifier", 0, [], root=tmp_path))
    steps = seen[1:]  # the first batch is the one by which a network is tried before it is trained
    assert steps == sorted(steps) and steps.count(0.5) == steps.count(1.0) == len(steps) / 2
