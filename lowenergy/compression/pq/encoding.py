"""A coded network as it is stored."""

import torch
from torch import Tensor

from lowenergy import networks
from lowenergy.networks.norms import FOLDED
from lowenergy.storage import artifact
from lowenergy.storage.artifact import Model
from lowenergy.storage.coded import coded_weights
from lowenergy.storage.encodings import Coded, Constant, Dense, Encoding

FAITHFUL = 1e-3  # relative error of float16; what is beyond its range stays float32
OF_ONE = 1e-2  # of one number by which a whole channel is multiplied or moved, so that a small one counts as much


def encoded(network: networks.Network, target: str) -> Model:
    """The network as it is stored: indices and codewords, everything else float16, BatchNorm as scale and shift."""
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
            continue  # a class of one's own may do something else with them
        if norm.weight is not None and norm.bias is not None and norm.running_mean is not None:
            scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().cpu()
            shift = (norm.bias - norm.running_mean * scale.to(norm.bias.device)).detach().cpu()
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = Dense(_narrow(scale)), Dense(_narrow(shift))
            tensors[f"{name}.running_mean"] = Constant(0.0, tuple(shift.shape))
            tensors[f"{name}.running_var"] = Constant(1 - norm.eps, tuple(shift.shape))
    return Model(target, network.spec, tensors, tied=network.tied)


def _narrow(value: Tensor) -> Tensor:
    """As float16, or as it is: integers, and numbers that float16 is too coarse for, or has no room."""
    if value.dtype != torch.float32:
        return value
    half, exact = value.half(), value.double()
    off = half.double() - exact
    if value.numel() == max(value.shape, default=1) and (off.abs() > OF_ONE * exact.abs()).any():
        return value
    return half if off.norm() <= FAITHFUL * exact.norm() else value
