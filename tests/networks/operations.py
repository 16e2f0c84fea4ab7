"""What happens between layers: activations, pools, shapes, attention, writing in place, randomness."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation, StochasticDepth


class Between(nn.Module):
    """Something between two convolutions, for the others to say what."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 10)

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.b(self.middle(self.a(x)))).mean((2, 3)))


class Activations(Between):
    """The common ones, one after the other."""

    def middle(self, x: Tensor) -> Tensor:
        x = F.hardswish(F.mish(x)) + F.elu(x) + F.leaky_relu(x, 0.1) + F.softplus(x) + F.relu6(x)
        return x + F.gelu(x) + F.gelu(x, approximate="tanh") + F.hardsigmoid(x) + torch.tanh(x) + F.selu(x)


class LearntActivation(Between):
    """PReLU of one slope, and of one for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.each = nn.PReLU(), nn.PReLU(16)

    def middle(self, x: Tensor) -> Tensor:
        return self.each(self.one(x) + 0.1)


class Gated(Between):
    """Half of the channels open and shut the others."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 32, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return F.glu(x, 1)


class Pools(Between):
    """Averages and maxima, overlapping, with padding that counts and padding that does not."""

    def middle(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 3, stride=1, padding=1) + F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True)


class ZerosAroundMaxima(Between):
    """Which count, as TensorFlow's networks of even kernels have them: most of what is pooled here is below 0."""

    def middle(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(F.silu(x) - 0.2, (0, 1, 0, 1)), 2, stride=1)


class PoolsOfOddSizes(Between):
    """Adaptive pools to sizes that do not divide the input's."""

    def middle(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, (5, 3)) + F.adaptive_max_pool2d(x, (5, 3))


class LargestOfAll(Between):
    """A global maximum beside the mean."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.b(F.silu(self.a(x))))
        return self.fc(F.adaptive_max_pool2d(x, 1).flatten(1) + F.adaptive_avg_pool2d(x, 1).flatten(1) + x.amax((2, 3)))


class Interpolated(Between):
    def middle(self, x: Tensor) -> Tensor:
        return F.interpolate(F.silu(x), scale_factor=2)


class InterpolatedSmoothly(Between):
    """To a size that is no multiple, as position embeddings and pyramids are."""

    def middle(self, x: Tensor) -> Tensor:
        x = F.interpolate(F.silu(x), size=(11, 13), mode="bilinear", align_corners=False)
        return F.interpolate(x, size=(6, 6), mode="bicubic", align_corners=True)


class Einsum(Between):
    """Channels mixed by einsum with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(16, 16) / 4)

    def middle(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,dc->ndhw", F.silu(x), self.mixing)


class Reshaped(Between):
    """Patches cut out, turned, and put together again; sizes come from the tensor."""

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(n * h * w // 4, 4, c)
        x = F.silu(x.flip(1))
        return x.view(n, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


class Rolled(Between):
    """Shifted windows, as Swin has them, and an unfolding."""

    def middle(self, x: Tensor) -> Tensor:
        x = torch.roll(F.silu(x), (1, -2), (2, 3))
        return F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1) / 9


class Residual(Between):
    """Sums by function, by operator and in place."""

    def middle(self, x: Tensor) -> Tensor:
        y = torch.add(x, F.silu(x), alpha=0.5)
        y += x
        return F.relu_(y.clone()) - x


class WrittenInParts(Between):
    """A tensor written into in parts, as temporal shifts do."""

    def middle(self, x: Tensor) -> Tensor:
        x = F.silu(x)
        y = torch.zeros_like(x)
        y[:, :8] = x[:, 8:]
        y[:, 8:] = x[:, :8]
        return y


class WrittenOver(Between):
    """A part of a layer's output is changed in place before and after it is used."""

    def middle(self, x: Tensor) -> Tensor:
        x[:, :4] *= 0.5
        y = F.silu(x)
        y[:, :, 0].fill_(1.0)
        y[:, 4:8].add_(y[:, 8:12])
        return y


class SqueezeAndExcite(Between):
    def __init__(self) -> None:
        super().__init__()
        self.squeeze = SqueezeExcitation(16, 8)

    def middle(self, x: Tensor) -> Tensor:
        return self.squeeze(F.silu(x))


class Dropped(Between):
    """Dropout of units and channels, and whole residuals dropped in training."""

    def __init__(self) -> None:
        super().__init__()
        self.units, self.channels, self.depth = nn.Dropout(0.2), nn.Dropout2d(0.2), StochasticDepth(0.5, "row")

    def middle(self, x: Tensor) -> Tensor:
        return x + self.depth(self.channels(self.units(F.silu(x))))


class Tokens(nn.Module):
    """Patches as tokens with a class token and positions, for the others to mix."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.fc = nn.Conv2d(3, 16, 2, stride=2), nn.LayerNorm(16), nn.Linear(16, 10)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16) * 0.1)

    def mix(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.fc((x + self.mix(self.norm(x)))[:, 0])


class Attention(Tokens):
    """Written out, with one product for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def mix(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(width // 2)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, length, width))


class FusedAttention(Tokens):
    """By torch's function."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(16, 16, bias=False), nn.Linear(16, 32), nn.Linear(16, 16)

    def mix(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(2, (2, 8)).transpose(1, 2)
        k, v = self.kv(x).unflatten(2, (2, 2, 8)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TorchsAttention(Tokens):
    """nn.MultiheadAttention, whose weights no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def mix(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class TorchsEncoder(Tokens):
    """nn.TransformerEncoderLayer, which takes a way of its own in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def mix(self, x: Tensor) -> Tensor:
        return self.encoder(x)


class MixedTokens(Tokens):
    """Linear layers over the tokens, not over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.over = nn.Linear(17, 17)

    def mix(self, x: Tensor) -> Tensor:
        return F.gelu(self.over(x.transpose(1, 2))).transpose(1, 2)


class TupleInTraining(Between):
    """A second output for training, as GoogLeNet has, alone in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.silu(self.a(x))
        logits = self.fc(F.silu(self.b(x)).mean((2, 3)))
        return (logits, self.auxiliary(x.mean((2, 3)))) if self.training else logits


class Looking(Between):
    """Decides by its values, which nothing can trace."""

    def middle(self, x: Tensor) -> Tensor:
        return F.silu(x) if x.sum() > 0 else F.relu(x)


class Fourier(Between):
    """Filters frequencies, as global filter networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(16, 8, 5, 2) * 0.2)

    def middle(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(self.filter), s=(8, 8))


class Normalised(Between):
    """Features and classes as unit vectors: a cosine for each logit."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.b(F.silu(self.a(x)))).mean((2, 3))
        return 4 * F.linear(F.normalize(x), F.normalize(self.fc.weight))


class Vmapped(Between):
    """Written for one image: torch.vmap's calls begin and end something, though nothing uses what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(16)

    def middle(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda image: image / (1 + image.square().mean()).sqrt())(F.silu(self.norm(x)))


class ReadsData(Between):
    """Code of before 2018 takes .data where it means .detach(); torch traces it as a constant."""

    def middle(self, x: Tensor) -> Tensor:
        return F.silu(x) / x.data.abs().amax((1, 2, 3), keepdim=True)
