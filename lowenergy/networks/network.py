"""One backbone each for classifiers, EBMs and JEMs, built from a small `Spec`.

    >>> spec = Spec("cnn", width=16, stem="3x3", activation="swish", norm="none", channels=1, image_size=8, outputs=10)
    >>> build(spec, seed=0)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])

A network maps images in [-1, 1], (batch, channels, size, size), to logits, (batch, outputs). What the logits mean is
the target's business: class scores, or an energy through one of the heads of lowenergy/energies.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowenergy.base.files import FileError
from lowenergy.base.params import Architecture
from lowenergy.networks import zoo
from lowenergy.networks.foreign import Foreign, check_fit, construct, find_layers, normalisation
from lowenergy.networks.spec import Spec


class Network(nn.Module):
    """features: images -> (batch, features), what FID looks at in the scorer; fc: features -> logits.

    Some features come with a term that all logits share (zoo/unet.py), (batch, 1): an energy more than a class.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.features = zoo.features(spec)
        with torch.no_grad():
            self.features.eval()
            width = _apart(self.features(torch.zeros(1, *spec.input_shape)))[0].shape[1]
            self.features.train()
        self.fc = nn.Linear(width, spec.outputs)
        self.scale: Tensor | None
        self.shift: Tensor | None
        scale, shift = normalisation(spec)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is not None and self.shift is not None:
            x = x * self.scale + self.shift
        features, shared = _apart(self.features(x))
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):  # in bfloat16 energies of hundreds are whole numbers
                logits = self.fc(features.float())
        else:  # an exported graph would keep a part of its own for the lines above, out of a quantizer's sight
            logits = self.fc(features)
        return logits if shared is None else logits + shared


def _apart(features: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Features, and the term that all logits share, where there is one."""
    return features if isinstance(features, tuple) else (features, None)


AnyNetwork = Network | Foreign


def build(spec: Spec, *, seed: int, pretrained: bool = False) -> AnyNetwork:
    """A freshly initialised network; the same seed gives the same weights and leaves the global generator alone.

    Args:
        pretrained: let a constructor from elsewhere fetch the weights that its arguments name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return construct(spec, pretrained=pretrained) if spec.is_foreign else Network(spec)


def of_params(architecture: Architecture, spec: Spec, *, seed: int, where: str) -> AnyNetwork:
    """The network of a params file: fresh, or with the weights that it names.

    Args:
        spec: of `architecture`, for the data at hand.
        where: the section of params.yaml, for messages.
    Raises:
        NetworkError: a network from elsewhere that cannot be built or does not fit the data.
        FileError: weights that are missing or do not fit.
    """
    network = build(spec, seed=seed, pretrained=True)
    if isinstance(network, Foreign):
        check_fit(network, where)
    if architecture.weights is not None:
        take_weights(network, architecture.weights, where)
    return network


def take_weights(network: AnyNetwork, path: str, where: str) -> None:
    """Weights from a safetensors file, or from a state dict that torch.save wrote (read without unpickling code).

    Raises:
        FileError: missing, of no such format, or of other names or shapes, of which the first three are named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileError(f"{where}.weights {path}: no such file")
    given: Any
    try:
        given = load_file(path)
    except SafetensorError:
        try:
            given = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what of torch.load and of unpicklers is not raised
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise FileError(
                f"{where}.weights {path}: neither safetensors nor a state dict to be read safely ({reason[:200]}); "
                "save module.state_dict() with safetensors"
            ) from None
    if isinstance(given, Mapping) and isinstance(given.get("state_dict"), Mapping):
        given = given["state_dict"]
    if not isinstance(given, Mapping) or not all(isinstance(value, Tensor) for value in given.values()):
        raise FileError(f"{where}.weights {path}: holds no state dict; save module.state_dict()")
    body = network.body if isinstance(network, Foreign) else network
    wanted = {name: tuple(value.shape) for name, value in body.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in given.items()}
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    wrong = [
        f"{name}: the network has {wanted.get(name, 'none')}, the file {shapes.get(name, 'none')}"
        for name in dict.fromkeys([*wanted, *shapes])
        if wanted.get(name) != shapes.get(name) and name not in optional
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise FileError(f"{where}.weights {path} does not fit {network.spec.name}: {'; '.join(wrong[:3])}{more}")
    body.load_state_dict(given, strict=False)


def build_with(spec: Spec, state: Mapping[str, Tensor], body: nn.Module | None = None) -> AnyNetwork:
    """The network of `spec` holding these weights, in evaluation mode.

    A structurally pruned network has fewer channels than its spec says, so the tensors' shapes decide; one whose
    BatchNorms were folded has no tensors of them.

    Args:
        body: of a network from elsewhere, instead of importing it; taken over and changed.
    Raises:
        ValueError: tensors are missing, unknown, or do not fit together.
    """
    if body is not None:
        network: AnyNetwork = body if isinstance(body, Foreign) else Foreign(spec, body)
    else:
        network = build(spec, seed=0)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{name}.running_mean" not in state:
            if module.track_running_stats:
                owner, _, attribute = name.rpartition(".")
                setattr(network.get_submodule(owner), attribute, nn.Identity())
        else:
            _reshape(
                module, {key.removeprefix(f"{name}."): v for key, v in state.items() if key.startswith(f"{name}.")}
            )
    _reshape(network, dict(state))
    try:
        network.load_state_dict(dict(state))
        network.eval()
        if isinstance(network, Foreign):
            find_layers(network)
        else:
            network(torch.zeros(1, *spec.input_shape))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"the tensors do not fit architecture {spec.name}: {error}") from None
    return network


def _reshape(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a module's own tensors the shapes of these, and let it know."""
    for key, old in [*module._parameters.items(), *module._buffers.items()]:
        new = state.get(key)
        if new is None or (old is not None and old.shape == new.shape):
            continue
        is_parameter = key in module._parameters
        empty = torch.empty_like(new)
        if old is None and not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        setattr(module, key, nn.Parameter(empty) if is_parameter else empty)
        if key == "weight":
            _tell_size(module, old, new)


def _tell_size(module: nn.Module, old: Tensor | None, new: Tensor) -> None:
    if isinstance(module, nn.Conv2d):
        assert old is not None
        if module.groups > 1 and new.shape[1] == old.shape[1]:  # groups went, as of depthwise convolutions
            module.groups = module.groups * new.shape[0] // old.shape[0]
        module.out_channels, module.in_channels = new.shape[0], new.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = new.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = len(new)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(new.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = math.prod(new.shape)
