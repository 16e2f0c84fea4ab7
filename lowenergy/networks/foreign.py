"""Networks from elsewhere: any module that can be imported or is in a file of the project, named by its import path.

    torchvision.models.mobilenet_v2     a callable that gives a module
    timm.create_model                   with arguments {model_name: mobilenetv3_small_050}
    mynets.py:Net                       a class or function in a file

In a params file such a name is the user's own. In the header of a model file it is a stranger's: `check_trust` lets it
name networks of torchvision and timm only, and what the caller says (a file is data, not code).
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowenergy.base.errors import UserError
from lowenergy.networks.spec import Spec

# Of constructors: weights come with the model file, or by architecture.weights.
BRINGS_WEIGHTS = ("weights", "weights_backbone", "pretrained")


class NetworkError(UserError):
    """A network cannot be built, or does not fit its data; the message says which argument to give."""


class Foreign(nn.Module):
    """A module as every other network here: images in [-1, 1], (batch, c, h, w), to logits or energies, (batch, n)."""

    def __init__(self, spec: Spec, body: nn.Module) -> None:
        super().__init__()
        self.spec, self.body = spec, body
        self.scale: Tensor | None
        self.shift: Tensor | None
        scale, shift = normalisation(spec)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.layers: tuple[str, ...] = ()  # those compression can work on, in the order in which they are called
        self.unbearable: tuple[str, ...] | None = None  # of these, those whose channels all stay; None: not yet known

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is not None and self.shift is not None:
            x = x * self.scale + self.shift
        out: Tensor = self.body(x)
        return out[:, None] if out.ndim == 1 else out  # an energy by itself


def normalisation(spec: Spec) -> tuple[Tensor | None, Tensor | None]:
    """x in [-1, 1] -> ((x + 1) / 2 - mean) / std is scale * x + shift; (c, 1, 1) each, or None for none."""
    if spec.normalisation is None:
        return None, None
    mean, std = (torch.tensor(values)[:, None, None] for values in spec.normalisation)
    return 0.5 / std, (0.5 - mean) / std


def construct(spec: Spec, *, pretrained: bool = False) -> Foreign:
    """Import and call.

    Args:
        pretrained: with the arguments by which constructors fetch weights of their own.
    Raises:
        NetworkError: it cannot be imported or called, or is no network.
    """
    arguments = dict(spec.arguments or {})
    if not pretrained:
        arguments = {key: value for key, value in arguments.items() if key not in BRINGS_WEIGHTS}
    made = imported(spec.name)
    try:
        body = made(**arguments)
    except Exception as error:  # whatever a constructor raises
        raise NetworkError(f"{spec.name}({_said(arguments)}): {type(error).__name__}: {_first_line(error)}") from None
    if not isinstance(body, nn.Module):
        raise NetworkError(f"{spec.name}({_said(arguments)}) gives a {type(body).__name__}, and no torch.nn.Module")
    return Foreign(spec, body)


def imported(name: str) -> Callable[..., Any]:
    """What an import path names.

    Raises:
        NetworkError: there is no such file, module or name.
    """
    if ":" in name:
        path, _, attribute = name.partition(":")
        if not Path(path).is_file():
            raise NetworkError(f"{name}: no file {path}; give its path from the project's root")
        found = importlib.util.spec_from_file_location(f"lowenergy_own_{Path(path).stem}", path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        try:
            found.loader.exec_module(module)
        except Exception as error:
            raise NetworkError(f"{name}: {path} cannot be run: {type(error).__name__}: {_first_line(error)}") from None
    else:
        module_name, _, attribute = name.rpartition(".")
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise NetworkError(f"{name}: {error}; install it, or name a file as in mynets.py:Net") from None
    if not callable(made := getattr(module, attribute, None)):
        raise NetworkError(f"{name}: {name.removesuffix(attribute).rstrip('.:')} has no network {attribute}")
    return made


def check_fit(network: Foreign, where: str) -> None:
    """Run a freshly built network once and see that it takes the data's images and has as many outputs as are needed.

    Its spec gets the number of outputs that it has, where any will do.

    Args:
        where: the section of params.yaml, for messages.
    Raises:
        NetworkError: it does not, with the argument to give; or no layer of it could be compressed.
    """
    spec = network.spec
    network.eval()
    try:
        out, network.layers = _called(network)
    except Exception as error:
        argument = _argument(spec, ("in_chans", "in_channels", "channels", "in_planes"))
        hint = (
            f"give {where}.arguments {{{argument}: {spec.channels}}}"
            if argument
            else ("set data.channels and data.image_size to what it takes, or wrap it in a class of your own")
        )
        raise NetworkError(
            f"{where}: {spec.name} does not take images of {spec.input_shape}: {_first_line(error)}; {hint}"
        ) from None
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 2:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise NetworkError(f"{where}: {spec.name} gives {shape} for 2 images, and not logits (2, n) or energies (2,)")
    if spec.outputs and out.shape[1] != spec.outputs:
        argument = _argument(spec, ("num_classes", "n_classes", "classes", "num_outputs", "outputs", "out_features"))
        raise NetworkError(
            f"{where}: {spec.name} has {out.shape[1]} outputs, {spec.outputs} are needed; "
            f"give {where}.arguments {{{argument or 'num_classes'}: {spec.outputs}}}"
        )
    if not network.layers:
        raise NetworkError(f"{where}: {spec.name} calls no convolution or fully connected layer: nothing to compress")
    network.spec = replace(spec, outputs=out.shape[1])
    network.train()


def _called(network: Foreign) -> tuple[Any, tuple[str, ...]]:
    """The output for two black images; names of the convolutions and fully connected layers called on the way."""
    order: dict[str, None] = {}
    handles = [
        module.register_forward_hook(lambda *_, name=name: order.setdefault(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        out = network(torch.full((2, *network.spec.input_shape), -1.0))
    for handle in handles:
        handle.remove()
    return out, tuple(order)


def find_layers(network: Foreign) -> None:
    """Remember which layers a network in evaluation mode calls."""
    network.layers = _called(network)[1]


def check_trust(spec: Spec, trust: Collection[str], origin: str) -> None:
    """See that a file's header names nothing to import that its reader has not agreed to.

    Args:
        trust: import paths, or modules or files that may be imported from, such as mynets or mynets.py.
    Raises:
        NetworkError: it does.
    """
    if not spec.is_foreign:
        return
    name, arguments = spec.name, spec.arguments or {}
    where = name.partition(":")[0] if ":" in name else name.rpartition(".")[0]
    known = {name, where, Path(where).stem, Path(where).name, *_parents(where)}
    if known & set(trust):
        return
    plain = all(isinstance(value, bool | int | float | str | list) for value in arguments.values())
    if plain and name.startswith("torchvision.models."):
        from torchvision import models

        attribute = name.removeprefix("torchvision.models.")
        found = getattr(models, attribute, None)
        is_network = attribute in models.list_models() or (inspect.isclass(found) and issubclass(found, nn.Module))
        if is_network and not any(isinstance(v, str) for k, v in arguments.items() if k not in BRINGS_WEIGHTS):
            return
    if plain and name == "timm.create_model" and set(arguments) <= TIMM:
        import timm

        if arguments.get("model_name") in timm.list_models():
            return
    place = Path(where).name
    raise NetworkError(
        f"{origin}: its network is {name}, code that is in no file of models; if you trust it, say so: "
        f"load(path, trust=['{place}']) or `--trust {place}`, or hand the network over: load(path, network=...)"
    )


# Arguments of timm.create_model that say what a network looks like, and fetch nothing.
TIMM = {"model_name", "num_classes", "in_chans", "img_size", "drop_rate", "drop_path_rate", "global_pool", "pretrained"}


def _parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)}


def _argument(spec: Spec, names: tuple[str, ...]) -> str | None:
    """Of these names, the first that is a parameter of the constructor."""
    made = imported(spec.name)
    if spec.name.startswith("timm."):
        known: Mapping[str, Any] = dict.fromkeys(TIMM)
    else:
        try:
            known = inspect.signature(made).parameters
        except (TypeError, ValueError):
            known = {}
        if spec.name.startswith("torchvision.models.") and "num_classes" in names:
            return "num_classes"
    return next((name for name in names if name in known), None)


def _said(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
