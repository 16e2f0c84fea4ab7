"""FID as papers have it: the network, its file and its figures, with random weights, for none are to be had here."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import inception as torchvisions

import lowenergy
from benchmarks import inception_fid
from benchmarks.inception_fid import images
from lowenergy import cli
from lowenergy.base.errors import UserError
from lowenergy.base.files import FileError
from lowenergy.calls import inception
from lowenergy.scoring import generation, intervals

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return inception_fid.random_weights()


@pytest.fixture(scope="module")
def weights(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "fid.safetensors"
    save_file(inception_fid.of_fid(state), path)
    return path


def reference(state: State, enlarged: Tensor) -> Tensor:
    """Features by torchvision's network as it is written, its pools replaced while it runs."""

    def average(x: Tensor, **kwargs: Any) -> Tensor:
        if x.shape[1] == 2048:  # into the last block; the block before it has 1,280 channels
            return F.max_pool2d(x, 3, 1, 1)
        return F.avg_pool2d(x, **kwargs) / F.avg_pool2d(torch.ones_like(x[:1, :1]), **kwargs)

    with torch.device("meta"):
        network = torchvisions.Inception3(num_classes=1000, transform_input=False, init_weights=False).eval()
    network.load_state_dict(state, assign=True)
    network.fc = torch.nn.Identity()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torchvisions, "F", SimpleNamespace(**{**vars(F), "avg_pool2d": average}))
        found: Tensor = network(enlarged)
    return found


def test_features_are_those_of_torchvisions_network_with_other_pools(
    state: State, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = images(4, 20)
    enlarged = F.interpolate(seen.float() / 255, (299, 299), mode="bilinear", align_corners=False)
    wanted = reference(state, 2 * enlarged - 1)
    assert wanted.std(0).mean() > 0.05 * wanted.abs().mean(), "random weights that tell images apart"
    network, answer = inception.read_network(weights)
    assert answer.shape == (1008, 2048) and not capsys.readouterr().out
    found = inception.features_of(network, seen)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    save_file(state, tmp_path / "torchvision.safetensors")
    network, answer = inception.read_network(tmp_path / "torchvision.safetensors")
    assert answer.shape == (1000, 2048) and "compare with no paper's" in capsys.readouterr().out
    assert torch.equal(inception.features_of(network, seen), found)


def fid(first: Tensor, second: Tensor) -> float:
    a, b = (features.double().numpy() for features in (first, second))
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real))


@pytest.mark.parametrize(("real", "found"), [(300, 200), (50, 200), (300, 30), (20, 30)])
def test_distances_are_the_formula(real: int, found: int) -> None:
    """With more images than features, and with fewer on either side."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(64, 64, generator=generator)
    first = torch.randn(real, 64, generator=generator) @ mix + 3
    second = torch.randn(found, 64, generator=generator) @ mix
    value, *again = inception.distances(first, second, seed=1)
    assert value == pytest.approx(generation.distance_between(first, second), rel=1e-7)
    if min(real, found) > 64:
        assert value == pytest.approx(fid(first, second), rel=1e-7)
    drawn = intervals.resampled(lambda index: generation.distance_between(first, second[index]), found, seed=1)
    assert again == pytest.approx(drawn, rel=1e-7)
    same = inception.distances(torch.ones(3, 64), second, seed=1)[0]
    assert same == pytest.approx(float(((second.mean(0) - 1) ** 2).sum() + second.var(0).sum()), rel=1e-5)


@pytest.mark.slow
def test_fid_of_files_and_folders(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn, real = images(3, 20), images(4, 24, channels=1, seed=1)
    folder = tmp_path / "real"
    folder.mkdir()
    for i, image in enumerate(real):
        Image.fromarray(image[0].numpy()).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("no image")
    np.savez("drawn.npz", images=drawn.movedim(1, 3).numpy())
    np.save("real.npy", real[:, 0].numpy())
    assert torch.equal(inception.pixels_of("drawn.npz", "images"), drawn)
    assert torch.equal(inception.pixels_of("real.npy", "real"), real)
    seen: list[Tensor] = []
    features_of = inception.features_of
    monkeypatch.setattr(inception, "features_of", lambda *args: seen.append(features_of(*args)) or seen[-1])
    figures = lowenergy.fid(drawn, inception=weights, real=real)
    second, first = seen
    assert figures.fid.value == pytest.approx(generation.distance_between(first, second), rel=1e-5)
    assert figures.inception_score == generation.score_surely(second @ inception.read_network(weights)[1].T, 0)
    assert figures.fid.low < figures.fid.value < figures.fid.high and figures.images == 3
    assert cli.main(["fid", "drawn.npz", "--inception", str(weights), "--real", "real"]) == 0
    assert torch.equal(seen[2], second) and torch.equal(seen[3], first), "a grey file is a grey array"
    assert f"fid {figures.fid.value:.4f}" in capsys.readouterr().out


def test_images_may_have_any_size(tmp_path: Path) -> None:
    tall = images(3, 20)[:, :, :, :11]
    assert inception.pixels_of(tall, "images") is not None
    for i, image in enumerate(tall):
        Image.fromarray(image.movedim(0, 2)[: 10 + i].numpy()).save(tmp_path / f"{i}.png")
    found = inception.pixels_of(tmp_path, "images")
    assert [tuple(image.shape) for image in found[:]] == [(3, 10, 11), (3, 11, 11), (3, 12, 11)]
    assert torch.equal(found[:][1], tall[1, :, :11])


def test_what_cannot_be_measured_is_one_line(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = images(3, 20)
    for given, message in (
        ({"inception": weights}, "give the images to compare with"),
        ({"inception": weights, "scorer": "scorer.safetensors", "real": three}, "give one of both"),
        ({"real": three}, "give one of both"),
        ({"inception": weights, "real": three[:1]}, "real: 1 images"),
        ({"inception": weights, "real": torch.zeros(3, 2, 8, 8, dtype=torch.uint8)}, "real: 2 channels"),
        ({"inception": weights, "real": tmp_path}, "0 images"),
        ({"inception": tmp_path / "none", "real": three}, "no such file"),
        ({"inception": tmp_path, "real": three}, "Is a directory"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            lowenergy.fid(three, **given)
        assert "\n" not in str(caught.value)
    with pytest.raises(SystemExit):
        cli.main(["fid", "images.npz", "--inception", "a", "--scorer", "b"])
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(1, 6, 3, 8, 8), (6, 3, 0, 8), (6, 8, 8, 4), (6,)])
def test_arrays_that_are_no_images_are_one_line(shape: tuple[int, ...], weights: Path, tmp_path: Path) -> None:
    np.save(path := tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=rf"^{path}: an array {re.escape(str(shape))}; give images \(n, h, w\), or"):
        lowenergy.fid(path, inception=weights, real=images(3, 20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.bias": None}, "fc.bias is missing"),
        ({"Mixed_8a.conv.weight": torch.ones(1)}, "'Mixed_8a.conv.weight' is no tensor"),
        ({"fc.weight": torch.ones(10, 2048)}, r"fc.weight has shape \(10, 2048\), where \(1008, 2048\)"),
        ({"fc.weight": torch.ones(1008, 2048, dtype=torch.uint8)}, "fc.weight is of U8"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Tensor | None], message: str
) -> None:
    from safetensors.torch import load_file

    state = load_file(weights) | change
    path = tmp_path / "bad.safetensors"
    save_file({name: value for name, value in state.items() if value is not None}, path)
    monkeypatch.setattr(inception, "features_of", None)  # nothing is computed
    with pytest.raises(FileError, match=f"bad.safetensors: {message}") as caught:
        lowenergy.fid(images(3, 20), inception=path, real=images(3, 20))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_one_line(weights: Path, state: State, tmp_path: Path) -> None:
    torch.save({"fc.bias": state["fc.bias"]}, tmp_path / "new.pth")
    torch.save({"fc.bias": state["fc.bias"]}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:100_000])
    (tmp_path / "long.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name, message in (
        ("new.pth", "turn it into safetensors: python -c"),
        ("old.pth", "turn it into safetensors: python -c"),
        ("cut.safetensors", "truncated or not"),
        ("long.safetensors", "no list of tensors"),
        ("empty.safetensors", "truncated or not"),
    ):
        with pytest.raises(FileError, match=message) as caught:
            inception.read_network(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_one_line(weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(weights)
    state["Mixed_7c.branch1x1.bn.running_var"].fill_(-1)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(FileError, match="features are not finite"):
        lowenergy.fid(images(2, 20), inception=tmp_path / "odd.safetensors", real=images(2, 20))
