"""Turn models as callers have them into a Model: a file, a module of lowenergy's, or any other module."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lowenergy import networks
from lowenergy.base.errors import UserError
from lowenergy.calls.arguments import path_of, trusted, whole
from lowenergy.calls.images import Normalisation
from lowenergy.networks import Given, Spec
from lowenergy.networks.foreign import copied
from lowenergy.networks.importing import first_line
from lowenergy.networks.spec import ZOO
from lowenergy.params import Architecture, is_import_path
from lowenergy.storage import artifact
from lowenergy.storage.artifact import Model

if TYPE_CHECKING:
    from lowenergy.calls.making import Made


@dataclass(frozen=True)
class Opened:
    """A model that a caller handed over, with what its file says, or would say, about its origin."""

    model: Model
    provenance: Mapping[str, Any]
    name: str
    sha256: str  # of the file
    size: int  # bytes of the file

    @property
    def origin(self) -> str:
        """The name of the model in messages."""
        return self.model.origin or self.name


def opened(
    source: "Made | nn.Module | str | Path",
    *,
    trust: Collection[str] = (),
    network: nn.Module | None = None,
    limit: int | None = None,
    labelled: bool = True,
) -> Opened:
    """The model in a file, in what a call has made, or in a module that lowenergy has built.

    Args:
        trust, network, limit: for a file, see lowenergy.load.
        labelled: whether there are labels: they tell a JEM from an energy with the same head.
    Raises:
        UserError: `source` is none of these.
        FileError: the file is missing, damaged, or cannot be trusted.
    """
    if isinstance(source, str | Path):
        source = path_of("model", source)
        if network is not None:
            check_module("network", network)
        model, header = artifact.read(
            source,
            trust=None if network is not None else trusted(trust),
            limit=None if limit is None else whole("limit", limit),
        )
        if network is not None and model.spec.is_foreign:
            model = replace(model, spec=replace(model.spec, given=Given(network)))
        return Opened(
            model, header["provenance"], Path(source).stem, artifact.sha256(source), Path(source).stat().st_size
        )
    if isinstance(source, nn.Module):
        if not isinstance(source, networks.Network):
            kind = "an int8 graph" if is_built(source) else type(source).__name__
            raise UserError(f"{kind} is no network that lowenergy has built; give the file, or what a call has made")
        return stored(
            artifact.dense(networks.duplicate(source).cpu().eval(), kind_of(source.spec.head, labelled=labelled))
        )
    if not hasattr(source, "to_bytes"):  # not making.Made, which cannot be imported here: its module imports this one
        kind = f"the class {source.__name__}" if isinstance(source, type) else type(source).__name__
        raise UserError(f"{kind} is no network; give a torch.nn.Module, the file of a model, or what a call has made")
    return Opened(source.model, source.provenance, source.name, _sha256(source.to_bytes()), source.size_bytes)


def is_built(module: nn.Module) -> bool:
    """True for a network that lowenergy has built, or made an int8 graph of; False for any other module."""
    return isinstance(module, networks.Network) or (isinstance(module, GraphModule) and hasattr(module, "spec"))


def check_module(name: str, module: Any) -> None:
    """Raise unless `module` is a torch module.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(module, nn.Module):
        kind = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise UserError(f"{name}: {kind} is no network; give a torch.nn.Module")


def stored(model: Model, provenance: Mapping[str, Any] | None = None) -> Opened:
    """Open a model that is not in a file yet."""
    provenance = dict(provenance or {})
    content = artifact.to_bytes(model, provenance)
    return Opened(model, provenance, model.spec.name, _sha256(content), len(content))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def kind_of(head: str | None, *, labelled: bool) -> str:
    """The target of a network with this head: classifier, ebm or jem."""
    if head is None:
        return "classifier"
    return "jem" if head == "logsumexp" and labelled else "ebm"


def taken_in(
    module: nn.Module,
    images: Tensor,
    *,
    head: str | None,
    normalisation: Normalisation | None,
    arguments: Mapping[str, Any] | None,
    seed: int,
    labelled: bool,
) -> Opened:
    """Take in any module: try it out as a network of params.yaml would be, and store a copy; it is not changed.

    Args:
        images: a few, float32 in [-1, 1].
        arguments: of the module's constructor, for readers of its file.
    Raises:
        NetworkError: it is not fit for what a method does with it; the message says what to change.
        UserError: head is scalar, and the network has more than one output; or see `named`.
    """
    spec = named(module, images, head=head, normalisation=normalisation, arguments=arguments)
    network = networks.of_params(architecture_of(spec), spec, seed=seed, where="network", images=images)
    if head == "scalar" and network.spec.outputs != 1:
        raise UserError(f"head scalar: the network has {network.spec.outputs} outputs; give mean or logsumexp")
    network = networks.settled(network, images, "network")
    return stored(artifact.dense(network, kind_of(head, labelled=labelled)))


def architecture_of(spec: Spec) -> Architecture:
    """The architecture section that params.yaml would have for this spec."""
    if is_import_path(spec.name):
        return Architecture(name=spec.name, arguments=spec.arguments or {})
    return Architecture(name=spec.name, **{key: getattr(spec, key) for key in ZOO})


def named(
    module: nn.Module,
    images: Tensor,
    *,
    head: str | None,
    normalisation: Normalisation | None,
    arguments: Mapping[str, Any] | None,
) -> Spec:
    """The spec of a module.

    In this process the spec makes the network as a copy of the module. For other programs, its file has the import
    path of a constructor: one of timm's or torchvision's if the module comes from there, otherwise its own class.

    If no arguments are given and the constructor would make a different network, the file says nothing about
    arguments: whoever loads it has to hand the module over.

    Raises:
        UserError: the constructor makes a different network with the arguments given, or a file cannot hold them.
    """
    module = frozen_copy(module)
    if arguments is not None:
        try:
            arguments = json.loads(json.dumps(dict(arguments)))  # as a file has them: tuples are lists there
        except (TypeError, ValueError) as error:
            raise UserError(f"arguments: {error}; a file has numbers, texts, lists and dicts of texts only") from None
    kind = type(module)
    own, (mean, std) = f"{kind.__module__}.{kind.__qualname__}", normalisation or (None, None)
    spec = Spec(
        own,
        channels=images.shape[1],
        image_size=images.shape[2],
        head=head,
        arguments=dict(arguments or {}),
        mean=mean,
        std=std,
        given=Given(module),
    )
    if arguments is not None:
        if why := _made_otherwise(spec, images):
            raise UserError(f"arguments={dict(arguments)}: {why}; give those that the module was made with, or none")
        return spec
    name, known = _of_timm(module) or _of_torchvision(module) or (own, {})
    spec = replace(spec, name=name, arguments=known)
    if _made_otherwise(spec, images):
        return replace(spec, name=own, arguments=None, given=Given(module, made_by_name=False))
    return spec


def _made_otherwise(spec: Spec, images: Tensor) -> str | None:
    """Why the spec's constructor, given the module's weights, does not make the same network; None if it does.

    Also None if the module itself cannot be run.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            module = networks.build(spec, seed=0).eval()
            wanted = module(images)
        except Exception:  # what is wrong with the module itself is reported where it is taken in
            return None
        try:
            again = networks.build(replace(spec, given=None), seed=0).eval()
            again.load_state_dict(module.state_dict())
            outputs = again(images)
        except Exception as error:  # anything that its constructor or its code raises
            return f"with them, {first_line(error)}"
        if networks.distance(outputs, wanted) <= networks.SAME:
            return None
        return f"with them, and with its weights, {spec.name} gives other outputs than the module"


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy on the CPU, in evaluation mode, that later changes of the module do not reach.

    If all weights of the module are frozen, as a teacher's often are, they are unfrozen in the copy: methods train
    what they have changed.
    """
    name = type(module).__name__
    with torch.no_grad():
        copy_ = copied(module, name).cpu().eval()
    weights = [w for w in copy_.parameters() if not nn.parameter.is_lazy(w) and w.dtype.is_floating_point]
    if not any(weight.requires_grad for weight in weights):
        for weight in weights:
            weight.requires_grad_(True)
    for parameter in copy_.parameters():
        parameter.grad = None
    return copy_


def _of_timm(module: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """timm.create_model and its arguments, if they make a network with this module's tensors, or None."""
    config = getattr(module, "pretrained_cfg", None)
    if not type(module).__module__.startswith("timm.") or config is None:
        return None
    import timm

    name = config["architecture"] if isinstance(config, Mapping) else config.architecture
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    arguments = {"model_name": name, "num_classes": getattr(module, "num_classes", None)}
    if first is not None and first.groups == 1:
        arguments["in_chans"] = first.in_channels
    return ("timm.create_model", arguments) if _makes(timm.create_model, arguments, module) else None


def _of_torchvision(module: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """A constructor of torchvision's and its arguments, if they make a network with this module's tensors, or None."""
    home = type(module).__module__
    if not home.startswith("torchvision.models."):
        return None
    from torchvision import models

    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not layers:
        return None
    last = layers[-1]
    arguments = {"num_classes": last.out_features if isinstance(last, nn.Linear) else last.out_channels}
    for name in models.list_models(module=models):
        builder = models.get_model_builder(name)
        if builder.__module__ == home and _makes(builder, arguments, module):
            return f"torchvision.models.{name}", arguments
    return None


def _makes(builder: Any, arguments: Mapping[str, Any], module: nn.Module) -> bool:
    """Return True if the constructor makes a network of the module's class, with its layers and its tensors' shapes.

    The tensors that it makes have no values.
    """
    try:
        with torch.device("meta"):
            built = builder(**arguments)
    except Exception:  # whatever it raises, it is not the right one
        return False
    wanted, shapes = ({name: tuple(w.shape) for name, w in m.state_dict().items()} for m in (module, built))
    return type(built) is type(module) and wanted == shapes and str(built) == str(module)
