"""What compression asks of any network: its layers, its folded norms, its arithmetic."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowenergy.base.errors import UserError
from lowenergy.networks.foreign import Foreign
from lowenergy.networks.network import AnyNetwork, build_with
from lowenergy.networks.spec import spec_of
from lowenergy.networks.zoo.blocks import ConvNorm

Layer = nn.Conv2d | nn.Linear

SETTLED = 20  # memories of a norm, after which its statistics are those of its weights
STATISTICS = 2000  # images over which they are averaged anew before that


def coded_layers(network: nn.Module) -> dict[str, Layer]:
    """The layers that hold the weights worth compressing, in the order in which they are called.

    Of a network from elsewhere only those that it calls as layers: a weight that a function uses by itself, as
    nn.MultiheadAttention does, cannot be watched.
    """
    if isinstance(network, Foreign):
        return {name: network.get_submodule(name) for name in network.layers}  # type: ignore[misc]
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def output_layer(network: nn.Module) -> str:
    """The layer that makes the logits: the last one."""
    return network.layers[-1] if isinstance(network, Foreign) else "fc"


def features_and_logits(network: nn.Module, images: Tensor) -> tuple[Tensor | None, Tensor]:
    """What the last layer sees, and the logits; int8 graphs call no layers, and so tell of no features."""
    seen: list[Tensor] = []
    try:
        last = network.get_submodule(output_layer(network))
    except AttributeError:
        return None, network(images)
    with last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        logits = network(images)
    return (seen[0].flatten(1) if seen else None), logits


def left_out(network: nn.Module) -> list[str]:
    """Weights of two dimensions or more that belong to no layer of coded_layers: they stay as they are."""
    layers = {f"{name}.weight" for name in coded_layers(network)}
    return [
        name for name, w in network.named_parameters() if w.ndim > 1 and max(w.shape) < w.numel() and name not in layers
    ]


def fold_batchnorm(network: AnyNetwork) -> AnyNetwork:
    """The same function without BatchNorm: each norm's scale and shift moved into its convolution.

    A folded network of the zoo is simply one of norm "none", one from elsewhere has no tensors of these norms, so both
    are saved and loaded like any other. Norms that follow no convolution stay.
    """
    if isinstance(network, Foreign):
        return _fold_traced(network)
    state = {}
    for name, module in network.named_modules():
        if isinstance(module, ConvNorm):
            conv = module.conv
            if isinstance(module.norm, nn.BatchNorm2d):
                conv = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, module.norm)
            assert conv.bias is not None
            state[f"{name}.conv.weight"], state[f"{name}.conv.bias"] = conv.weight, conv.bias
        elif isinstance(module, nn.Linear):
            state[f"{name}.weight"], state[f"{name}.bias"] = module.weight, module.bias
    return build_with(replace(network.spec, norm="none"), {key: value.detach() for key, value in state.items()})


def traced(network: nn.Module) -> Any:
    """The network's graph of plain operations, for any batch size (torch.export).

    Raises:
        UserError: it cannot be exported, with torch's reason.
    """
    spec = spec_of(network)
    batch = ({0: torch.export.Dim("batch")},)
    try:
        return torch.export.export(network, (torch.zeros(2, *spec.input_shape),), dynamic_shapes=batch)
    except Exception as error:  # torch raises nearly anything here
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{spec.name} cannot be exported: {reason.strip()}") from None


def _fold_traced(network: Foreign) -> Foreign:
    """Norms whose input is a convolution's output that nothing else uses; plain ones, for timm's also activate."""
    folded = copy.deepcopy(network).eval()
    norms = {name for name, m in folded.named_modules() if type(m) is nn.BatchNorm2d}
    if not norms:
        return folded
    exported = traced(folded)
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in exported.graph.nodes:
        if not str(node.target).startswith("aten.batch_norm"):
            continue
        before, norm = node.args[0], names.get(node.args[3].name, "").removesuffix(".running_mean")
        if not str(before.target).startswith("aten.conv2d") or len(before.users) > 1 or norm not in norms:
            continue
        conv = names[before.args[1].name].removesuffix(".weight")
        if conv not in folded.layers:
            continue
        both: Any = (folded.get_submodule(conv), folded.get_submodule(norm))
        fused = torch.nn.utils.fusion.fuse_conv_bn_eval(*both)
        for name, module in ((conv, fused), (norm, nn.Identity())):
            owner, _, attribute = name.rpartition(".")
            setattr(folded.get_submodule(owner), attribute, module)
        norms.discard(norm)
    return folded


def refresh_batchnorm(network: nn.Module, images: Tensor, batch_size: int = 250) -> None:
    """Average BatchNorm's statistics anew over `images`: changed weights shift what the norms see."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()  # and nothing else: no dropout
    with torch.no_grad():
        for batch in images.split(batch_size):
            network(batch)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def settle_norms(network: nn.Module, steps: int, images: Callable[[int], Tensor]) -> None:
    """Average the statistics of a network from elsewhere anew, if its norms forget so slowly (momentum 0.01) that they
    are not yet those of its weights after so many steps of training.

    Args:
        images: as many images as it is asked for, float32, on the CPU.
    """
    momenta = [m.momentum for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.momentum]
    if isinstance(network, Foreign) and momenta and steps < SETTLED / min(momenta):
        refresh_batchnorm(network, images(STATISTICS))


def training_format(network: nn.Module) -> torch.memory_format:
    """How tensors should lie in memory: channels last, which is faster, but not with the odd numbers of channels that
    structured pruning leaves. There oneDNN's backward pass ends the process (torch 2.15, one thread, no AVX-512)."""
    channels = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    return torch.contiguous_format if any(count % 8 for count in channels) else torch.channels_last


def macs(network: nn.Module) -> int:
    """Multiply-accumulates per image, counted while it runs once; zeros multiply too."""
    counter = FlopCounterMode(display=False)
    device = next(network.parameters()).device
    with counter, torch.no_grad():
        network(torch.zeros(1, *spec_of(network).input_shape, device=device))
    return counter.get_total_flops() // 2  # a multiplication and an addition each
