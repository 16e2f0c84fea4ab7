"""ResNets (He et al. 2016) with a selectable stem."""

from torch import nn

from lowenergy.networks.spec import Spec
from lowenergy.networks.zoo.blocks import ACTIVATIONS, BasicBlock, ConvNorm

RESNETS = {  # as in params: blocks in each stage; the width doubles from stage to stage
    "resnet18": (2, 2, 2, 2),
    "resnet10": (1, 1, 1, 1),
    "resnet20": (3, 3, 3),
    "resnet8": (1, 1, 1),
}


def features(spec: Spec) -> nn.Sequential:
    """Return the layers up to the pooled features, (batch, width * 2^(stages-1))."""
    kernel, stride = {"7x7": (7, 2), "5x5": (5, 2)}.get(spec.stem, (3, 1))
    layers: list[nn.Module] = [
        ConvNorm(spec.channels, spec.width, kernel, stride, spec.norm),
        ACTIVATIONS[spec.activation](),
    ]
    if spec.stem in ("7x7", "3x3-pool"):
        layers.append(nn.MaxPool2d(3, 2, 1))
    channels = spec.width
    for stage, blocks in enumerate(RESNETS[spec.name]):
        for block in range(blocks):
            out = spec.width * 2**stage
            layers.append(BasicBlock(channels, out, 2 if stage and not block else 1, spec))
            channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
