"""The networks: one backbone each for classifiers, EBMs and JEMs, built from a small `Spec`.

    >>> spec = Spec("cnn", width=16, stem="3x3", activation="swish", norm="none", channels=1, image_size=8, outputs=10)
    >>> build(spec, seed=0)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])

A network maps images in [-1, 1], (batch, channels, size, size), to logits, (batch, outputs). What the logits mean is
the target's business: class scores, or an energy through one of the heads of lowenergy/energy.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowenergy.inputconv import InputConv2d
from lowenergy.params import Architecture, EnergyArchitecture

RESNETS = {  # blocks in each stage; the width doubles from stage to stage
    "resnet18": (2, 2, 2, 2),
    "resnet10": (1, 1, 1, 1),
    "resnet20": (3, 3, 3),
    "resnet8": (1, 1, 1),
}
# A module of its own at every place: the int8 quantizer tells fused patterns apart by module.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "swish": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
}


@dataclass(frozen=True)
class Spec:
    """All it takes to build a network: the params' architecture and the shape of its data."""

    name: str
    width: int
    stem: str
    activation: str
    norm: str
    channels: int
    image_size: int
    outputs: int
    head: str | None = None  # of an energy: mean, scalar or logsumexp; None for a plain classifier

    @classmethod
    def of(cls, architecture: Architecture, input_shape: tuple[int, int, int], outputs: int) -> "Spec":
        """The params' architecture (and energy head, if it has one) for images of this shape."""
        return cls(
            name=architecture.name,
            width=architecture.width,
            stem=architecture.stem,
            activation=architecture.activation,
            norm=architecture.norm,
            channels=input_shape[0],
            image_size=input_shape[1],
            outputs=outputs,
            head=architecture.head if isinstance(architecture, EnergyArchitecture) else None,
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.channels, self.image_size, self.image_size)


def spec_of(network: nn.Module) -> Spec:
    """The spec that every network here carries, int8 graphs included."""
    assert isinstance(network.spec, Spec)
    return network.spec


class ConvNorm(nn.Module):
    """Convolution and BatchNorm, or convolution with a bias where the network has no norm."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, norm: str) -> None:
        super().__init__()
        batch = norm == "batch"
        # Images have few channels and, in an energy, a gradient; strided convolutions of them have a fast one.
        conv = InputConv2d if channels_in <= 3 and stride == 2 and not batch else nn.Conv2d
        self.conv = conv(channels_in, channels_out, kernel, stride, kernel // 2, bias=not batch)
        self.norm = nn.BatchNorm2d(channels_out) if batch else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, spec: Spec) -> None:
        super().__init__()
        act = ACTIVATIONS[spec.activation]
        self.first = ConvNorm(channels_in, channels_out, 3, stride, spec.norm)
        self.act1 = act()
        self.second = ConvNorm(channels_out, channels_out, 3, 1, spec.norm)
        self.act2 = act()
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else ConvNorm(channels_in, channels_out, 1, stride, spec.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.second(self.act1(self.first(x))) + self.shortcut(x))


def _resnet(spec: Spec) -> nn.Sequential:
    """ResNet with a selectable stem, down to the pooled features, (batch, width * 2^(stages-1))."""
    kernel, stride = (7, 2) if spec.stem == "7x7" else (3, 1)
    layers: list[nn.Module] = [
        ConvNorm(spec.channels, spec.width, kernel, stride, spec.norm),
        ACTIVATIONS[spec.activation](),
    ]
    if spec.stem != "3x3":
        layers.append(nn.MaxPool2d(3, 2, 1))
    channels = spec.width
    for stage, blocks in enumerate(RESNETS[spec.name]):
        for block in range(blocks):
            out = spec.width * 2**stage
            layers.append(BasicBlock(channels, out, 2 if stage and not block else 1, spec))
            channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _cnn(spec: Spec) -> nn.Sequential:
    """Plain convolutions: full resolution, then pairs (halve the image, refine), flattened.

    Keeping where things are, unlike pooling, suits energies of small images.
    """
    layers: list[nn.Module] = [
        ConvNorm(spec.channels, spec.width, 3, 1, spec.norm),
        ACTIVATIONS[spec.activation](),
    ]
    channels, size = spec.width, spec.image_size
    while size > 3:
        out = min(2 * channels, 4 * spec.width)
        for into, stride in ((channels, 2), (out, 1)):
            layers += [ConvNorm(into, out, 3, stride, spec.norm), ACTIVATIONS[spec.activation]()]
        channels, size = out, (size + 1) // 2
    return nn.Sequential(*layers, nn.Flatten())


def _strided(spec: Spec) -> nn.Sequential:
    """The published small MNIST EBM: four strided convolutions and a hidden layer, 77 k parameters at width 16."""
    widths, act = [spec.width * 2**i for i in (0, 1, 2, 2)], ACTIVATIONS[spec.activation]
    layers: list[nn.Module] = [ConvNorm(spec.channels, widths[0], 5, 2, spec.norm), act()]
    for channels, out in pairwise(widths):
        layers += [ConvNorm(channels, out, 3, 2, spec.norm), act()]
    flat = widths[-1] * (-(-spec.image_size // 2**4)) ** 2  # four halvings, rounded up
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, widths[-1]), act())


def _compact(spec: Spec) -> nn.Sequential:
    """Few weights, each used often: a strided 5x5 convolution, then at three resolutions two 3x3, all of one width.

    `strided` has most of its weights where the image is 2 pixels a side; here every layer costs the same, and most of
    the work is done where there is much to look at.
    """
    act = ACTIVATIONS[spec.activation]
    layers: list[nn.Module] = [ConvNorm(spec.channels, spec.width, 5, 2, spec.norm), act()]
    for stride in (1, 1, 2, 1, 1, 2, 1, 1):
        layers += [ConvNorm(spec.width, spec.width, 3, stride, spec.norm), act()]
    return nn.Sequential(*layers, nn.Flatten())


def _shallow(spec: Spec) -> nn.Sequential:
    """Two strided convolutions, flattened: the smallest of the earlier study's students."""
    act = ACTIVATIONS[spec.activation]
    first = ConvNorm(spec.channels, spec.width, 5, 2, spec.norm)
    second = ConvNorm(spec.width, 2 * spec.width, 3, 2, spec.norm)
    return nn.Sequential(first, act(), second, act(), nn.Flatten())


PLAIN = {"cnn": _cnn, "strided": _strided, "compact": _compact, "shallow": _shallow}


class Network(nn.Module):
    """features: images -> (batch, features), what FID looks at in the scorer; fc: features -> logits."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        family = _resnet if spec.name in RESNETS else PLAIN[spec.name]
        self.features = family(spec)
        with torch.no_grad():
            self.features.eval()
            width = self.features(torch.zeros(1, *spec.input_shape)).shape[1]
            self.features.train()
        self.fc = nn.Linear(width, spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        if not torch.is_autocast_enabled(x.device.type):
            return self.fc(features)
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16 energies of hundreds are whole numbers
            return self.fc(features.float())


def build(spec: Spec, *, seed: int) -> Network:
    """A freshly initialised network; the same seed gives the same weights and leaves the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(spec)


def build_with(spec: Spec, state: Mapping[str, Tensor]) -> Network:
    """The network of `spec` holding these weights, in evaluation mode.

    A structurally pruned network has fewer channels than its spec says, so the tensors' shapes decide.

    Raises:
        ValueError: tensors are missing, unknown, or do not fit together.
    """
    network = build(spec, seed=0)
    for name, module in network.named_modules():
        weight = state.get(f"{name}.weight")
        if weight is None:
            continue
        if isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels = weight.shape[0], weight.shape[1]
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = weight.shape
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = len(weight)
        for key in ("weight", "bias", "running_mean", "running_var"):
            old, new = getattr(module, key, None), state.get(f"{name}.{key}")
            if old is None or new is None or old.shape == new.shape:
                continue
            empty = torch.empty_like(new)
            setattr(module, key, nn.Parameter(empty) if isinstance(old, nn.Parameter) else empty)
    try:
        network.load_state_dict(dict(state))
        network.eval()(torch.zeros(1, *spec.input_shape))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the tensors do not fit architecture {spec.name}: {error}") from None
    return network


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


def macs(network: nn.Module) -> int:
    """Multiply-accumulates per image, counted while it runs once; zeros multiply too."""
    counter = FlopCounterMode(display=False)
    device = next(network.parameters()).device
    with counter, torch.no_grad():
        network(torch.zeros(1, *spec_of(network).input_shape, device=device))
    return counter.get_total_flops() // 2  # a multiplication and an addition each
