"""Networks from elsewhere: any module that can be imported or is in a file of the project, named by its import path.

In a params file such a name is the user's own. In the header of a model file it is a stranger's: `check_trust` lets it
name only networks of torchvision and timm, and what the caller allows (a file is data, not code).
"""

import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from lowenergy.networks.copies import duplicate
from lowenergy.networks.importing import NetworkError, first_line, imported
from lowenergy.networks.network import Network, black, tied
from lowenergy.networks.spec import Spec

# Arguments by which constructors fetch weights: here these come with the model file, or by architecture.weights.
BRINGS_WEIGHTS = ("weights", "weights_backbone", "pretrained")
LAYERS = nn.Conv2d, nn.Linear
INNER = "_orig_mod", "_checkpoint_wrapped_module"  # what torch's wrappers call the module inside


class Foreign(Network):
    """A module from elsewhere, used like every other network here."""

    def __init__(self, spec: Spec, body: nn.Module) -> None:
        super().__init__(spec)
        self.body = body
        self.came_as: str | None = None  # the type of its parameters, if that was not float32

    @property
    def module(self) -> nn.Module:
        return self.body

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(x)[0]

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Return logits or energies, (batch, n), in training mode also those of the network's auxiliary classifiers.

        Raises:
            NetworkError: what the module returns is neither.
        """
        given = self.answer(x)
        logits = [part for part in given if part is not None] if self.training and isinstance(given, tuple) else [given]
        if not logits or not all(isinstance(part, Tensor) and part.ndim in (1, 2) for part in logits):
            raise NetworkError(f"gives {described(given)}, and not logits (batch, n) or energies (batch,)")
        return [part[:, None] if part.ndim == 1 else part for part in logits]  # an energy by itself has one dimension

    def answer(self, x: Tensor) -> Any:
        """Return what the module itself returns."""
        return self.body(self.normalised(x))

    def find_layers(self) -> None:
        """Find the layers that can be compressed, in the order of their calls.

        Layers that share a weight go by the name of the first, and come last if one of them is called last. A layer
        does not count if it has no weight of its own, because other code sets it; if it is called with another weight,
        by torch.func.functional_call; or if it is called with a tuple or by torch.vmap instead of with a batch.
        """
        counters = "num_batches_tracked"  # step counters of norms, which no file keeps
        self.tied = {name: first for name, first in tied(self).items() if not name.endswith(counters)}
        weights = dict(self.named_parameters(remove_duplicate=False))
        modules = dict(self.named_modules(remove_duplicate=False))
        owners: dict[str, str] = {}
        calls: list[str] = []
        by_name: list[str] = []
        others: set[str] = set()
        handles = []

        def look(name: str, inputs: tuple[Any, ...]) -> None:
            if not inputs:
                by_name.append(name)

        def note(name: str, module: Any, inputs: tuple[Any, ...]) -> None:
            look(name, inputs)
            is_batch = inputs and isinstance(inputs[0], Tensor) and not is_functorch_wrapped_tensor(inputs[0])
            if is_batch and module.weight is weights[f"{name}.weight"]:
                calls.append(name)
            else:
                others.add(owners[name])

        for name, module in self.named_modules():
            weight = f"{name}.weight"
            owner = self.tied.get(weight, weight).removesuffix(".weight")
            has_weights = weight in weights and weights[weight].numel() > 0  # else there is nothing to compress
            if has_weights and isinstance(module, LAYERS) and isinstance(modules.get(owner), LAYERS):
                owners[name] = owner
                handles.append(module.register_forward_hook(lambda m, x, _, name=name: note(name, m, x)))
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                handles.append(module.register_forward_hook(lambda _, x, __, name=name: look(name, x)))
        try:
            super().find_layers()
        finally:
            for handle in handles:
                handle.remove()
        if by_name:
            name = by_name[0].removeprefix("body.")
            raise NetworkError(f"{self.spec.name} calls {name} with its input by name; write {name}(x)")
        calls = [name for name in calls if owners[name] not in others]
        if calls:
            self.last = calls[-1]
            order = dict.fromkeys(owners[name] for name in calls if owners[name] != owners[self.last])
            self.layers = (*order, owners[self.last])


def described(given: Any) -> str:
    """Describe what a module returned in a few words: (2, 10), or a list of (2, 8, 4, 4), (2, 16, 2, 2)."""
    if isinstance(given, Tensor):
        return str(tuple(given.shape))
    kind = f"a {type(given).__name__}"
    if isinstance(given, Mapping):
        return f"{kind} with {', '.join(map(str, given))}"
    if isinstance(given, tuple | list):
        return f"{kind} of {', '.join(described(part) for part in given) or 'nothing'}"
    return kind


def construct(spec: Spec, *, pretrained: bool = False) -> Foreign:
    """Make the network of a spec: import its constructor and call it, or copy the module that was handed over.

    Args:
        pretrained: keep the arguments by which constructors fetch weights of their own.
    Raises:
        NetworkError: it cannot be imported, called or copied, or is no network.
    """
    if spec.given is not None:
        given = spec.given.module
        return adopted(spec, copied(given.module if isinstance(given, Network) else given, spec.name))
    arguments = dict(spec.arguments or {})
    if not pretrained:
        arguments = {key: value for key, value in arguments.items() if key not in BRINGS_WEIGHTS}
    constructor = imported(spec.name)
    try:
        body = constructor(**arguments)
    except Exception as error:  # whatever a constructor raises
        raise NetworkError(f"{spec.name}({_said(arguments)}): {type(error).__name__}: {first_line(error)}") from None
    if not isinstance(body, nn.Module):
        raise NetworkError(f"{spec.name}({_said(arguments)}) gives a {type(body).__name__}, and no torch.nn.Module")
    return adopted(spec, body)


def copied(module: nn.Module, name: str) -> nn.Module:
    """Copy a module that belongs to the caller, hooks included.

    Raises:
        NetworkError: it cannot be copied, or has no weights yet.
    """
    _check_made(module, name)
    try:
        return duplicate(module)
    except Exception as error:  # whatever its own code raises
        raise NetworkError(f"{name} cannot be copied (copy.deepcopy): {first_line(error)}") from None


def adopted(spec: Spec, body: nn.Module) -> Foreign:
    """Make a module a network here: out of its wrappers, on the CPU, in float32, with its lazy layers initialised.

    Raises:
        NetworkError: this cannot be done.
    """
    body = _unwrapped(body)
    for name, module in body.named_modules(remove_duplicate=False):
        if isinstance(module, torch.jit.ScriptModule):
            raise NetworkError(f"{spec.name}: {name or 'it'} is TorchScript; name the module that it was made from")
        for child, inner in list(module.named_children()):
            if _unwrapped(inner) is not inner:
                setattr(module, child, _unwrapped(inner))
    _check_made(body, spec.name)
    tensors = [*body.parameters(), *body.buffers()]
    for tensor in tensors:
        made = not nn.parameter.is_lazy(tensor) and tensor.layout == torch.strided
        if made and tensor.numel() and 0 in tensor.stride():  # expanded, without memory for each value
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    if any(tensor.device.type != "cpu" for tensor in tensors):
        body.cpu()
    network = Foreign(spec, body)
    network.came_as = _to_float32(body)
    if any(map(nn.parameter.is_lazy, tensors)):
        network.eval()
        try:
            with torch.no_grad():
                network.answer(black(spec))
        except Exception as error:
            raise NetworkError(does_not_take(spec, "architecture", error)) from None
        network.train()
        lazy = [name for name, w in body.named_parameters() if nn.parameter.is_lazy(w)]
        if lazy:
            raise NetworkError(f"{spec.name}: {lazy[0]} has no size yet, since the network does not use it; remove it")
    return network


def _check_made(module: nn.Module, name: str) -> None:
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        raise NetworkError(f"{name}: built on the device meta, without weights; build it on the CPU")


def _unwrapped(module: nn.Module) -> nn.Module:
    """Take a module out of DataParallel, torch.compile and checkpointing."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif inner := [part for key in INNER if isinstance(part := getattr(module, key, None), nn.Module)]:
            module = inner[0]
        else:
            return module


def _to_float32(body: nn.Module) -> str | None:
    """Make parameters of other floating types, and buffers of these, float32 in place; return the types' names."""
    other = {w.dtype for w in body.parameters() if w.dtype.is_floating_point} - {torch.float32}
    for tensor in [*body.parameters(), *body.buffers()]:
        if tensor.dtype in other:
            tensor.data = tensor.data.float()
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in other)) or None


def same(one: Tensor, other: Tensor) -> bool:
    """True if all values are equal, NaN included, and the shapes."""
    if one.shape != other.shape:
        return False
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def does_not_take(spec: Spec, where: str, error: Exception) -> str:
    """Return the message for a network that fails on its images, with the argument to give."""
    argument = _argument(spec, ("in_chans", "in_channels", "channels", "in_planes"))
    channels = None if argument is None else (spec.arguments or {}).get(argument, _default(spec, argument))
    hint = "set data.channels and data.image_size to what it takes, or wrap it in a class of your own"
    if spec.given is not None:
        hint = "give images as it takes them"
    if argument and channels != spec.channels:
        hint = f"give {where}.arguments {{{argument}: {spec.channels}}}"
    return f"{where}: {spec.name} does not take images of {spec.input_shape}: {first_line(error)}; {hint}"


def outputs_argument(spec: Spec) -> str:
    """The name of the constructor's argument for the number of outputs."""
    names = ("num_classes", "n_classes", "classes", "num_outputs", "outputs", "out_features")
    return _argument(spec, names) or "num_classes"


def sharing(network: nn.Module, layer: nn.Module) -> list[tuple[nn.Module, str]]:
    """List whatever has the layer's weight, and by which name: itself, other layers, embeddings, parameter lists."""
    return [(m, key) for m in network.modules() for key, w in m._parameters.items() if w is layer.weight]


def check_trust(spec: Spec, trust: Collection[str], origin: str) -> None:
    """Check that a file's header names nothing to import that its reader has not agreed to.

    Args:
        trust: import paths, or modules or files that may be imported from, such as mynets or mynets.py.
    Raises:
        NetworkError: it does, or does not say how its network is made.
    """
    if not spec.is_foreign:
        return
    if spec.arguments is None:
        raise NetworkError(
            f"{origin}: its network is {spec.name}, code that is in no file of models, and the file does not say with "
            "which arguments it is made; hand it over: load(path, network=...)"
        )
    name, arguments = spec.name, spec.arguments
    where = name.partition(":")[0] if ":" in name else name.rpartition(".")[0]
    known = {name, where, Path(where).stem, Path(where).name, *_parents(where)}
    if known & set(trust):
        return
    plain = all(isinstance(value, bool | int | float | str | list) for value in arguments.values())
    if plain and name.startswith("torchvision.models."):
        from torchvision import models

        attribute = name.removeprefix("torchvision.models.")
        builder = getattr(models, attribute, None)
        is_network = attribute in models.list_models() or (inspect.isclass(builder) and issubclass(builder, nn.Module))
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


# Arguments of timm.create_model that say what a network looks like, and fetch nothing; `construct` drops pretrained.
TIMM = {"model_name", "num_classes", "in_chans", "img_size", "drop_rate", "drop_path_rate", "global_pool", "pretrained"}


def _parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)}


def _argument(spec: Spec, names: tuple[str, ...]) -> str | None:
    """Return the first of these names that is a parameter of the constructor; None if none is."""
    if spec.given is not None:
        return None
    constructor = imported(spec.name)
    if spec.name.startswith("timm."):
        known: Mapping[str, Any] = dict.fromkeys(TIMM)
    else:
        try:
            known = inspect.signature(constructor).parameters
        except (TypeError, ValueError):
            known = {}
        if spec.name.startswith("torchvision.models.") and "num_classes" in names:
            return "num_classes"
    return next((name for name in names if name in known), None)


def _default(spec: Spec, argument: str) -> Any:
    if spec.name.startswith("timm."):
        return 3
    return inspect.signature(imported(spec.name)).parameters[argument].default


def _said(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())
