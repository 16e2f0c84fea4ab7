"""Weights that are computed, shared, frozen or kept elsewhere, and tensors of other kinds beside them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm


class Plain(nn.Module):
    """Two convolutions and a fully connected layer, for the others to vary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.b(F.silu(self.a(x)))).mean((2, 3)))


class SpectralHook(Plain):
    """The old spectral norm, a hook that writes the weight before each call."""

    def __init__(self) -> None:
        super().__init__()
        self.b = spectral_norm(self.b)


class SpectralParametrized(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.b = parametrizations.spectral_norm(self.b)


class WeightNormHook(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.fc = weight_norm(self.b), weight_norm(self.fc)


class WeightNormParametrized(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.b = parametrizations.weight_norm(self.b)


class OwnHook(Plain):
    """A hook of one's own that computes the weight from another parameter."""

    def __init__(self) -> None:
        super().__init__()
        raw = self.b.weight
        del self.b.weight
        self.b.register_parameter("raw", nn.Parameter(raw.detach()))
        self.b.register_forward_pre_hook(lambda layer, _: setattr(layer, "weight", layer.raw - layer.raw.mean()))
        self.b.weight = raw.detach()


class Standard(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 1e-5) * 0.1


class OwnParametrization(Plain):
    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.b, "weight", Standard())


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (std + 1e-5) * 0.1
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class WeightStandardised(Plain):
    """A convolution that standardises its weight whenever it is called, as BiT's and NFNet's do."""

    def __init__(self) -> None:
        super().__init__()
        self.b = StandardisedConv(16, 16, 3, padding=1)


class CalledTwice(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.b(F.silu(self.b(F.silu(self.a(x)))))).mean((2, 3)))


class CalledOnTwoSizes(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.a(x))
        return self.fc(self.b(x).mean((2, 3)) + self.b(F.max_pool2d(x, 2)).mean((2, 3)))


class Tied(nn.Module):
    """Two layers with one weight, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(192, 32), nn.Linear(32, 32), nn.Linear(32, 10)
        self.c = nn.Linear(32, 32)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.c(F.silu(self.b(F.silu(self.a(x.flatten(1))))))))


class TiedConvolutions(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(16, 16, 3, padding=1)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.c(F.silu(self.b(F.silu(self.a(x)))))).mean((2, 3)))


class TwoNames(Plain):
    """One layer under two names, called by both."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Sequential(nn.SiLU(), self.b)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.again(self.b(F.silu(self.a(x))))).mean((2, 3)))


class Frozen(Plain):
    """The first convolution is not trained, nor its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)


class WithoutGradient(Plain):
    """A part that runs without gradient in training, as frozen backbones do."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                features = F.silu(self.a(x))
        else:
            features = F.silu(self.a(x))
        return self.fc(F.silu(self.b(features)).mean((2, 3)))


class BiasLess(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 16, 3, bias=False)
        self.fc = nn.Linear(16, 10, bias=False)


class Unused(Plain):
    """Layers that are never called, and a head for training that is gone in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.never, self.norm = nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)


class OwnParameter(Plain):
    """A functional convolution with a parameter of the network's own, and a product with another."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(16, 16, 3, 3) * 0.1)
        self.mixing = nn.Parameter(torch.randn(16, 16) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(F.conv2d(F.silu(self.a(x)), self.kernel, padding=1))
        return self.fc(F.silu(self.b(x)).mean((2, 3)) @ self.mixing)


class Masked(Plain):
    """A layer's own weight, masked and used by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor
        self.register_buffer("mask", (torch.arange(9).view(3, 3) < 5).float())

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(F.silu(self.a(x)), self.b.weight * self.mask, self.b.bias, padding=1)
        return self.fc(F.silu(x).mean((2, 3)))


class LayerScaled(Plain):
    """A residual times a small parameter of each channel, and one times a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.gain = nn.Parameter(1e-6 * torch.ones(16, 1, 1)), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.a(x))
        x = x + self.gamma * self.b(x)
        return self.fc((x + self.gain * self.b(x)).mean((2, 3)))


class Listed(nn.Module):
    """Layers and parameters in lists and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)])
        self.heads = nn.ModuleDict({"wide": nn.Linear(16, 10), "narrow": nn.Linear(16, 10)})
        self.scales = nn.ParameterList([torch.ones(16, 1, 1), torch.full((16, 1, 1), 0.5)])
        self.shifts = nn.ParameterDict({"wide": torch.zeros(10), "narrow": torch.zeros(10)})

    def forward(self, x: Tensor) -> Tensor:
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = F.silu(layer(x) * scale)
        pooled = x.mean((2, 3))
        return sum(head(pooled) + self.shifts[name] for name, head in self.heads.items())  # type: ignore[return-value]


class Lazy(nn.Module):
    """Layers that learn the size of their input from the first images."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.LazyConv2d(16, 3), nn.LazyBatchNorm2d()
        self.b, self.fc = nn.LazyConv2d(16, 3), nn.LazyLinear(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.b(F.silu(self.norm(self.a(x))))).flatten(1))


@dataclass
class Widths:
    first: int = 16
    second: int = 16


class Configured(nn.Module):
    """A dataclass says how wide it is."""

    def __init__(self, widths: Widths | None = None) -> None:
        super().__init__()
        self.widths = widths or Widths()
        self.a = nn.Conv2d(3, self.widths.first, 3)
        self.b = nn.Conv2d(self.widths.first, self.widths.second, 3)
        self.fc = nn.Linear(self.widths.second, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.b(F.silu(self.a(x)))).mean((2, 3)))


class BufferOfFloat64(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.ramp: Tensor
        self.register_buffer("ramp", torch.linspace(0.5, 1.5, 8, dtype=torch.float64) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.ramp.float())


class BufferOfBfloat16(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.ramp: Tensor
        self.register_buffer("ramp", torch.linspace(0.5, 1.5, 8, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.ramp.float())


class ComplexBuffer(Plain):
    """Phases that rotate pairs of channels, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: Tensor
        self.register_buffer("phases", torch.polar(torch.ones(8), torch.linspace(0, 3, 8)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.b(F.silu(self.a(x)))).mean((2, 3))
        rotated = torch.view_as_complex(x.unflatten(1, (8, 2)).contiguous()) * self.phases
        return self.fc(torch.view_as_real(rotated).flatten(1))


class BufferNotKept(Plain):
    """Buffers that no state dict has, one of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale: Tensor
        self.order: Tensor
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 8), persistent=False)
        self.register_buffer("order", torch.arange(16).flip(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.b(F.silu(self.a(x * self.scale))))
        return self.fc(x[:, self.order].mean((2, 3)))


class BufferTrained(Plain):
    """A running mean of one's own, updated in place in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.center: Tensor
        self.register_buffer("center", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.b(F.silu(self.a(x)))).mean((2, 3))
        if self.training:
            self.center.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return self.fc(x - self.center)


class BufferCounts(Plain):
    """Counts its calls, in evaluation mode as well, and answers by the count."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (1 + self.calls)


class KeepsTensors(Plain):
    """Tensors that were computed with a gradient stay in attributes: the last features, and positions looked up once
    for evaluation, as LeViT's and EfficientViT's attention biases are."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.looked_up = nn.Parameter(0.1 * torch.randn(5, 16)), dict[str, Tensor]()
        self.order: Tensor
        self.register_buffer("order", torch.arange(5).flip(0), persistent=False)

    def train(self, mode: bool = True) -> "KeepsTensors":
        self.looked_up = {} if mode else self.looked_up
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        place = str(x.device)
        if self.training or place not in self.looked_up:
            self.looked_up[place] = self.positions[self.order].sum(0)[:, None, None]
        x = F.silu(self.a(x)) + self.looked_up[place]
        self.last = [self.b(x)]
        return self.fc(F.silu(self.last[0]).mean((2, 3)))


class ComplexParameter(Plain):
    """A filter that is kept as a spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Parameter(0.1 * torch.randn(16, 9, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        mixing = torch.fft.irfft(self.spectrum, n=16, dim=-1)
        x = F.silu(self.b(F.silu(self.a(x)))).mean((2, 3))
        return self.fc(x @ mixing)


class TiedToOthers(Plain):
    """Layers whose weights others have too: a transposed convolution, an embedding, a list, an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(16, 8, 3, padding=1)
        self.back, self.classes = nn.ConvTranspose2d(8, 16, 3, padding=1), nn.Embedding(10, 16)
        self.c = nn.Conv2d(16, 16, 1)
        self.back.weight, self.classes.weight, self.mixing = self.b.weight, self.fc.weight, self.c.weight
        self.watched = nn.ParameterList([self.b.weight, self.c.weight])

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.a(x))
        x = x + F.silu(self.back(F.silu(self.b(x))))
        x = F.silu(self.c(F.conv2d(x, self.mixing))) * self.watched[1].mean()
        pooled = x.mean((2, 3)) + self.classes(torch.arange(10)).mean(0)
        return self.fc(pooled)


class LookedUp(nn.Module):
    """Grey values look up what the layers see: the outputs have no gradient by the images. As image GPT does it."""

    def __init__(self) -> None:
        super().__init__()
        self.colours, self.a = nn.Embedding(16, 16), nn.Conv2d(16, 16, 3, padding=1)
        self.b, self.fc = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.colours(((x.mean(1) + 1) * 7.9).long().clamp(0, 15)).movedim(-1, 1)
        return self.fc(F.silu(self.b(F.silu(self.a(x)))).mean((2, 3)))


class Renormalised(Plain):
    """An embedding that keeps its vectors short whenever it is asked, by writing to them."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(4, 16, max_norm=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.b(F.silu(self.a(x)))).mean((2, 3)) + self.places(torch.arange(4)).mean(0))
