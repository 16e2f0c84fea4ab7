"""The shipped models are what their cards say, load, and do what they are for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from torchvision.io import decode_png, read_file

import lowenergy
from lowenergy import cli
from lowenergy.networks import spec_of
from lowenergy.storage import artifact
from lowenergy.storage.encodings import Coded

CARDS = " ".join((ROOT / "pretrained/README.md").read_text().split())  # whatever their lines
SCORER = ROOT / "pretrained/mnist-scorer.safetensors"
MODELS = sorted(
    path for path in (ROOT / "pretrained").glob("*.safetensors") if not path.stem.endswith(("scorer", "reference"))
)
DRAWING = [path for path in MODELS if artifact.read(path)[0].target != "classifier"]


def figures(path: Path) -> Any:
    return json.loads(path.with_suffix(".json").read_text())


def test_there_are_some_of_every_target() -> None:
    assert {artifact.read(path)[0].target for path in MODELS} == {"classifier", "ebm", "jem"}


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_it_loads_and_its_metrics_are_of_this_file(path: Path) -> None:
    kept = figures(path)
    assert path.stat().st_size == kept["size_bytes"] <= 2e6
    network = lowenergy.load(path)
    images = torch.rand(2, *spec_of(network).input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        answers, coded = network(images), lowenergy.load(path, coded=True)(images)
    assert answers.std() > 0.1
    torch.testing.assert_close(coded, answers)
    if any(isinstance(encoded, Coded) for encoded in artifact.read(path)[0].tensors.values()):
        assert all(kept[f"{part}_bytes"] == count for part, count in artifact.bytes_by_part(path).items())


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_card_tells_its_figures_and_how_it_was_made(path: Path) -> None:
    kept = figures(path)
    assert path.name in CARDS and f"{kept['size_bytes']:,}" in CARDS and "lowenergy profile" in CARDS
    if "accuracy" in kept:
        assert f"{100 * kept['accuracy']:.2f} %" in CARDS
        assert f"lowenergy score pretrained/{path.name}" in CARDS
    if "fid" in kept:
        assert f"FID {kept['fid']:.2f}" in CARDS and f"IS {kept['inception_score']:.2f}" in CARDS
        assert f"lowenergy sample pretrained/{path.name}" in CARDS


@pytest.mark.parametrize("path", [p for p in DRAWING if "mnist" in p.name], ids=lambda path: path.stem)
def test_it_draws_ink_on_paper(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    assert cli.main(["sample", str(path), "--n", "8", "--out", str(out)]) == 0
    shades = decode_png(read_file(str(out)))[0].float()
    assert (shades < 32).float().mean() > 0.6  # digits are mostly background,
    assert 0.03 < (shades > 223).float().mean() < 0.3  # and some of each is ink, as in MNIST


def test_it_draws_in_colour(tmp_path: Path) -> None:
    out = tmp_path / "images.npz"
    model = ROOT / "pretrained/cifar100-ebm-301k.safetensors"
    assert cli.main(["sample", str(model), "--n", "16", "--out", str(out)]) == 0
    images = np.load(out)["images"].astype(float)
    assert images.shape == (16, 3, 32, 32)
    steps = np.abs(np.diff(images, axis=3)).mean()
    assert steps < 25 and images.std() > 40, "as smooth and as rich as photographs: of noise a step is 85"
    assert images.std(axis=1).mean() > 8, "in colour"
    assert ((images < 3) | (images > 252)).mean() < 0.2, "not saturated"


@pytest.mark.slow
def test_anyone_can_check_an_fid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Few samples, which FID overrates; noise is worlds apart, and half as many steps go further if they are longer."""
    drawn, bold, noise = tmp_path / "drawn.npz", tmp_path / "bold.npz", tmp_path / "noise.npz"
    tiny = ROOT / "pretrained/mnist-ebm-tiny.safetensors"
    assert cli.main(["sample", str(tiny), "--n", "500", "--steps", "50", "--out", str(drawn)]) == 0
    assert cli.main(["sample", str(tiny), "--n", "500", "--steps", "25", "--step-size", "0.2", "--out", str(bold)]) == 0
    np.savez(noise, images=np.random.default_rng(0).integers(0, 256, (500, 28, 28), dtype=np.uint8))
    found = {}
    for images in (drawn, bold, noise):
        capsys.readouterr()
        assert cli.main(["fid", str(images), "--scorer", str(SCORER)]) == 0
        found[images] = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:])
    assert float(found[drawn]["fid"]) < 5 and float(found[drawn]["inception_score"]) > 7
    assert float(found[bold]["fid"]) < 0.8 * float(found[drawn]["fid"])
    assert float(found[noise]["fid"]) > 100


def test_the_scorers_card_is_its_own() -> None:
    kept = figures(SCORER)
    assert f"{100 * kept['accuracy']:.2f} %" in CARDS and f"FID {kept['test_images']['fid']:.3f}" in CARDS
    model, header = artifact.read(SCORER)
    assert model.target == "scorer" and header["provenance"]["data"] == "mnist"
