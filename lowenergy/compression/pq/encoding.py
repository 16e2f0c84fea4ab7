"""Encode a coded network for its file."""

import torch
from torch import Tensor

from lowenergy import networks
from lowenergy.networks.norms import FOLDED
from lowenergy.storage import artifact
from lowenergy.storage.artifact import Model
from lowenergy.storage.coded import coded_weights
from lowenergy.storage.encodings import Coded, Constant, Dense, Encoding

FAITHFUL = 1e-3  # relative error that float16 may make; what is beyond its range stays float32
OF_ONE = 1e-2  # the same for each number that scales or shifts a whole channel, so that small ones count as much


def encoded(network: networks.Network, target: str) -> Model:
    """The network as it is stored: indices and codewords, BatchNorm as scale and shift, float16 where it is enough."""
    tensors: dict[str, Encoding] = {}
    for name, _, codebook, code in coded_weights(network):
        used, codes = code.codes.cpu().long().unique(return_inverse=True)
        tensors[f"{name}.weight"] = Coded(codes, _narrow(codebook.detach().cpu()[used]), code.shape)
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, value in artifact.weights(network).items():
        if ".parametrizations." not in name:
            tensors[name] = Dense(_narrow(value) if name in parameters else value)
    shared = {*network.tied, *network.tied.values()}
    for name, norm in network.named_modules():
        if type(norm) not in FOLDED or {f"{name}.weight", f"{name}.bias"} & shared:
            continue  # a subclass, or another owner of a shared tensor, may do something else with them
        if norm.weight is not None and norm.bias is not None and norm.running_mean is not None:
            scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().cpu()
            shift = (norm.bias - norm.running_mean * scale.to(norm.bias.device)).detach().cpu()
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = Dense(_narrow(scale)), Dense(_narrow(shift))
            tensors[f"{name}.running_mean"] = Constant(0.0, tuple(shift.shape))
            tensors[f"{name}.running_var"] = Constant(1 - norm.eps, tuple(shift.shape))
    return Model(target, network.spec, tensors, tied=network.tied)


def _narrow(value: Tensor) -> Tensor:
    """Convert to float16; leave integers as they are, and numbers for which float16 is too coarse or too narrow."""
    if value.dtype != torch.float32:
        return value
    half, exact = value.half(), value.double()
    off = half.double() - exact
    if value.numel() == max(value.shape, default=1) and (off.abs() > OF_ONE * exact.abs()).any():
        return value
    return half if off.norm() <= FAITHFUL * exact.norm() else value
