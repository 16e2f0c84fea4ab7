"""All figures of one model by its head: a classifier answers, an energy draws and detects, a JEM does both.

Models are chosen by the figures of `validation`: answers to the validation images; samples that are not those of the
test figures, against the statistics of the validation images. The test set then says what was chosen.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowenergy import data
from lowenergy.base.checkpoint import FOLDER, Checkpoint, fingerprint
from lowenergy.base.device import fastest
from lowenergy.base.params import ClassifierEvaluation, EnergyEvaluation, Sampler
from lowenergy.base.progress import Progress
from lowenergy.data import Splits, at_a_time, handful, to_float
from lowenergy.energies import sample, steps_in
from lowenergy.networks import AnyNetwork
from lowenergy.runtimes import loading, sampling
from lowenergy.scoring import accuracy, gallery, generation, micronet, ood, size
from lowenergy.storage import artifact

GRID, NEIGHBOURS = 100, 30  # samples shown
BATCH = 500  # images classified at a time
DECISIVE = ("accuracy", "fid", "size_bytes")  # what one decides by: quality, and what it costs
FEWEST_OTHERS = 500  # of those samples
OTHER_SEED = 2**31  # added to the seed of the samples that are measured on validation: above every seed of params.yaml


def decisive(card: dict[str, Any]) -> dict[str, Any]:
    """The few figures that DVC's tables show; the card has all."""
    few = {key: card[key] for key in DECISIVE if key in card}
    return few | {"validation": decisive(card["validation"])} if "validation" in card else few


def measure(
    *,
    path: str,
    teacher: str,
    scorer: str,
    reference: str,
    splits: Splits,
    p: ClassifierEvaluation | EnergyEvaluation,
    seed: int,
    plots: Path,
    trust: Collection[str] = (),
) -> dict[str, Any]:
    """The metrics of the model in the file `path`; its confusion table and pictures are written into `plots`.

    Args:
        teacher: file of the uncompressed model of the same target, the yardstick of the compression ratio.
        scorer, reference: files of the scorer and of its statistics of the training images.
        trust: what networks may come from, see artifact.read.
    """
    model, header = artifact.read(path, trust=trust)
    network, test, head = loading.network_of(model), splits.test, model.spec.head
    plots.mkdir(parents=True, exist_ok=True)
    card: dict[str, Any] = {}
    validation: dict[str, float] = {}
    if head in (None, "logsumexp"):
        at_once = at_a_time(test.images, getattr(p, "batch_size", BATCH))
        logits = accuracy.predict(network, test.images, at_once)
        card |= accuracy.measure(logits, test.labels)
        held_out = splits.validation
        validation |= accuracy.measure(accuracy.predict(network, held_out.images, at_once), held_out.labels)
        accuracy.write_confusion(logits, test, splits.classes, plots / "confusion.csv")
    if head is not None:
        assert isinstance(p, EnergyEvaluation)
        looked_through = loading.dense_network(artifact.read(scorer, trust=trust)[0])
        constants = sampling.constants_of(header, path, p.step_size)
        inputs = fingerprint([artifact.sha256(path), constants, p, seed, fastest().type])
        drawn = _draw_and_detect(model, network, looked_through, reference, splits, constants, p, seed, plots, inputs)
        validation["fid"] = drawn.pop("validation.fid")
        card |= drawn
        if "recoveries" in header["provenance"]:
            card["recoveries"] = header["provenance"]["recoveries"]
    card["validation"] = validation
    card |= size.measure(network, path, teacher)
    if head is None:
        card["micronet"] = micronet.measure(model, card["macs"])
    return card


def _draw_and_detect(
    model: artifact.Model,
    network: nn.Module,
    scorer: AnyNetwork,
    reference: str,
    splits: Splits,
    constants: Sampler,
    p: EnergyEvaluation,
    seed: int,
    plots: Path,
    inputs: str,
) -> dict[str, Any]:
    device = fastest()
    others = min(p.samples, max(FEWEST_OTHERS, len(splits.validation)))  # more say no more than the images they meet
    work = (p.samples + others) * p.chain_steps
    energy = sampling.fastest(model, network.to(device), images=work)
    shape, train, test = splits.input_shape, splits.train.images, handful(splits.test.images)
    name = f"{plots.parent.name}/{plots.name}"
    progress = Progress(f"{name}: sampling", work)

    checkpoints = [Checkpoint(FOLDER / f"{name}.{part}.pt", inputs, device) for part in ("drawn", "to-choose-by")]

    def draw(count: int, generator: torch.Generator, checkpoint: Checkpoint) -> torch.Tensor:
        state, steps = checkpoint.kept(), p.chain_steps
        progress.skip(steps_in(state, steps))
        return sample(
            energy,
            shape,
            count,
            steps=steps,
            constants=constants,
            generator=generator,
            progress=progress,
            keep=checkpoint.keep_now_and_then,
            state=state,
        ).cpu()

    generator = torch.Generator(device).manual_seed(seed)
    drawn = draw(p.samples, generator, checkpoints[0])
    to_choose_by = draw(others, torch.Generator(device).manual_seed(seed + OTHER_SEED), checkpoints[1])
    data.write_grid(drawn[:GRID], plots / "samples.png")
    gallery.write_neighbours(drawn[:NEIGHBOURS], train, plots / "neighbours.png")
    gallery.write_classes(scorer, drawn, splits.classes, plots / "classes.png")
    gallery.write_strip(energy, shape, p.chain_steps, constants, generator, plots / "strip.png")
    images = {"train": to_float(train[: len(test)]).to(device), "test": to_float(test).to(device)}
    energies = ood.energies(loading.energy_of(model, network), images, generator)
    gallery.write_energies(energies, plots / "energies.png")
    network.cpu()
    found = generation.measure(scorer, reference, drawn, seed) | {
        "ood_auroc": ood.auroc(energies),
        "validation.fid": generation.measure(scorer, reference, to_choose_by, seed, "validation")["fid"],
    }
    for checkpoint in checkpoints:
        checkpoint.path.unlink(missing_ok=True)
    return found
