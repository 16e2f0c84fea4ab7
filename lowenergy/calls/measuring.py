"""Calls that measure: the card of a model, and the FID of any images."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lowenergy import data, networks, params
from lowenergy.base.errors import UserError
from lowenergy.base.files import FileError
from lowenergy.calls import inception as through_inception
from lowenergy.calls.apart import Device, apart
from lowenergy.calls.arguments import path_of, seed_of
from lowenergy.calls.images import Images, Values, read
from lowenergy.calls.models import Opened, opened
from lowenergy.calls.using import draw
from lowenergy.data import Split, at_a_time
from lowenergy.runtimes.loading import dense_network, network_of
from lowenergy.scoring import accuracy, answers, generation, micronet
from lowenergy.scoring.answers import ClassLoss
from lowenergy.scoring.generation import Generation
from lowenergy.scoring.intervals import Interval, Paired, mcnemar, wilson

if TYPE_CHECKING:
    from lowenergy.calls.making import Made

BATCH = 500  # images classified at a time


@dataclass(frozen=True)
class Card:
    """What a model can do, and what it costs to store and run. It prints as lines with the figures that there are."""

    size_bytes: int  # of its file
    parameters: int
    macs: int  # multiply-accumulates of one image
    compression_ratio: float | None = None  # how many times larger the teacher's file is
    images: int = 0  # on which it was measured
    data: str | None = None  # the data set, if they are the test images of the one its file names
    accuracy: Interval | None = None
    nll: float | None = None  # nats
    calibration_error: float | None = None
    micronet: Mapping[str, float] | None = None  # storage, operations and score, by the challenge's rules
    teacher_accuracy: Interval | None = None
    gain: Paired | None = None  # in accuracy over the teacher, on the same images
    agreement: float | None = None  # share of images for which both give the same answer
    lost_most: ClassLoss | None = None
    generation: Generation | None = None  # for an energy, through a scorer

    def __str__(self) -> str:
        ratio = f", {self.compression_ratio:.1f} times smaller" if self.compression_ratio else ""
        lines = [
            f"{self.size_bytes:,} bytes{ratio}, {self.parameters:,} parameters, {self.macs:,} multiply-accumulates"
        ]
        if self.accuracy is not None:
            lines.append(f"accuracy {_percent(self.accuracy)} of {self.images:,} images, nll {self.nll:.4g}")
        if self.teacher_accuracy is not None and self.gain is not None and self.lost_most is not None:
            difference = self.gain.difference
            apart = "" if self.gain.told_apart else ", which cannot be told from none"
            lines += [
                f"teacher {_percent(self.teacher_accuracy)}; {100 * difference.value:+.2f} points "
                f"({100 * difference.low:+.2f} to {100 * difference.high:+.2f}){apart}",
                f"answers {self.agreement:.1%} as the teacher does; {_lost(self.lost_most)}",
            ]
        if self.calibration_error is not None:
            lines.append(f"calibration error {self.calibration_error:.4f}")
        if self.micronet is not None:
            lines.append(f"MicroNet score {self.micronet['score']:.4g}")
        if self.generation is not None:
            lines.append(str(self.generation))
        return "\n".join(lines)


def _lost(most: ClassLoss) -> str:
    return f"class {most}" if most.own < most.teacher else "no class lost"


def _percent(share: Interval) -> str:
    return f"{share.value:.2%} ({share.low:.2%} to {share.high:.2%})"


def evaluate(
    model: "Made | nn.Module | str | Path",
    images: Images = None,
    labels: Any = None,
    *,
    teacher: "Made | nn.Module | str | Path | Opened | None" = None,
    mean: Values = None,
    std: Values = None,
    scorer: str | Path | None = None,
    samples: int = 1000,
    steps: int | None = None,
    step_size: float | None = None,
    root: str | Path | None = None,
    seed: int = 0,
    device: Device = None,
    trust: Collection[str] = (),
    network: nn.Module | None = None,
    limit: int | None = None,
) -> Card:
    r"""Measure a model: accuracy or FID, each with its 95 % interval, and what the model costs to store and run.

    Args:
        model: a file, what a call has made, or a network that lowenergy has built.
        images, labels, mean, std: what to test on, see lowenergy.compress. By default a classifier or JEM (in fact
            any energy with head `logsumexp`) is tested on the test images of the data set that its file names, from the
            pipeline here or from below `root`. An energy's samples are compared with these images; if there are none,
            with the statistics of the training images that lie beside the scorer's file.
        teacher: what the model was made from, to compare it with: agreement, gain, the class that lost most.
        scorer: the file of a classifier through which FID looks at images. Without it, an energy draws no samples.
        samples, steps, step_size: how many images an energy draws, in how many Langevin steps, and of which size; steps
            and step size are by default those that its file names.
        root: a folder of torchvision's data sets.
        seed: for the samples, the bootstrap, and the random parts of the Inception Score.
        device: cpu or cuda; by default a GPU if there is one.
        trust, network, limit: see lowenergy.load.
    Raises:
        UserError: one line that says what, where, and what to do.

    >>> import lowenergy, torch
    >>> card = lowenergy.evaluate(CLASSIFIER, IMAGES, LABELS)
    >>> card.accuracy.low <= card.accuracy.value <= card.accuracy.high
    True
    >>> print(*str(card).splitlines()[1:], sep="\n")  # doctest: +ELLIPSIS
    accuracy ...% (...% to ...%) of 300 images, nll ...
    calibration error ...
    MicroNet score ...
    """
    seed = seed_of(seed)
    with apart(device):
        own = opened(model, trust=trust, network=network, limit=limit)
        against = teacher if isinstance(teacher, Opened) or teacher is None else opened(teacher, trust=trust)
        spec = own.model.spec
        if (
            against is not None
            and (theirs := against.model.spec)
            and ((theirs.head, theirs.input_shape, theirs.outputs) != (spec.head, spec.input_shape, spec.outputs))
        ):
            raise UserError(
                f"teacher: {theirs.name} takes images of {theirs.input_shape} and has {theirs.outputs} outputs; the "
                f"network {spec.input_shape} and {spec.outputs}, and to be compared they must be of one kind"
            )
        split, labelled, data_set = None, False, None
        if images is not None:
            split, labelled = read(images, labels, mean=mean, std=std)
            if tuple(split.images.shape[1:]) != spec.input_shape:
                raise UserError(f"images of {tuple(split.images.shape[1:])}; the network takes {spec.input_shape}")
            if spec.head is None and not labelled:
                raise UserError("labels: a classifier is measured by them; give labels")
        elif spec.head is None or (spec.head == "logsumexp" and own.model.target != "ebm"):
            split, labelled, data_set = _own_test(own, root), True, own.provenance["data"]
        ready = network_of(own.model)
        card: dict[str, Any] = {
            "size_bytes": own.size,
            "parameters": sum(w.numel() for w in ready.parameters()),
            "macs": networks.macs(ready),
            "compression_ratio": against and against.size / own.size,
            "images": 0 if split is None else len(split),
            "data": data_set,
        }
        if spec.head is None:
            card["micronet"] = micronet.measure(own.model, card["macs"])
        if split is not None and labelled and spec.head in (None, "logsumexp"):
            card |= _answers(ready, split, against, own.origin)
        if spec.head is not None and scorer is not None:
            card["generation"] = _drawn(own, scorer, split, samples, steps, step_size, seed, trust)
        return Card(**card)


def _answers(network: nn.Module, test: Split, teacher: Opened | None, name: str) -> dict[str, Any]:
    at_once = at_a_time(test.images, BATCH)
    logits, labels = accuracy.predict(network, test.images, at_once), test.labels
    if int(labels.max()) >= logits.shape[1]:
        raise UserError(f"{name}: {logits.shape[1]} outputs are too few for a label of {int(labels.max())}")
    right = logits.argmax(1) == labels
    figures: dict[str, Any] = {
        "accuracy": wilson(int(right.sum()), len(test)),
        "nll": accuracy.measure(logits, labels)["nll"],
        "calibration_error": answers.calibration_error(logits, labels),
    }
    if teacher is not None:
        of_teacher = accuracy.predict(network_of(teacher.model), test.images, at_once)
        wanted = of_teacher.argmax(1) == labels
        figures |= {
            "teacher_accuracy": wilson(int(wanted.sum()), len(test)),
            "gain": mcnemar(right, wanted),
            "agreement": answers.agreement(logits, of_teacher),
            "lost_most": answers.lost_most(logits, of_teacher, labels),
        }
    return figures


def _drawn(
    own: Opened,
    scorer: str | Path,
    real: Split | None,
    samples: int,
    steps: int | None,
    step_size: float | None,
    seed: int,
    trust: Collection[str],
) -> Generation:
    looked_through = _scorer(scorer, trust)
    moments = _reference(scorer, looked_through) if real is None else generation.moments_of(looked_through, real.images)
    return generation.measure_surely(looked_through, moments, draw(own, samples, steps, step_size, seed), seed)


def _scorer(path: str | Path, trust: Collection[str]) -> networks.Network:
    """The classifier in a file, to look at images through.

    Raises:
        UserError: it is an energy that knows no classes.
    """
    model = opened(path, trust=trust).model
    if model.spec.head is not None and (model.spec.head != "logsumexp" or model.target == "ebm"):
        raise UserError(f"{path}: an energy, whose outputs are no classes; FID looks at images through a classifier")
    return dense_network(model)


def _reference(scorer: str | Path, looked_through: networks.Network) -> generation.Moments:
    """Read the statistics of the training images, which lie beside a scorer's file.

    Raises:
        FileError: there are none, or they are of another scorer.
    """
    scorer = path_of("scorer", scorer)
    reference = scorer.with_name(scorer.name.replace("scorer", "reference"))
    if not reference.exists():
        raise FileError(f"{reference}: no such file, with statistics of real images; give real, the images themselves")
    return generation.read_reference(reference, "train", looked_through)


def _own_test(own: Opened, root: str | Path | None) -> Split:
    """The test images of the data set that a model's file names.

    Raises:
        UserError: the file names no data set, or has too few outputs for its classes; or the test images are not there.
    """
    path, spec, source = own.origin, own.model.spec, own.provenance.get("data")
    if source is None:
        raise FileError(f"{path}: its file does not say which data it was trained on; give images to test on")
    section, seed = _data_of(root)
    splits = data.SPLITS if root is None else None
    test = data.test_images(own.provenance, spec.input_shape, section, seed, splits)
    if int(test.labels.max()) >= spec.outputs:
        raise FileError(
            f"{path}: has {spec.outputs} outputs, too few for the classes of the test images of {source}; "
            "run the pipeline that made it and read metrics/"
        )
    return test


def _data_of(root: str | Path | None) -> tuple[params.Data, int]:
    """Data and seed of params.yaml, which need not exist if a root is given; all of the root's images count."""
    if root is None or Path("params.yaml").exists():
        p = params.load()
        return p.data if root is None else p.data.model_copy(update={"root": str(root), "limit": None}), p.seed
    # Source, size and channels are replaced by the model's.
    nothing: dict[str, Any] = {"source": "mnist", "image_size": None, "channels": 1, "limit": None}
    return params.Data(root=str(root), folder="data/images", validation=0.1, test=0.2, **nothing), 0


def fid(
    images: Images,
    *,
    scorer: str | Path | None = None,
    inception: str | Path | None = None,
    real: Images = None,
    seed: int = 0,
    device: Device = None,
    trust: Collection[str] = (),
) -> Generation:
    """FID (Heusel et al. 2017) and Inception Score (Salimans et al. 2016) of images, each with its 95 % interval.

    Both look at the images through a classifier of the same data set, and are comparable only if that is the same; or
    through Inception v3, as in papers.

    Args:
        images: at least two, such as lowenergy.sample draws; or the file of an array, .npz or .npy; for inception also
            a folder of image files.
        scorer: the classifier's file.
        inception: instead of a scorer, the file of the usual weights as safetensors: the FID weights of 2015-12-05, or
            a state dict of torchvision's inception_v3. FID is then pytorch-fid's; the Inception Score leaves out the
            bias of the last layer, as the published one and torch-fidelity do. Images may be of any size, and grey.
        real: images to compare with, in the same forms as `images`; by default those whose statistics lie beside the
            scorer's file, under its name with reference in place of scorer. Required with inception.
        seed: for the bootstrap, from which the intervals are, and for the random parts of the Inception Score.
        device: cpu or cuda; by default a GPU if there is one.
        trust: see lowenergy.load.
    Raises:
        UserError: one line that says what, where, and what to do.

    >>> import lowenergy
    >>> figures = lowenergy.fid(IMAGES[:100], scorer=CLASSIFIER, real=IMAGES[100:])
    >>> figures.fid.low <= figures.fid.value <= figures.fid.high
    True
    """
    seed = seed_of(seed)
    with apart(device):
        if (scorer is None) == (inception is None):
            raise UserError("scorer, inception: give one of both, the file of a classifier or the weights of Inception")
        for name, path in (("scorer", scorer), ("inception", inception)):
            if path is not None:
                path_of(name, path)
        if inception is not None:
            return through_inception.measure(inception, images, real, seed)
        assert scorer is not None
        looked_through = _scorer(scorer, trust)
        shape = looked_through.spec.input_shape
        drawn = _drawn_images(images, shape)
        if len(drawn) < generation.FEWEST:
            where = f"{images}: " if isinstance(images, str | Path) else ""
            raise data.DataError(f"{where}{len(drawn)} images; FID needs at least {generation.FEWEST}")
        if real is None:
            moments = _reference(scorer, looked_through)
        else:
            moments = generation.moments_of(looked_through, _drawn_images(real, shape))
        return generation.measure_surely(looked_through, moments, drawn, seed)


def _drawn_images(images: Images, shape: tuple[int, int, int]) -> Tensor:
    """The images as bytes.

    Raises:
        UserError: they cannot be used, or do not have this shape.
    """
    pixels = data.read_array(Path(images), shape) if isinstance(images, str | Path) else read(images)[0].images
    if tuple(pixels.shape[1:]) != shape:
        raise UserError(f"images of {tuple(pixels.shape[1:])}; the scorer takes {shape}")
    return pixels
