"""The shipped models are what their cards say, and load."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import lowenergy
from lowenergy import artifact
from lowenergy.models import spec_of

MODELS = sorted((ROOT / "pretrained").glob("*.safetensors"))


def test_there_are_some() -> None:
    assert MODELS


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_it_loads_and_its_metrics_are_of_this_file(path: Path) -> None:
    kept = json.loads(path.with_suffix(".json").read_text())
    assert path.stat().st_size == kept["size_bytes"] <= 2e6
    shares = artifact.shares(path)
    assert all(kept[f"{part}_bytes"] == count for part, count in shares.items())
    network = lowenergy.load(path)
    images = torch.rand(2, *spec_of(network).input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        answers, coded = network(images), lowenergy.load(path, coded=True)(images)
    assert answers.std() > 0.1
    torch.testing.assert_close(coded, answers)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_card_tells_its_figures_and_how_it_was_made(path: Path) -> None:
    card, kept = (ROOT / "pretrained/README.md").read_text(), json.loads(path.with_suffix(".json").read_text())
    assert path.name in card and f"{kept['size_bytes']:,}" in card
    assert f"{100 * kept['accuracy']:.2f} %" in card
    assert f"lowenergy score pretrained/{path.name}" in card and "lowenergy profile" in card
