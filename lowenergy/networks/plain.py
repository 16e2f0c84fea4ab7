"""Make plain parameters of weights that are computed before each use, as by weight norm and spectral norm.

Training needs such weights as they are. Afterwards each becomes a plain parameter with its final value, so that
compression meets weights and nothing else.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lowenergy.networks.distance import distance
from lowenergy.networks.importing import NetworkError

Found = dict[tuple[nn.Module, int], list[str]]  # (module, id of its hook) -> the weights that the hook sets
SAME = 1e-5  # of the outputs' norm: rounding, when the same thing is computed twice


def are_sources(names: Collection[str]) -> bool:
    """True if torch would compute weights from some of the tensors with these names."""
    return any(".parametrizations." in name or name.endswith(("weight_orig", "weight_g")) for name in names)


def plain_weights(network: nn.Module, images: Tensor) -> list[str]:
    """Make every computed weight a plain parameter with the value that it has in evaluation mode, in place.

    This covers torch's parametrizations, its older hooks (weight norm, spectral norm, pruning), and any other hook that
    sets a module's weight before the module is called.

    Args:
        images: a few; the network must answer them as before.
    Returns:
        The names of these weights.
    Raises:
        NetworkError: the network does not answer as before.
    """
    network.eval()
    if not any(parametrize.is_parametrized(module) or module._forward_pre_hooks for module in network.modules()):
        return []
    names = {module: name for name, module in network.named_modules()}
    done = []
    with torch.no_grad(), parametrize.cached():  # parametrized weights stay as in this call; a hook's may change
        with _hooks_watched(network) as set_by_hooks:
            wanted = network(images)
        for module in list(names):
            parametrized: Any = module.parametrizations if parametrize.is_parametrized(module) else {}
            if parametrized:
                _own_class(module)
            for tensor, of_tensor in list(parametrized.items()):
                trained = [w.requires_grad for w in of_tensor.parameters()]
                parametrize.remove_parametrizations(module, tensor)
                if tensor in module._buffers and trained:  # without a gradient, torch takes it for a buffer
                    value = module._buffers.pop(tensor).clone()
                    module.register_parameter(tensor, nn.Parameter(value, requires_grad=any(trained)))
                done.append(f"{names[module]}.{tensor}")
        for (module, hook), tensors in set_by_hooks.items():
            for tensor in tensors:
                _set(module, hook, tensor)
                done.append(f"{names[module]}.{tensor}")
        if set_by_hooks:
            _drop_sources({module: tensors for (module, _), tensors in set_by_hooks.items()}, network, images)
        difference = distance(network(images), wanted)
    if not difference <= SAME:
        raise NetworkError(
            f"{', '.join(done)}: computed before each use, and made plain the outputs change by {difference:.2g} of "
            "their norm; use torch.nn.utils.parametrizations, or give the network its plain weights"
        )
    return done


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module a class that none of its copies share: torch takes the weight from the class."""
    shared = type(module)
    kept = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, kept)


@contextmanager
def _hooks_watched(network: nn.Module) -> Iterator[Found]:
    """Within the context, note whenever a module is called which of its weights its hooks set."""
    set_by_hooks: Found = {}
    before = {module: dict(module._forward_pre_hooks) for module in network.modules() if module._forward_pre_hooks}

    def watched(number: int, hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: nn.Module, *given: Any) -> Any:
            set_by_hooks.setdefault((module, number), [])
            set_by_hooks[module, number] = sorted({*set_by_hooks[module, number], *_set_by(hook, module, given)})
            return hook(module, *given)

        return call

    for module, hooks in before.items():
        for number, hook in hooks.items():
            module._forward_pre_hooks[number] = watched(number, hook)
    try:
        yield set_by_hooks
    finally:
        for module, hooks in before.items():
            module._forward_pre_hooks.update(hooks)
        for key in [key for key, tensors in set_by_hooks.items() if not tensors]:
            del set_by_hooks[key]


def _set_by(hook: Callable[..., Any], module: nn.Module, given: tuple[Any, ...]) -> list[str]:
    """Try a module's hook on disturbed weights, put everything back, and name the weights that the hook has set."""

    def tensors() -> dict[str, Tensor]:
        attributes = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        own = {name: value for name, value in module._parameters.items() if value is not None}
        return {**attributes, **own}

    before, buffers = tensors(), {name: b.clone() for name, b in module._buffers.items() if b is not None}
    kept = {name: (value.data, value.detach().clone()) for name, value in before.items()}
    for value in before.values():
        value.data = value.data * 1.5 + 0.1 if value.is_floating_point() else value.data
    disturbed = {name: value.detach().clone() for name, value in before.items()}
    hook(module, *given)
    written = [
        name
        for name, value in tensors().items()
        if name.startswith(("weight", "bias")) or name.endswith(("weight", "bias"))
        if name not in disturbed or not torch.equal(value.detach(), disturbed[name])
    ]
    for name, (data, content) in kept.items():
        if name in module.__dict__:
            module.__dict__[name] = before[name]
        before[name].data = data.copy_(content)
    for name, content in buffers.items():
        module._buffers[name].copy_(content)  # type: ignore[union-attr]
    return written


def _set(module: nn.Module, number: int, tensor: str) -> None:
    """Make a weight a plain parameter with the value that its hook has just given it, and remove the hook."""
    hook = module._forward_pre_hooks.get(number)
    if isinstance(hook, SpectralNorm):
        remove_spectral_norm(module, tensor)
        loading: Any = module._load_state_dict_pre_hooks  # torch 2.15 forgets to remove its hook for loading
        for key in [key for key, of in loading.items() if getattr(getattr(of, "hook", of), "fn", None) is hook]:
            del loading[key]
    elif isinstance(hook, WeightNorm):
        remove_weight_norm(module, tensor)
    else:
        if tensor not in module._parameters:
            value, trained = getattr(module, tensor).detach().clone(), any(w.requires_grad for w in module.parameters())
            delattr(module, tensor)
            module.register_parameter(tensor, nn.Parameter(value, requires_grad=trained))
        for hooks in (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs):
            hooks.pop(number, None)


def _drop_sources(of_modules: dict[nn.Module, list[str]], network: nn.Module, images: Tensor) -> None:
    """Remove what weights were computed from, if the network runs without it and answers the same."""
    kept = {module: (copy.copy(module._parameters), copy.copy(module._buffers)) for module in of_modules}
    wanted = network(images)
    for module, tensors in of_modules.items():
        for own in (module._parameters, module._buffers):
            for name in [name for name in own if name not in (*tensors, "weight", "bias")]:
                del own[name]
    try:
        if torch.equal(network(images), wanted):
            return
    except Exception:  # whatever a forward pass raises if a tensor is missing
        pass
    for module, (parameters, buffers) in kept.items():
        module._parameters.update(parameters)
        module._buffers.update(buffers)
