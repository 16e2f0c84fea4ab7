"""Take a network in: check what every stage counts on before anything is trained, and again before it is written.

Whatever is wrong is reported in one line: what the network returned and for which input, or which tensor is at fault.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lowenergy.networks.building import build, build_with, stored_state
from lowenergy.networks.copies import duplicate
from lowenergy.networks.distance import distance
from lowenergy.networks.foreign import (
    Foreign,
    described,
    does_not_take,
    outputs_argument,
    same,
)
from lowenergy.networks.given import take_weights
from lowenergy.networks.graphs import sensitivity
from lowenergy.networks.importing import NetworkError, first_line, run_anew
from lowenergy.networks.network import Network
from lowenergy.networks.plain import plain_weights
from lowenergy.networks.spec import Spec
from lowenergy.params import Architecture, is_import_path

TRIED = 3  # images
CLOSE = 1e-3  # of the outputs' norm: rounding, which differs between batches of one and three
EQUAL = 1e-5  # the same, for two calls with the same images
COUNTS = ["first", "second", "third"]
EXTRA = "_extra_state"  # what modules may keep beside their tensors
NOT_FINITE = "is not finite, for a training image"
RANDOM = (
    ": something in its constructor or file is random, comes with pretrained weights, or changes weights in train() or "
    "eval(); give it by arguments, or keep it in a buffer"
)
STORED = {  # types of tensors that a file can hold
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}


def of_params(
    architecture: Architecture,
    spec: Spec,
    *,
    seed: int,
    where: str,
    images: Tensor | None = None,
    batch_size: int = 0,
    smaller: Sequence[Tensor] = (),
) -> Network:
    """Build and check the network of a params file, freshly initialised or with the weights that the file names.

    Args:
        spec: of `architecture`, for the data at hand.
        where: the section of params.yaml, for messages.
        images: a few of the data's images, float32 in [-1, 1]; None for noise.
        batch_size: of the training to come; 0 if there is none.
        smaller: the images in each of the other sizes in which training shows them.
    Raises:
        NetworkError: the network cannot be built, does not fit the data, or breaks what every stage counts on.
        FileError: the weights are missing or do not fit.
    """
    network = build(spec, seed=seed, pretrained=True)
    if architecture.weights is not None:
        take_weights(network, architecture.weights, where)
    check_tensors(network, f"{where}: {architecture.weights or spec.name}")
    if images is None:
        images = 2 * torch.rand(TRIED, *spec.input_shape, generator=torch.Generator().manual_seed(0)) - 1
    images = images[:TRIED].float().cpu()
    with torch.random.fork_rng(devices=[]):
        if isinstance(network, Foreign):
            _check_foreign(network, images, seed, where, batch_size, smaller)
        else:
            check_answers(network, images, f"{where}: {spec.name}")
    warn_of_batchnorm(network, where)
    return network.train()


def settled(network: Network, images: Tensor, where: str) -> Network:
    """Return a trained network as all later stages meet it, in evaluation mode, after checking it again.

    It loses the auxiliary classifiers that only training needs, and its computed weights become plain ones.

    Args:
        images: a few of the data's images, float32 in [-1, 1].
        where: the stage, for messages.
    Raises:
        NetworkError: training has left it unfit.
    """
    images = images[:TRIED].float().cpu()
    network = network.cpu().eval()
    with torch.random.fork_rng(devices=[]):
        if plain := plain_weights(network, images):
            print(f"{where}: now plain weights: {', '.join(map(_own, plain))}", flush=True)
        network = _without_auxiliary(network, images)
        network.find_layers()
        check_tensors(network, f"{where}: after training")
        check_answers(network, images, f"{where}: after training {network.spec.name}")
        _check_rebuilt(network, images, f"{where}: after training {network.spec.name}")
    return network.eval()


def warn_of_batchnorm(network: Network, where: str) -> None:
    """Print a warning if an energy has BatchNorm."""
    norms = [name for name, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if network.spec.head is not None and norms:
        print(batchnorm_warning(network.spec.name, where), flush=True)


def batchnorm_warning(name: str, where: str) -> str:
    instead = "GroupNorm or no norm" if is_import_path(name) else "norm: none"
    return (
        f"{where}: warning: {name} has BatchNorm, and an energy trains far worse with it (its chains shift the "
        f"statistics that real images are judged by); give {instead}"
    )


# -- tensors ----------------------------------------------------------------------------------------------------------


def check_tensors(network: nn.Module, what: str) -> None:
    """Check that all weights are finite, and that a file can hold them.

    Buffers may be infinite, except those of norms: they are masks.

    Raises:
        NetworkError: they are not; it names the first tensor at fault.
    """
    stored = network.state_dict()
    names = set(_names(network))
    if unlike := [*(names - stored.keys()), *(name for name in stored.keys() - names if not name.endswith(EXTRA))]:
        name = min(unlike)
        its = "is not in its state dict" if name in names else "is in its state dict, but is none of its tensors"
        raise NetworkError(f"{what}: {_own(name)} {its}; let it keep parameters and buffers by their own names")
    for name, state in stored.items():
        if ":" in name:
            raise NetworkError(f"{what}: {_own(name)}: a file keeps colons to itself; name it without")
        if not isinstance(state, Tensor):
            raise NetworkError(f"{what}: {_own(name)} is a {type(state).__name__}; keep it in buffers, as tensors")
        if state.dtype not in STORED or state.is_quantized or state.layout != torch.strided:
            raise NetworkError(f"{what}: {_own(name)} is {_type(state)}, which no file holds; keep it in another type")
        if type(state).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            raise NetworkError(f"{what}: {_own(name)} is a {type(state).__name__}; give plain weights, not coded ones")
    if pair := _overlapping(network):
        raise NetworkError(
            f"{what}: {_own(pair[0])} and {_own(pair[1])} share memory without being one parameter; make them one"
        )
    norms = {name for name, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)}
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        mask = not isinstance(tensor, nn.Parameter) and name.rpartition(".")[0] not in norms
        bad = tensor.isnan() if mask else ~tensor.isfinite()
        if bad.any():
            kind = "NaN" if tensor.isnan().any() else "infinite"
            raise NetworkError(
                f"{what}: {_own(name)} is {kind} in {int(bad.sum()):,} of its {tensor.numel():,} values; "
                "give finite weights"
            )


def _names(network: nn.Module) -> Iterator[str]:
    """Yield the names of all parameters and persistent buffers, as a state dict should have them."""
    for path, module in network.named_modules(remove_duplicate=False):
        own = [*module._parameters.items(), *module._buffers.items()]
        for key, value in own:
            if value is not None and key not in module._non_persistent_buffers_set:
                yield f"{path}.{key}" if path else key


def _overlapping(network: nn.Module) -> tuple[str, str] | None:
    """Return the names of two parameters or buffers whose memory overlaps; None if there are none."""
    spans: dict[int, list[tuple[int, int, str]]] = {}
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.numel():
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            span = (start, start + (last + 1) * tensor.element_size(), name)
            spans.setdefault(tensor.untyped_storage().data_ptr(), []).append(span)
    for group in spans.values():
        for (_, end, one), (start, _, other) in pairwise(sorted(group)):
            if start < end:
                return one, other
    return None


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")


def _own(name: str) -> str:
    """Return the name as the network's author knows it."""
    return name.removeprefix("body.")


# -- answers ----------------------------------------------------------------------------------------------------------


def check_answers(network: Network, images: Tensor, what: str) -> None:
    """Check that in evaluation mode each image's outputs are finite, and the same in any batch and at every call.

    Calling the network must change neither it nor the images. Logits must not be probabilities, and an energy's
    gradients must be finite and independent of the batch, too.

    Raises:
        NetworkError: one of these fails; it names the input or the tensor.
    """
    network.eval()
    before, shown = _tensors(network), images.clone()
    places = {name: weight.data_ptr() for name, weight in network.named_parameters()}
    with torch.no_grad():
        together = network(shown)
        attributes = _attributes(network)
        again = network(shown)
        changed = [name for name, value in _attributes(network).items() if attributes.get(name, value) != value]
        if not torch.equal(shown, images):
            raise NetworkError(f"{what} writes into the images that it is given; let it work on images.clone()")
        for place, outputs in zip(COUNTS, together, strict=False):
            if not outputs.isfinite().all():
                value = outputs[~outputs.isfinite()][0]
                raise NetworkError(
                    f"{what} gives {value} for the {place} of {len(images)} training images{_source(network, images)}"
                )
        try:
            alone = [network(image[None]) for image in shown]
        except Exception as error:
            raise NetworkError(
                f"{what} takes {len(images)} images, but not one alone: {first_line(error)}; keep the batch size free"
            ) from None
    if unlike := [one for one in alone if one.shape != together[:1].shape]:
        raise NetworkError(
            f"{what} gives {tuple(together.shape)} for {len(images)} images and {tuple(unlike[0].shape)} for one; "
            "keep the batch size free"
        )
    if network.spec.head in (None, "logsumexp") and together.shape[1] > 1 and _are_probabilities(together):
        raise NetworkError(f"{what} gives probabilities; return what it takes the softmax of, the logits")
    if not (off := distance(again, together)) <= EQUAL:
        raise NetworkError(
            f"{what} gives other outputs when asked again, by {off:.2g} of their norm, in evaluation mode: "
            "something in it is random or remembers; dropout must heed self.training"
        )
    if not (off := distance(torch.cat(alone), together)) <= CLOSE:
        raise NetworkError(
            f"{what} gives an image other outputs alone than among {len(images)}, by {off:.2g} of their norm, "
            "in evaluation mode: no image may depend on its companions; norms need running statistics"
        )
    if network.spec.head is not None:
        _check_slopes(network, images, together, what)
    changed += [name for name, w in network.named_parameters() if places.get(name, w.data_ptr()) != w.data_ptr()]
    changed += [name for name, value in _tensors(network).items() if name in before and not same(before[name], value)]
    if changed:
        raise NetworkError(
            f"{what} changes {_own(changed[0])} in evaluation mode, when asked; let it do so in training mode only"
        )


def _check_slopes(network: Network, images: Tensor, answers: Tensor, what: str) -> None:
    """Check that gradients by the images, too, are finite, and the same for each image alone: torch had bugs there.

    Args:
        answers: the network's outputs where no gradient is asked for; they are the same where one is.
    Raises:
        NetworkError: they are not.
    """

    followed: list[Tensor] = []

    def slopes(batch: Tensor) -> Tensor:
        with torch.enable_grad():
            shown = batch.clone().requires_grad_()
            outputs = network(shown)
            followed.append(outputs.detach())
            slope = _gradients(outputs.square(), [shown], what)[0] if outputs.requires_grad else None
        return torch.zeros_like(batch) if slope is None else slope

    together, alone = slopes(images), torch.cat([slopes(image[None]) for image in images])
    if not together.isfinite().all():
        raise NetworkError(f"{what}: the gradient of its energy by the images {NOT_FINITE}")
    if not (off := distance(followed[0], answers)) <= CLOSE:
        raise NetworkError(
            f"{what} gives other outputs, by {off:.2g} of their norm, where gradients are asked for: its code must not "
            "look at requires_grad or torch.is_grad_enabled(), as torch's fast path for attention with padding does"
        )
    off = distance(alone, together)
    if not off <= CLOSE and not off <= sensitivity(slopes, images)[0]:
        raise NetworkError(
            f"{what} has other gradients by an image alone than among {len(images)}, by {off:.2g} of their "
            "norm, in evaluation mode, and an energy is sampled by them"
        )


def _are_probabilities(outputs: Tensor) -> bool:
    return bool((outputs >= 0).all() and ((outputs.sum(1) - 1).abs() < CLOSE).all())


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in [*network.named_parameters(), *network.named_buffers()]}


def _attributes(network: nn.Module) -> dict[str, Any]:
    """What modules remember beside parameters and buffers: counters, lists of numbers, tensors in plain attributes."""
    return {
        f"{name}.{key}": _value(value)
        for name, module in network.named_modules()
        for key, value in vars(module).items()
        if key not in _OF_ALL and _value(value) is not None
    }


_OF_ALL = {*vars(nn.Module())}


def _value(value: Any) -> Any:
    """Return something that compares equal for equal values; None for anything but a plain value."""
    if isinstance(value, bool | int | float | str):
        return None if isinstance(value, float) and math.isnan(value) else value
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    if isinstance(value, list | tuple | deque):
        return tuple(map(_value, value))
    if isinstance(value, Mapping):
        return tuple((str(key), _value(part)) for key, part in value.items())
    return None


def _source(network: nn.Module, images: Tensor) -> str:
    """Name the first module whose outputs are not finite, for the end of a message; empty if there is none."""
    not_finite: list[str] = []

    def look(name: str, out: Any) -> None:
        if isinstance(out, Tensor) and not out.isfinite().all():
            not_finite.append(name)

    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: look(name, out))
        for name, module in network.named_modules()
        if name not in ("", "body")
    ]
    network(images)
    for handle in handles:
        handle.remove()
    return f"; {_own(not_finite[0])} is the first whose outputs are not finite" if not_finite else ""


# -- networks from elsewhere ------------------------------------------------------------------------------------------


def _check_foreign(
    network: Foreign, images: Tensor, seed: int, where: str, batch_size: int, smaller: Sequence[Tensor]
) -> None:
    """Check that a network takes the data's images, has the outputs needed, and can be trained, stored and rebuilt.

    Its spec gets the number of outputs that the network has, if any number will do.

    Raises:
        NetworkError: one of these fails (it says which argument to give), or no layer could be compressed.
    """
    spec, what = network.spec, f"{where}: {network.spec.name}"
    if network.came_as:
        print(f"{what}: its parameters of {network.came_as} become float32", flush=True)
    network.eval()
    try:
        with torch.no_grad():
            out = network(images)
    except NetworkError as error:
        raise NetworkError(f"{what} {error}; name a class of your own that returns one of them") from None
    except Exception as error:
        raise NetworkError(does_not_take(spec, where, error)) from None
    if len(out) != len(images):
        raise NetworkError(f"{what} gives {described(out)} for {len(images)} images; keep the batch size free")
    if out.dtype != torch.float32:
        raise NetworkError(f"{what} gives {_type(out)}, and not float32 logits or energies; return logits.float()")
    if spec.outputs and out.shape[1] != spec.outputs:
        advice = f"give {where}.arguments {{{outputs_argument(spec)}: {spec.outputs}}}"
        if spec.given is not None:
            advice = "give another last layer"
        raise NetworkError(f"{what} has {out.shape[1]} outputs, {spec.outputs} are needed; {advice}")
    network.spec = spec = replace(spec, outputs=out.shape[1])
    twin = _twin(network, seed, what)
    _check_training(twin, images, smaller, batch_size, what)
    twin.load_state_dict(network.state_dict())
    try:
        plain_weights(twin, images)
    except NetworkError as error:
        raise NetworkError(f"{what}: {error}") from None
    _check_copies(twin, images, what)
    twin.find_layers()
    if not twin.layers:
        raise NetworkError(f"{what} calls no convolution or fully connected layer: nothing to compress")
    network.layers, network.last, network.tied = twin.layers, twin.last, twin.tied
    if batch_size:
        _check_trainable(twin, images, what)
    check_answers(twin, images, what)
    with torch.no_grad():
        if not distance(network.eval()(images), twin(images)) <= CLOSE:
            raise NetworkError(f"{what}: built again and given the same weights, it gives other outputs{RANDOM}")
    _check_rebuilt(twin, images, what)


def _check_rebuilt(network: Network, images: Tensor, what: str) -> None:
    """Check that the network can be rebuilt from its tensors as a file holds them, and then answers the same."""
    try:
        again = build_with(network.spec, stored_state(network))
    except ValueError as error:
        raise NetworkError(f"{what}: cannot be made again from its tensors: {first_line(error)}") from None
    with torch.no_grad():
        if not distance(again(images), network(images)) <= CLOSE:
            raise NetworkError(f"{what}: made again from its tensors, it gives other outputs{RANDOM}")


def _check_copies(network: Network, images: Tensor, what: str) -> None:
    """Check that it can be copied after a forward pass, as compression does, and that a copy uses its own weights."""
    strange: list[str] = []
    try:
        with _Parameters() as of_another:
            duplicate(network).eval().outputs(images)
        tried = duplicate(network)
        own = {*tried.modules()}

        def look(module: nn.Module, _: Any) -> None:
            held = (*module._parameters.values(), *module._buffers.values())
            if module not in own and any(tensor is not None for tensor in held):
                strange.append(type(module).__name__)

        handle = register_module_forward_pre_hook(look)
        try:
            with _Parameters() as of_one:
                tried.eval().outputs(images)
            tried.train().outputs(images)
        finally:
            handle.remove()
        duplicate(tried)
    except Exception as error:
        raise NetworkError(
            f"{what} cannot be copied (copy.deepcopy) after a forward pass: {first_line(error)}"
        ) from None
    in_both = of_one.met.keys() & of_another.met.keys()
    strange += [f"parameter of shape {tuple(of_one.met[key].shape)}" for key in in_both]
    if strange:
        raise NetworkError(
            f"{what}: a copy of it uses a {strange[0]} that is none of its own: put layers that a list or a "
            "dictionary holds into nn.ModuleList or nn.ModuleDict; write lambdas and inner functions as methods"
        )


class _Parameters(TorchFunctionMode):
    """Collect the parameters that torch's functions are given within this mode."""

    def __init__(self) -> None:
        super().__init__()
        self.met: dict[int, nn.Parameter] = {}  # by identity

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, nn.Parameter):
                self.met[id(given)] = given
        return function(*args, **(kwargs or {}))


def _twin(network: Network, seed: int, what: str) -> Network:
    """Build the network again from another seed, as a reader of its file does, and give it the same weights."""
    with run_anew():
        twin = build(network.spec, seed=seed + 1)
    try:
        twin.load_state_dict(network.state_dict())
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [first_line(error)]
        raise NetworkError(
            f"{what}: built again, without pretrained weights, it has other tensors: {lines[0][:200]}; give the "
            "arguments that make the same network each time"
        ) from None
    return twin


def _check_training(network: Network, images: Tensor, smaller: Sequence[Tensor], batch_size: int, what: str) -> None:
    """Check that training mode gives finite outputs of the same shapes, for three images, for one, and in other sizes.

    An energy must also have a gradient by the images, and no auxiliary outputs.

    Raises:
        NetworkError: one of these fails.
    """
    network.train()
    outputs, head = network.spec.outputs, network.spec.head
    for batch in (images, images[:1], *smaller):
        shown = batch.clone().requires_grad_(head is not None)
        count = f"{len(batch)} image{'s' * (len(batch) > 1)} of {tuple(batch.shape[1:])} in training mode"
        try:
            parts = network.outputs(shown)
        except NetworkError as error:
            raise NetworkError(f"{what} {error}, for {count}") from None
        except Exception as error:
            if len(batch) == 1 and batch_size != 1 and "more than 1 value per channel" in str(error):
                continue  # norms need several images, and get them
            raise NetworkError(f"{what} fails at {count}: {first_line(error)}") from None
        if any(part.shape != (len(batch), outputs) for part in parts):
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise NetworkError(f"{what} gives {shapes} for {count}, and {(len(batch), outputs)} in evaluation mode")
        if not all(part.isfinite().all() for part in parts):
            raise NetworkError(f"{what} gives outputs that are not finite for {count}")
        if len(parts) > 1 and head is not None:
            raise NetworkError(
                f"{what} gives {len(parts) - 1} auxiliary outputs in training mode; an energy has no loss for them: "
                "leave them out, as with arguments {aux_logits: false}"
            )
        if head is not None:
            _check_slope(parts[0], shown, what)


def _check_slope(energies: Tensor, images: Tensor, what: str) -> None:
    slope = None
    if energies.requires_grad:
        (slope,) = _gradients(energies, [images], what)
    if slope is None:
        raise NetworkError(f"{what}: its energy has no gradient by the images, which sampling follows")
    if not slope.isfinite().all():
        raise NetworkError(f"{what}: the gradient of its energy by the images {NOT_FINITE}")


def _gradients(outputs: Tensor, of: Sequence[Tensor], what: str) -> tuple[Tensor | None, ...]:
    """Return the gradients of the sum of all outputs by these tensors; None for those that take no part.

    Raises:
        NetworkError: the backward pass fails.
    """
    try:
        return torch.autograd.grad(outputs.sum(), of, allow_unused=True)
    except Exception as error:  # whatever the network's own code raises
        said = first_line(error)
        if "modified by an inplace operation" in said:
            said = "it writes into a tensor in place that its gradient needs; write y = y + 1 instead of y += 1"
        raise NetworkError(f"{what}: its gradient cannot be computed: {said}") from None


def _check_trainable(network: Network, images: Tensor, what: str) -> None:
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    out = network(images)
    if not trained or not out.requires_grad or not any(slope is not None for slope in _gradients(out, trained, what)):
        raise NetworkError(
            f"{what}: no weight of it can be trained: none that requires a gradient takes part in its outputs; "
            "train.epochs: 0 takes it as it is"
        )


def _without_auxiliary(network: Network, images: Tensor) -> Network:
    """Drop auxiliary classifiers, if the constructor can leave them out: aux_logits, as torchvision calls them."""
    spec = network.spec
    if (spec.arguments or {}).get("aux_logits") is False or len(_training_outputs(network, images)) == 1:
        return network
    try:
        lean = build(replace(spec, arguments={**(spec.arguments or {}), "aux_logits": False}), seed=0)
    except NetworkError:
        return network
    plain_weights(lean, images)
    state, kept = network.state_dict(), lean.state_dict()
    if not kept.keys() < state.keys():
        return network
    versions = kept._metadata  # type: ignore[attr-defined]
    kept = OrderedDict((name, state[name]) for name in kept)
    kept._metadata = versions  # type: ignore[attr-defined]
    lean.load_state_dict(kept)
    with torch.no_grad():
        return lean if distance(lean.eval()(images), network.eval()(images)) <= EQUAL else network


def _training_outputs(network: Network, images: Tensor) -> list[Tensor]:
    """Return the outputs in training mode; the network stays as it is."""
    tried = duplicate(network).train()
    with torch.no_grad():
        return tried.outputs(images)
