"""Build a network from a small `Spec`, or from a `Spec` and the network's tensors.

    >>> spec = Spec("cnn", width=16, stem="3x3", activation="swish", norm="none", channels=1, image_size=8, outputs=10)
    >>> build(spec, seed=0)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])

A network maps images in [-1, 1], (batch, channels, size, size), to logits, (batch, outputs). What the logits mean is
up to the target: class scores, or an energy through one of the heads of lowenergy/energies.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowenergy.networks.backbone import Backbone
from lowenergy.networks.foreign import construct, same
from lowenergy.networks.network import Network, black, tied
from lowenergy.networks.plain import are_sources, plain_weights
from lowenergy.networks.spec import Spec


def build(spec: Spec, *, seed: int, pretrained: bool = False) -> Network:
    """A freshly initialised network; the same seed gives the same weights and leaves the global generator alone.

    Args:
        pretrained: let a constructor from elsewhere fetch the weights that its arguments name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return construct(spec, pretrained=pretrained) if spec.is_foreign else Backbone(spec)


def stored_state(network: nn.Module) -> dict[str, Tensor]:
    """The state that a file holds: without BatchNorm's step counters, and each tensor under its first name only."""
    again = tied(network)
    return {
        name: value.detach().cpu()
        for name, value in network.state_dict().items()
        if name not in again and not name.endswith("num_batches_tracked")
    }


def build_with(spec: Spec, state: Mapping[str, Tensor]) -> Network:
    """Build the network of `spec` with these weights, in evaluation mode.

    A structurally pruned network has fewer channels than its spec says, so the tensors' shapes decide. A network whose
    BatchNorms were folded has no tensors for them.

    Raises:
        ValueError: tensors are missing, unknown, or do not fit together.
    """
    network = build(spec, seed=0)
    state = dict(state)
    names = stored_state(network).keys()
    if not (names <= state.keys() and are_sources(names)):
        plain_weights(network, black(spec))  # as in the file, unless that is from a training that was cut short
    first = {module: name for name, module in network.named_modules()}  # the first name of a module that has several
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{first[module]}.running_mean" not in state:
            if module.track_running_stats:
                owner, _, attribute = name.rpartition(".")
                setattr(network.get_submodule(owner), attribute, nn.Identity())
        else:
            _reshape(
                module, {key.removeprefix(f"{name}."): v for key, v in state.items() if key.startswith(f"{name}.")}
            )
    _reshape(network, state)
    try:
        _load(network, state)
        network.train().eval()  # layers drop what they keep of their former weights when training begins
        network.find_layers()
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"the tensors do not fit architecture {spec.name}: {error}") from None
    return network


def _load(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what stored_state returned; raise ValueError if the network then holds anything else."""
    own = network.state_dict()
    again = tied(network)
    whole: OrderedDict[str, Any] = OrderedDict(state)
    whole |= {name: state[first] for name, first in again.items() if name not in state and first in state}
    whole |= {name: own[name] for name in own if name.endswith("num_batches_tracked") and name not in state}
    whole._metadata = own._metadata  # type: ignore[attr-defined] # the version of each module, which some insist on
    network.load_state_dict(whole)
    loaded = network.state_dict()
    for name, value in state.items():
        if not same(loaded[name], value.to(loaded[name].dtype)):
            raise ValueError(f"{name} shares its memory with another tensor, and the two are not equal")


def _reshape(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a module's own tensors the shapes of these, and tell the module its new size."""
    for key, old in [*module._parameters.items(), *module._buffers.items()]:
        new = state.get(key)
        if new is None or (old is not None and old.shape == new.shape):
            continue
        is_parameter = key in module._parameters
        empty = torch.empty_like(new, dtype=new.dtype if old is None else old.dtype)
        if old is None and not isinstance(module, nn.modules.conv._ConvNd | nn.Linear):  # a folded norm's shift
            continue
        setattr(module, key, nn.Parameter(empty) if is_parameter else empty)
        if key == "weight":
            _tell_size(module, old, new)


def _tell_size(module: nn.Module, old: Tensor | None, new: Tensor) -> None:
    if isinstance(module, nn.ConvTranspose2d):
        module.in_channels, module.out_channels = new.shape[0], new.shape[1] * module.groups
    elif isinstance(module, nn.Conv2d):
        assert old is not None
        if module.groups == old.shape[0]:  # depthwise: each group goes with its channel
            module.groups = new.shape[0]
        module.out_channels, module.in_channels = new.shape[0], new.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = new.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = len(new)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(new.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = math.prod(new.shape)
