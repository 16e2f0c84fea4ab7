"""What compression asks of any network: its layers, its folded norms, its arithmetic."""

from dataclasses import replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lowenergy.networks.network import Network, build_with
from lowenergy.networks.spec import spec_of
from lowenergy.networks.zoo.blocks import ConvNorm


def fold_batchnorm(network: Network) -> Network:
    """The same function without BatchNorm: each norm's scale and shift moved into its convolution.

    A folded network is simply one of norm "none", so it is saved and loaded like any other.
    """
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


def coded_layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers that hold the weights worth compressing, in forward order."""
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


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
