"""Calls that make a model: compress any module, train one, or store one as it is."""

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from lowenergy import networks, params, targets
from lowenergy.base import files
from lowenergy.base.errors import UserError
from lowenergy.calls.apart import Device, apart
from lowenergy.calls.arguments import path_of, seed_of
from lowenergy.calls.images import HELD_OUT, Images, Normalisation, Values, gathered, normalisation, read
from lowenergy.calls.measuring import Card, evaluate
from lowenergy.calls.models import Opened, architecture_of, check_module, is_built, kind_of, named, opened, taken_in
from lowenergy.compression import making
from lowenergy.data import Splits, to_float
from lowenergy.networks.foreign import Foreign
from lowenergy.runtimes.loading import network_of
from lowenergy.storage import artifact
from lowenergy.storage.artifact import Model
from lowenergy.training import disband, running


@dataclass(frozen=True, repr=False)
class Made:
    """A model that a call has made: a network, a file, and everything that the next call needs to continue from it."""

    name: str  # the method that made it
    model: Model
    provenance: Mapping[str, Any]  # as recorded in its file
    teacher: Opened | None  # what it must match, and is compared with
    splits: Splits
    matching: Mapping[str, Any]  # the parameters of its kind that were given
    training: Mapping[str, Any]
    seed: int
    device: Device

    @cached_property
    def network(self) -> nn.Module:
        """The network, in evaluation mode, on the CPU: images (n, c, h, w) in [-1, 1] -> logits or energies, (n, k).

        If `mean` and `std` of the images were given, the network normalises its input itself.
        """
        with apart("cpu"):
            return network_of(self.model)

    @cached_property
    def _bytes(self) -> bytes:
        with apart("cpu"):
            return artifact.to_bytes(self.model, self.provenance)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the ready network, which is made again when needed: int8 graphs cannot be pickled."""
        return {key: value for key, value in self.__dict__.items() if key != "network"}

    def to_bytes(self) -> bytes:
        """The content of the model's file."""
        return self._bytes

    @property
    def size_bytes(self) -> int:
        """The size of the model's file in bytes."""
        return len(self._bytes)

    def save(self, path: str | Path) -> None:
        """Write the model's file, which `lowenergy.load` reads, atomically.

        Raises:
            FileError: what was written does not give the network's answers; no trace of it is left.
        """
        with apart("cpu"):
            artifact.save(self.model, path_of("path", path), self.provenance)

    def card(self, images: Images, labels: Any = None, **options: Any) -> Card:
        """Measure what the model can do and costs, beside the teacher that it had to match, if any.

        Args:
            images, labels: see `lowenergy.evaluate`.
            options: scorer, samples and so on, see `lowenergy.evaluate`. By default, teacher, device, seed, mean and
                std are those that the model was made with.
        """
        mean, std = self.splits.normalisation or (None, None)
        known = {"teacher": self.teacher, "device": self.device, "seed": self.seed, "mean": mean, "std": std}
        return evaluate(self, images, labels, **{**known, **options})

    def __repr__(self) -> str:
        return f"<{self.name}: {self.model.spec.name}, {self.size_bytes:,} bytes>"


def compress(
    network: nn.Module | Made | str | Path,
    method: str,
    *,
    images: Images = None,
    labels: Any = None,
    validation: Any = HELD_OUT,
    mean: Values = None,
    std: Values = None,
    teacher: nn.Module | Made | str | Path | None = None,
    head: str | None = None,
    step_size: float | None = None,
    noise: float | None = None,
    gradient_clamp: float | None = None,
    chain_steps: int | None = None,
    matching: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    trust: Collection[str] = (),
    seed: int | None = None,
    device: Device = None,
    **parameters: Any,
) -> Made:
    """Make a network smaller by `method`: prune, quantize, distill or pq (product quantization).

    This does what the pipeline's stage does, and gives the same bytes for the same inputs. The network is not changed;
    it may be any module that torch.export accepts, on any device, in any mode. No file is written, and torch's global
    state is left as it was.

    Args:
        network: a module, a model file, or what a call has made. Methods can be chained: the next one uses the images
            and the teacher of the one before unless others are given. A pruned or distilled network can be compressed
            again; a quantized or product-quantized one cannot.
        images: what to train and calibrate on: a tensor, an array, a list, a Dataset or a DataLoader (of images, or of
            images with labels; read once, in order; there may be more than memory holds), or a pipeline's Splits.
            Images are uint8, floats from -1 to 1, or floats normalised by `mean` and `std`.
        labels: (n,), classes from 0, unless the images come with labels; an energy needs none.
        validation: images that are never trained on, used to refuse a result that only guesses: a share of `images`,
            the same for every class, or other images, or a pair (images, labels).
        mean, std: one value, or one for each channel, for pixels from 0 (black) to 1 (white): the network takes
            (pixel - mean) / std, and images given as floats are already normalised so. Give mean=0, std=1 for a network
            that takes pixels from 0 to 1. Without them, the network takes images from -1 to 1.
        teacher: what the result has to match and is compared with; by default the network itself, or in a chain the
            first one.
        head: makes the network an energy, low where images are likely: `mean` of its outputs, the single `scalar` it
            returns, or minus the `logsumexp` of its logits.
        step_size, noise, gradient_clamp, chain_steps: for an energy, the constants of its Langevin steps and how many
            of them lead from noise to an image; by default those of its file, or of params.yaml.
        matching, training: further parameters of the network's kind, by their names in params.yaml (`lowenergy params
            classifier`), such as matching={"temperature": 4} for a classifier.
        arguments: the arguments of the module's constructor, with which `load` can build it from its file. Without
            them, the module has to be handed to `load`, unless it comes from torchvision or timm.
        trust: for a file, see lowenergy.load.
        seed: for everything random; by default 0, or the seed of the call before.
        device: cpu or cuda; by default that of the call before, or a GPU if there is one.
        parameters: the method's, with the names, defaults and ranges of params.yaml (`lowenergy params pq`). A
            parameter with parts may be given in part: finetune={"epochs": 5}. A student may be a module.
    Raises:
        UserError: one line that says what, where, and what to do.

    >>> import lowenergy, torch
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(),
    ...     torch.nn.Linear(32, 2))
    >>> images = torch.randint(256, (200, 1, 8, 8), dtype=torch.uint8)
    >>> labels = (images[:, 0, 0, 0] > 127).long()  # white or black in one corner
    >>> small = lowenergy.compress(network, "prune", images=images, labels=labels, amount=0.5, scan_images=0,
    ...     finetune={"epochs": 1}, retrain={"epochs": 1}, accept_chance=True, device="cpu")
    >>> small.network(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 2])
    >>> smaller = lowenergy.compress(small, "quantize", weight_bits=4, accept_chance=True)
    >>> smaller.size_bytes < small.size_bytes
    True
    """
    student = parameters.pop("student") if isinstance(parameters.get("student"), nn.Module) else None
    section = params.method(method, parameters)
    before = network if isinstance(network, Made) else None
    seed = seed_of(seed if seed is not None else before.seed if before else 0)
    device = device if device is not None else before.device if before else None
    constants = {"step_size": step_size, "noise": noise, "gradient_clamp": gradient_clamp, "chain_steps": chain_steps}
    for name, parts in (("matching", matching), ("training", training)):
        if parts is not None and not isinstance(parts, Mapping):
            raise UserError(f"{name}={parts!r}: give a dictionary of parameters, such as {{'temperature': 4}}")
    matching = {**(before.matching if before else {}), **(matching or {})}
    training = {**(before.training if before else {}), **(training or {})}
    with apart(device):
        if images is not None:
            splits, labelled = gathered(images, labels, mean=mean, std=std, validation=validation)
        elif before is not None:
            told = {"labels": labels, "mean": mean, "std": std}
            odd = [name for name, value in told.items() if value is not None]
            odd += [] if isinstance(validation, float) and validation == HELD_OUT else ["validation"]
            if odd:
                raise UserError(f"{', '.join(odd)}: of images, and none are given; those of the call before are used")
            splits, labelled = before.splits, True
        else:
            raise UserError("compress: give images to train and calibrate on")
        some = to_float(splits.train.images[: networks.TRIED])

        def model_of(given: nn.Module | Made | Opened | str | Path) -> Opened:
            if isinstance(given, Opened):
                return given
            if isinstance(given, nn.Module) and not is_built(given):
                known = {"head": head, "normalisation": splits.normalisation, "arguments": arguments}
                return taken_in(given, some, **known, seed=seed, labelled=labelled)  # type: ignore[arg-type]
            return opened(given, trust=trust, labelled=labelled)

        start = model_of(network)
        given_teacher = teacher if teacher is not None else before.teacher if before else None
        wanted = start if given_teacher is None else model_of(given_teacher)
        _check_pair(start, wanted, method, splits, head)
        spec = wanted.model.spec
        kind = wanted.model.target if wanted.model.target in params.kinds() else kind_of(spec.head, labelled=labelled)
        _check_labels(kind, splits, spec, labelled=labelled)
        sampler = _sampler(start.provenance.get("sampler"), constants, kind)
        of_kind = _section_of(kind, spec, matching, {**training, **_step(sampler)})
        provenance: dict[str, Any] = {"sampler": sampler} if sampler else {}
        provenance |= {
            "stage": method,
            **_provenance_of(splits, start.provenance),
            "seed": seed,
            "start": {"name": start.name, "sha256": start.sha256},
        }
        given = {}
        if student is not None:
            of_student = named(student, some, head=spec.head, normalisation=spec.normalisation, arguments=None)
            section = section.model_copy(update={"student": architecture_of(of_student)})
            given = {"student": of_student.given}
        with (
            tempfile.TemporaryDirectory(prefix="lowenergy-") as room,
            running(method, seed, [], kind=kind, root=room, watched=False) as run,
        ):
            model_of_teacher = wanted.model.build()
            model = making.make(
                start.model.build(),
                model_of_teacher,
                model_of_teacher if wanted is start else start.model.build(),
                method,
                section,
                of_kind,
                splits,
                run,
                provenance,
                accept="accept_chance=True",
                **given,
            )
        return Made(method, model, run.provenance, wanted, splits, matching, training, seed, device)


def _check_labels(kind: str, splits: Splits, spec: networks.Spec, *, labelled: bool) -> None:
    """Raise unless there are labels where they are needed, and an output for each class."""
    if kind == "ebm":
        return
    if not labelled:
        raise UserError(f"labels: a {kind} needs them; give labels, or images that come with labels")
    if (largest := max(int(part.labels.max()) for part in (splits.train, splits.validation))) >= spec.outputs:
        raise UserError(f"labels: {largest}, and the network has {spec.outputs} outputs")


def _provenance_of(splits: Splits, before: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of its data; of test images that they are mixed, if training so far left out others."""
    if not splits.source:
        return {}
    own = splits.provenance
    others = before.get("data") == splits.source and before.get("test", own.get("test")) != own.get("test")
    return own | ({"test": "mixed"} if others else {})


def _check_pair(start: Opened, teacher: Opened, method: str, splits: Splits, head: str | None) -> None:
    """Raise unless `start` can be compressed towards `teacher` with these images."""
    spec = start.model.spec
    if making.is_coded(start.model) or making.is_coded(teacher.model):
        raise UserError(
            f"{method}: {start.name} is quantized or product-quantized, which no method can go on from; give what it "
            "was made from, or prune and distill first"
        )
    if spec.input_shape != splits.input_shape:
        raise UserError(f"images of {splits.input_shape}; the network takes {spec.input_shape}")
    if head not in (None, spec.head):
        raise UserError(f"head={head}: the network is known to have {spec.head or 'none: it is a classifier'}")
    of_teacher = teacher.model.spec
    if (spec.head, spec.input_shape) != (of_teacher.head, of_teacher.input_shape):
        raise UserError(f"teacher: {of_teacher.name} is of another kind, or takes other images")
    if spec.outputs != of_teacher.outputs:
        raise UserError(f"teacher: {of_teacher.name} has {of_teacher.outputs} outputs, the network {spec.outputs}")
    _same_normalisation(splits, spec)


def _same_normalisation(splits: Splits, spec: networks.Spec) -> Normalisation | None:
    """How the network says that its images are normalised; None if they are images from -1 to 1.

    Raises:
        UserError: the caller says that these images are normalised in another way.
    """
    known, said = spec.normalisation, splits.normalisation
    if said is not None and (known is None or list(map(list, known)) != list(map(list, said))):
        kept = f"mean={known[0]}, std={known[1]}" if known else "images from -1 to 1"
        raise UserError(f"mean={said[0]}, std={said[1]}: the network is known to take {kept}")
    return known


def _sampler(recorded: Mapping[str, Any] | None, given: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """How to sample from an energy, as its file will say; empty for a classifier.

    Raises:
        UserError: constants are given for a classifier, or are out of range.
    """
    named = {key: value for key, value in given.items() if value is not None}
    if kind == "classifier":
        if named:
            raise UserError(f"{', '.join(named)}: of an energy; give head= to make the network one")
        return {}
    training = params.kinds()[kind].model_fields["train"].default
    constants = {**training.recorded_sampler, **(recorded or {}), **named}
    steps = constants.pop("chain_steps")
    if not isinstance(steps, int) or steps < 1:
        raise UserError(f"chain_steps={steps}: give a whole number from 1")
    checked = params.completed(params.Sampler, "energies.train.sampler", constants)
    return {**checked.model_dump(), "chain_steps": steps}


def _step(sampler: Mapping[str, Any]) -> dict[str, Any]:
    """The same constants as parameters of training, for the chains that it runs itself."""
    return {"sampler": {key: value for key, value in sampler.items() if key != "chain_steps"}} if sampler else {}


def _section_of(kind: str, spec: networks.Spec, matching: Mapping[str, Any], training: Mapping[str, Any]) -> Any:
    """The kind's section of params.yaml, filled in for a network with this spec."""
    architecture = architecture_of(spec).model_dump()
    if kind == "ebm":
        architecture |= {"head": spec.head, "logits": spec.outputs or None}
    values = {"architecture": architecture, "train": dict(training), "matching": dict(matching)}
    return params.completed(params.kinds()[kind], kind, values)


def train(
    network: nn.Module | Mapping[str, Any] | str,
    kind: str,
    *,
    images: Images,
    labels: Any = None,
    validation: Any = HELD_OUT,
    mean: Values = None,
    std: Values = None,
    arguments: Mapping[str, Any] | None = None,
    head: str | None = None,
    seed: int = 0,
    device: Device = None,
    **parameters: Any,
) -> Made:
    """Train a network as the pipeline trains its teachers: as a `classifier`, an `ebm`, or a `jem` (both at once).

    Args:
        network: a module, from which training starts and which is not changed; an architecture of params.yaml, such as
            {"name": "cnn", "width": 16, "stem": "3x3", "activation": "swish", "norm": "none"}; or the import path of a
            constructor, to be called with `arguments`.
        images, labels, validation, mean, std, arguments, seed, device: see lowenergy.compress.
        head: for an ebm, what its energy is: the `mean` of the outputs, the single `scalar` the network returns, or
            minus the `logsumexp` of the outputs. None for that of a network which lowenergy has built as an energy,
            else the mean.
        parameters: <kind>.train of params.yaml, with its names, defaults and ranges (`lowenergy params ebm.train`). A
            parameter with parts may be given in part: sampler={"step_size": 0.1}.
    Returns:
        A model that can be saved, measured, given to lowenergy.compress and, if it is an energy, sampled from.
    Raises:
        UserError: one line that says what, where, and what to do.

    >>> import lowenergy, torch
    >>> images = torch.randint(256, (64, 1, 8, 8), dtype=torch.uint8)
    >>> energy = lowenergy.train({"name": "cnn", "width": 4, "stem": "3x3", "activation": "swish", "norm": "none"},
    ...     "ebm", images=images, epochs=1, device="cpu")
    >>> lowenergy.sample(energy, n=2, steps=3).shape
    torch.Size([2, 1, 8, 8])
    """
    if not isinstance(kind, str) or kind not in params.kinds():
        raise UserError(f"kind={kind!r}: give {', '.join(params.kinds())}")
    seed = seed_of(seed)
    with apart(device):
        splits, labelled = gathered(images, labels, mean=mean, std=std, validation=validation)
        if kind != "ebm" and not labelled:
            raise UserError(f"labels: a {kind} needs them; give labels, or images that come with labels")
        given, weights = None, None  # where training starts: a module, or tensors
        if isinstance(network, networks.Network):  # which takes images, and is an energy, as its spec says
            splits = replace(splits, normalisation=_same_normalisation(splits, network.spec))
            head = head or network.spec.head
        head = head or "mean"
        logits = 1 if head == "scalar" else 10
        if isinstance(network, networks.Network) and _is_of_the_zoo(network):
            architecture, weights = architecture_of(network.spec).model_dump(), networks.stored_state(network)
            logits = network.spec.outputs
        elif isinstance(network, nn.Module):
            some, known = to_float(splits.train.images[: networks.TRIED]), splits.normalisation
            module, made_by = (network.body, network.spec) if isinstance(network, Foreign) else (network, None)
            spec = named(module, some, head=None, normalisation=known, arguments=arguments)
            if made_by is not None and arguments is None:
                spec = replace(spec, name=made_by.name, arguments=made_by.arguments)
            architecture, given = architecture_of(spec).model_dump(), spec.given
        elif isinstance(network, str):
            architecture = {"name": network, "arguments": dict(arguments or {})}
        elif isinstance(network, Mapping):
            architecture = {**network}
        else:
            check_module("network", network)
        if kind == "ebm":
            ours = not params.is_import_path(str(architecture.get("name")))
            architecture = {"head": head, "logits": logits if ours else None, **architecture}
        with (
            tempfile.TemporaryDirectory(prefix="lowenergy-") as room,
            running(kind, seed, [], kind=kind, root=room, watched=False) as run,
        ):
            if weights is not None:  # from which training starts
                architecture["weights"] = str(Path(room) / "start.safetensors")
                files.write_safetensors(architecture["weights"], weights, {})
            changed = {"architecture": architecture, "train": parameters}
            section: Any = params.completed(params.kinds()[kind], kind, changed)
            trained = targets.get(kind).train(splits, section, run, given)
            disband(run)
        provenance = {
            "stage": "teacher",
            **(splits.provenance if splits.source else {}),
            "seed": seed,
            **run.provenance,
        }
        if kind != "classifier":
            provenance |= {"sampler": section.train.recorded_sampler, "recoveries": run.recoveries}
        return Made("train", artifact.dense(trained, kind), provenance, None, splits, {}, parameters, seed, device)


def _is_of_the_zoo(network: networks.Network) -> bool:
    """True if the zoo makes it as its spec says, with all channels and norms."""
    if network.spec.is_foreign:
        return False
    own, whole = (networks.stored_state(of) for of in (network, networks.build(network.spec, seed=0)))
    return {name: w.shape for name, w in own.items()} == {name: w.shape for name, w in whole.items()}


def save(
    network: nn.Module | Made,
    path: str | Path,
    *,
    images: Images = None,
    mean: Values = None,
    std: Values = None,
    head: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Write a network as a model file, uncompressed: the yardstick for every compression, which the pipeline can read.

    Args:
        network: a module; or what a call has made, which is written as it is.
        images: a few images that the module takes; not needed for a network that lowenergy has built.
        mean, std, head, arguments: see lowenergy.compress.
    Raises:
        UserError: the file would not give the same network again, or the module cannot be stored in one.

    >>> import lowenergy, torch
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    >>> lowenergy.save(network, "linear.safetensors", images=torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    >>> again = lowenergy.load("linear.safetensors", network=network)
    >>> torch.equal(again(torch.zeros(1, 1, 8, 8)), network(torch.zeros(1, 1, 8, 8) * 1.0))
    True
    """
    path = path_of("path", path)
    if isinstance(network, Made):
        network.save(path)
        return
    with apart("cpu"):
        check_module("network", network)
        if isinstance(network, networks.Network):
            told = {"mean": mean, "std": std, "head": head, "arguments": arguments}
            if odd := [name for name, value in told.items() if value is not None]:
                raise UserError(f"{', '.join(odd)}: known of a network that lowenergy has built")
            plain = opened(network)
        elif is_built(network):
            plain = opened(network)  # an int8 graph: `opened` raises, and says what to give instead
        else:
            if images is None:
                raise UserError("save: give images, a few that the network takes: its file says what they look like")
            split, _ = read(images, mean=mean, std=std)
            some, known = to_float(split.images[: networks.TRIED]), normalisation(mean, std, split.images.shape[1])
            plain = taken_in(network, some, head=head, normalisation=known, arguments=arguments, seed=0, labelled=False)
        artifact.save(plain.model, path, plain.provenance)
