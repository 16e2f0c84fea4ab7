"""int8 models as C: integers between bytes, bit for bit as the reference in numpy, and torch's to a rounding tie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_compression import compress, teacher  # noqa: F401 fixtures
from test_device import HEADER, KEPT, SAMPLER, Attentive, Compiled, foreign, sizes_untold, zoo  # noqa: F401

from lowenergy.energies import HEADS, energy_of
from lowenergy.runtimes import c, int8
from lowenergy.runtimes.c import reference
from lowenergy.runtimes.loading import dense_network
from lowenergy.storage import Model, artifact


def images_for(model: Model) -> torch.Tensor:
    images = torch.rand(3, *model.spec.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images[1] *= 0.3
    images[2] = -1.0
    return images


def is_the_reference(model: Model, out: Path, *, steps: bool) -> Compiled:
    """Logits or energies have the reference's bits; a step moves by its gradient."""
    c.export(model, HEADER, out)
    made = Compiled(out, "gcc", *(KEPT if model.target == "jem" else []))
    program = c.planned(model).program
    noise = None
    for image in images_for(model):
        logits, energy, gradient = reference.run(program, dict(model.tensors), image.numpy())
        if model.target != "ebm":
            assert made.logits(image).tobytes() == logits.astype(np.float32).tobytes()
        if energy is None or not steps:
            continue
        found, moved = made.step(image)
        assert np.float32(found) == energy.flatten()[0]
        clamp = np.float32(SAMPLER["gradient_clamp"])
        kept = image.numpy() - np.float32(SAMPLER["step_size"]) * np.clip(gradient[0], -clamp, clamp)
        if noise is None:
            inside = np.abs(moved) < 1
            noise = np.where(inside, moved - kept, np.nan)
        both = (np.abs(moved) < 1) & ~np.isnan(noise)
        np.testing.assert_allclose((kept + noise)[both], moved[both], atol=5e-7)
    assert made.untouched()
    return made


@pytest.mark.parametrize("model", ["cnn", "resnet8", "elsewhere"])
def test_floats_are_the_reference(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = {
        "cnn": lambda: zoo("cnn", "jem", activation="gelu"),
        "resnet8": lambda: zoo("resnet8", "ebm", norm="batch", stem="7x7", image_size=24, activation="relu"),
        "elsewhere": lambda: foreign(Attentive(), "jem"),
    }[model]()
    compiled = is_the_reference(made, tmp_path / "c", steps=True)
    image = images_for(made)[0]
    with torch.no_grad():  # and what both compute is the network's
        wanted = energy_of(dense_network(made), made.spec.head or "")(image[None])
    assert compiled.energy(image) == pytest.approx(float(wanted), rel=1e-3, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "changes"),
    [
        ("ebm", {}),
        ("jem", {"quantize.weight_bits": 4}),
        ("classifier", {}),
        ("classifier", {"quantize.weight_bits": 3}),
    ],
)
def test_int8_is_the_reference_and_torchs(
    compress: Any,  # noqa: F811
    target: str,
    changes: dict[str, Any],
    tmp_path: Path,
) -> None:
    model = compress("quantize", target, changes)
    made = is_the_reference(model, tmp_path / "c", steps=True)
    network = int8.restore(model, outputs=True)
    images = images_for(model)
    with torch.no_grad():
        logits = network(images)
    spread = float(logits.abs().max())
    if model.spec.head is not None:
        found = [made.energy(image) for image in images]
        np.testing.assert_allclose(found, HEADS[model.spec.head](logits), atol=0.02 * spread)
    else:
        np.testing.assert_allclose([made.logits(image) for image in images], logits, atol=0.02 * spread)


def test_the_shipped_int8_energy() -> None:
    model, _ = artifact.read(ROOT / "pretrained" / "mnist-ebm-tiny.safetensors")
    assert c.planned(model).bytes < 24000  # activations are bytes
    assert c.planned(model, ram=18000).bytes <= 18000
