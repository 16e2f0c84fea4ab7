"""All figures of one model by its target: a classifier answers, an energy draws and detects, a JEM does both."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowenergy import data, networks
from lowenergy.base.params import ClassifierEvaluation, EnergyEvaluation
from lowenergy.data import Splits, to_float
from lowenergy.runtimes import loading
from lowenergy.scoring import accuracy, gallery, generation, micronet, ood, size
from lowenergy.storage import artifact

CLASSIFIES, DRAWS = ("classifier", "jem"), ("ebm", "jem")
GRID, NEIGHBOURS = 100, 30  # samples shown


def measure(
    *,
    path: str,
    teacher: str,
    scorer: str,
    reference: str,
    splits: Splits,
    p: ClassifierEvaluation,
    seed: int,
    plots: Path,
) -> dict[str, Any]:
    """The metrics of the model in the file `path`; its confusion table and pictures are written into `plots`.

    Args:
        teacher: file of the uncompressed model of the same target, the yardstick of the compression ratio.
        scorer, reference: files of the scorer and of its statistics of the training images.
    """
    model, header = artifact.read(path)
    network, test = loading.network_of(model), splits.test
    plots.mkdir(parents=True, exist_ok=True)
    card: dict[str, Any] = {}
    if model.target in CLASSIFIES:
        logits = accuracy.predict(network, test.images, p.batch_size)
        card |= accuracy.measure(logits, test.labels)
        accuracy.write_confusion(logits, test, splits.classes, plots / "confusion.csv")
    if model.target in DRAWS:
        assert isinstance(p, EnergyEvaluation)
        looked_through = loading.dense_network(artifact.read(scorer)[0])
        card |= _draw_and_detect(model, network, looked_through, reference, splits, p, seed, plots, path)
        if "recoveries" in header["provenance"]:
            card["recoveries"] = header["provenance"]["recoveries"]
    card |= size.measure(network, path, teacher)
    if model.target == "classifier":
        card["micronet"] = micronet.measure(model, card["macs"])
    return card


def _draw_and_detect(
    model: artifact.Model,
    network: nn.Module,
    scorer: networks.Network,
    reference: str,
    splits: Splits,
    p: EnergyEvaluation,
    seed: int,
    plots: Path,
    path: str,
) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    energy = loading.energy_of(model, network.to(device), p.precision)
    generator = torch.Generator(device).manual_seed(seed)
    shape, train, test = splits.input_shape, splits.train.images, splits.test.images
    drawn = generation.draw(energy, shape, p, generator, lambda text: print(f"{path}: {text}", flush=True)).cpu()
    data.write_grid(drawn[:GRID], plots / "samples.png")
    gallery.write_neighbours(drawn[:NEIGHBOURS], train, plots / "neighbours.png")
    gallery.write_classes(scorer, drawn, splits.classes, plots / "classes.png")
    gallery.write_strip(energy, shape, p, generator, plots / "strip.png")
    images = {"train": to_float(train[: len(test)]).to(device), "test": to_float(test).to(device)}
    energies = ood.energies(loading.energy_of(model, network), images, p, generator)
    gallery.write_energies(energies, plots / "energies.png")
    network.cpu()
    return generation.measure(scorer, reference, drawn, seed) | {"ood_auroc": ood.auroc(energies)}
