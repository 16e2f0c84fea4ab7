"""All figures of one model by its target: a classifier answers, an energy draws and detects, a JEM does both."""

from pathlib import Path
from typing import Any

import torch

from lowenergy import artifact, loading
from lowenergy.data import Splits, to_float
from lowenergy.energy import energy_of
from lowenergy.params import ClassifierEvaluation, EnergyEvaluation
from lowenergy.scoring import accuracy, generation, micronet, ood, size

CLASSIFIES, DRAWS = ("classifier", "jem"), ("ebm", "jem")
GRID = 100  # samples shown


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
    """The metrics of the model in the file `path`; its confusion table and sample grid are written into `plots`.

    Args:
        teacher: file of the uncompressed model of the same target, the yardstick of the compression ratio.
        scorer, reference: files of the scorer and of its statistics of the training images.
    """
    model, _ = artifact.read(path)
    network, test = loading.network_of(model), splits.test
    plots.mkdir(parents=True, exist_ok=True)
    card: dict[str, Any] = {}
    if model.target in CLASSIFIES:
        logits = accuracy.predict(network, test.images, p.batch_size)
        card |= accuracy.measure(logits, test.labels)
        accuracy.write_confusion(logits, test, splits.classes, plots / "confusion.csv")
    if model.target in DRAWS:
        assert isinstance(p, EnergyEvaluation) and model.spec.head is not None
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        energy = energy_of(network.to(device), model.spec.head)
        generator = torch.Generator(device).manual_seed(seed)
        images = generation.draw(energy, splits.input_shape, p, generator, lambda text: print(f"{path}: {text}"))
        looked_through = loading.dense_network(artifact.read(scorer)[0])
        card |= generation.measure(looked_through, reference, images.cpu(), seed)
        generation.write_grid(images[:GRID].cpu(), plots / "samples.png")
        card["ood_auroc"] = ood.measure(energy, to_float(test.images).to(device), p, generator)
        network.cpu()
    card |= size.measure(network, path, teacher)
    if model.target == "classifier":
        card["micronet"] = micronet.measure(model, card["macs"])
    return card
