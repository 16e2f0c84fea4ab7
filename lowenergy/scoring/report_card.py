"""Measure all figures of one model, by its head: a classifier answers, an energy draws and detects, a JEM does both.

Models are chosen by the figures of `validation`: answers to the validation images, and samples other than those of the
test figures, compared with the statistics of the validation images. The test set then says how good the choice is.

A branch is compared with its teacher image by image and sample by sample: samples of the same number start from the
same noise. A file keeps what the teacher said and drew for that.
"""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lowenergy import data
from lowenergy.base import files
from lowenergy.base.cards import Card
from lowenergy.base.checkpoint import FOLDER, Checkpoint, fingerprint
from lowenergy.base.device import fastest
from lowenergy.base.progress import Progress
from lowenergy.data import Splits, at_a_time, handful, spaced, to_float
from lowenergy.energies import sample, steps_in
from lowenergy.networks import Network
from lowenergy.params import ClassifierEvaluation, EnergyEvaluation, Sampler
from lowenergy.runtimes import loading, sampling
from lowenergy.scoring import accuracy, answers, gallery, generation, micronet, ood, size
from lowenergy.scoring.intervals import Interval, around, mcnemar, wilson
from lowenergy.storage import artifact

GRID, NEIGHBOURS = 100, 30  # samples shown
BATCH = 500  # images classified at a time
CODE = ("base", "params", "data", "networks", "energies", "storage", "runtimes", "scoring")  # it decides the samples
FEWEST_OTHERS = 500  # samples for validation, unless fewer are drawn for the test figures
OTHER_SEED = 2**31  # added to the seed for the samples of validation: above every seed of params.yaml

Said = dict[str, Tensor]  # logits, FIDs, features of samples, energies of a model; by name, such as test.logits


def measure(
    *,
    path: str,
    teacher: str,
    said: str,
    scorer: str,
    reference: str,
    splits: Splits,
    p: ClassifierEvaluation | EnergyEvaluation,
    seed: int,
    plots: Path,
    trust: Collection[str] = (),
    networks: Path | None = None,
) -> Card:
    """Measure the model in the file `path`, and write its confusion table and pictures into `plots`.

    Args:
        teacher: file of the uncompressed model that a branch is compared with; for a teacher, its own `path`.
        said: file of what the teacher said and drew: measuring the teacher writes it, measuring its branches reads it.
        scorer, reference: files of the scorer and of its statistics of the training and validation images.
        trust: where networks may come from, see artifact.read.
        networks: file or folder of the project's own networks; an interrupted drawing begins anew if they have changed.
    """
    model, header = artifact.read(path, trust=trust)
    network, head = loading.network_of(model), model.spec.head
    own: Said = {}
    theirs: Said = {} if path == teacher else files.read_safetensors(said)[0]
    plots.mkdir(parents=True, exist_ok=True)
    card: dict[str, Any] = {}
    validation: dict[str, Any] = {}
    figures = {"test": card, "validation": validation}
    if head is None or (head == "logsumexp" and model.target != "ebm"):  # an EBM's logits are not of classes
        at_once = at_a_time(splits.test.images, getattr(p, "batch_size", BATCH))
        for name in figures:
            split = getattr(splits, name)
            logits = own[f"{name}.logits"] = accuracy.predict(network, split.images, at_once)
            _classified(figures[name], logits, split.labels, theirs.get(f"{name}.logits"))
        card |= _changed(own["test.logits"], theirs.get("test.logits"), splits, plots)
    if head is not None:
        assert isinstance(p, EnergyEvaluation)
        looked_through = loading.dense_network(artifact.read(scorer, trust=trust)[0])
        constants = sampling.constants_of(header, path)
        constants = sampling.constants_of(header, path, p.step_factor * constants.step_size)
        looked_at = [Path(path), constants, p, seed, len(splits.validation), fastest().type, networks]
        inputs = fingerprint(looked_at, CODE)
        drawn, energies = _draw_and_detect(model, network, looked_through, splits, constants, p, seed, plots, inputs)
        for name, against in (("test", "train"), ("validation", "validation")):
            features, logits = generation.looked_at(looked_through, drawn[name])
            real = generation.read_reference(reference, against, looked_through)
            fids = own[f"{name}.fids"] = generation.distances(real, features, seed)
            _generated(figures[name], fids, theirs.get(f"{name}.fids"), len(features))
            if name == "test":
                _with_interval(card, "inception_score", generation.score_surely(logits, seed))
                own["test.features"], own["test.energies"] = features, energies["test"]
        card["ood_auroc"] = ood.auroc(energies)
        if theirs:
            card["fid_to_teacher"] = generation.distance_between(theirs["test.features"], own["test.features"])
            card["energy_correlation"] = ood.rank_correlation(theirs["test.energies"], own["test.energies"])
        if "recoveries" in header["provenance"]:
            card["recoveries"] = header["provenance"]["recoveries"]
    if "pruned" in header["provenance"]:  # the amount asked for, and what was reached
        card["pruned"] = header["provenance"]["pruned"]
    if "warnings" in header["provenance"]:  # why its training is not to be trusted
        card["warnings"] = "; ".join(header["provenance"]["warnings"])
    card["validation"] = validation
    card |= size.measure(network, path, teacher)
    if head is None:
        card["micronet"] = micronet.measure(model, card["macs"])
    if path == teacher:
        files.write_safetensors(said, own, {})
    return cast(Card, card)


def _with_interval(figures: dict[str, Any], name: str, found: Interval) -> None:
    figures |= {name: found.value, f"{name}_interval": [found.low, found.high]}


def _classified(figures: dict[str, Any], logits: Tensor, labels: Tensor, theirs: Tensor | None) -> None:
    """Add what a classifier's answers are worth and, if its teacher's are known, what it has lost."""
    right = logits.argmax(1) == labels
    figures["images"] = len(labels)
    _with_interval(figures, "accuracy", wilson(int(right.sum()), len(labels)))
    figures["nll"] = accuracy.measure(logits, labels)["nll"]
    figures["calibration_error"] = answers.calibration_error(logits, labels)
    if theirs is not None:
        paired = mcnemar(theirs.argmax(1) == labels, right)
        lost = figures.setdefault("lost", {})
        _with_interval(lost, "accuracy", paired.difference)
        lost["p_value"] = paired.p_value


def _generated(figures: dict[str, Any], fids: Tensor, theirs: Tensor | None, samples: int) -> None:
    """Add what samples are worth and, if the teacher's are known, what the model has lost.

    Args:
        fids, theirs: the FID, and the FIDs of resamples; each resample has samples of the same numbers in both.
    """
    figures["samples"] = samples
    _with_interval(figures, "fid", around(float(fids[0]), fids[1:].tolist(), 0.0))
    if theirs is not None:
        rise = fids - theirs
        _with_interval(figures.setdefault("lost", {}), "fid", around(float(rise[0]), rise[1:].tolist()))


def _changed(logits: Tensor, theirs: Tensor | None, splits: Splits, plots: Path) -> dict[str, Any]:
    """Write each test image's answer, draw the images where it differs from the teacher's, and return by how much."""
    test = splits.test
    accuracy.write_confusion(logits, test, splits.classes, plots / "confusion.csv", theirs)
    if theirs is None:
        return {}
    gallery.write_changed(test.images, logits, theirs, plots / "changed.png")
    figures: dict[str, Any] = {"agreement": answers.agreement(logits, theirs)}
    most = answers.lost_most(logits, theirs, test.labels)
    if most.own < most.teacher:
        figures["lost_most"] = {**asdict(most), "label": splits.classes[most.label]}
    return figures


def _draw_and_detect(
    model: artifact.Model,
    network: nn.Module,
    scorer: Network,
    splits: Splits,
    constants: Sampler,
    p: EnergyEvaluation,
    seed: int,
    plots: Path,
    inputs: str,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draw samples to test and to choose by, (n, c, h, w); return them and each kind's energies, and write pictures."""
    device = fastest()
    others = min(p.samples, max(FEWEST_OTHERS, len(splits.validation)))  # more than real images tell no more
    work = (p.samples + others) * p.chain_steps
    energy = sampling.fastest(model, network.to(device), images=work)
    shape, train, test = splits.input_shape, splits.train.images, handful(splits.test.images)
    progress = Progress(f"{plots.name}: sampling", work)

    checkpoints = [
        Checkpoint(FOLDER / "evaluate" / f"{plots.name}.{part}.pt", inputs, device)
        for part in ("drawn", "to-choose-by")
    ]

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
    images = {"train": to_float(train[spaced(len(train), len(test))]).to(device), "test": to_float(test).to(device)}
    energies = ood.energies(loading.energy_in(model, network), images, generator)
    gallery.write_energies(energies, plots / "energies.png")
    network.cpu()
    for checkpoint in checkpoints:
        checkpoint.path.unlink(missing_ok=True)
    return {"test": drawn, "validation": to_choose_by}, energies
