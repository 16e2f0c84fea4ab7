"""An energy's logits and input gradient as one graph of plain operations.

Sampling needs ∇E(x), and autograd computes it where no exporter, quantizer or other runtime can follow. Here every
layer states its own pullback: given ∂E/∂(its output), ∂E/∂(its input). That of a convolution is a convolution of the
same weights, flipped, so that whatever makes convolutions small and fast works for both directions.

    y, pull = pullback(layer, x)        # y = layer(x)
    of_x = pull(of_y)                   # ∂E/∂x from ∂E/∂y
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowenergy.errors import UserError
from lowenergy.inputconv import input_gradient
from lowenergy.models import BasicBlock, ConvNorm, Network

Pull = Callable[[Tensor], Tensor]


class Explicit(nn.Module):
    """images (batch, c, h, w) -> logits (batch, outputs), input gradients of the energy (batch, c, h, w).

    Args:
        network: without BatchNorm; with a head.
    Raises:
        UserError: a layer without a pullback here, by its name.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        for name, module in network.named_modules():
            if module is not network and not isinstance(module, (*PULLED, nn.Identity, *SLOPES)):
                raise UserError(f"layer {name}: a {type(module).__name__} has no pullback in lowenergy/explicit.py")
            if isinstance(module, nn.Conv2d) and not _plain(module):
                raise UserError(f"layer {name}: only plain convolutions of stride 1 or 2 have a pullback, not {module}")
        self.network, self.head = network, network.spec.head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, pull_features = pullback(self.network.features, x)
        logits, pull_fc = pullback(self.network.fc, features)
        return logits, pull_features(pull_fc(self._of_logits(logits)))

    def _of_logits(self, logits: Tensor) -> Tensor:
        """∂E/∂logits, see energy.HEADS."""
        if self.head == "logsumexp":
            return -logits.softmax(1)
        of_logits = torch.zeros_like(logits)
        if self.head == "mean":
            return of_logits + 1 / logits.shape[1]
        return of_logits + 1  # scalar: the one logit is the energy


def pullback(module: nn.Module, x: Tensor) -> tuple[Tensor, Pull]:
    """The module's output and the map from the gradient of the output to that of `x`."""
    if isinstance(module, nn.Sequential):
        pulls = []
        for child in module:
            x, pull = pullback(child, x)
            pulls.append(pull)
        return x, lambda g: _chain(pulls, g)
    if isinstance(module, BasicBlock):
        branch, pull_branch = pullback(nn.Sequential(module.first, module.act1, module.second), x)
        shortcut, pull_shortcut = pullback(module.shortcut, x)
        y, pull_act = pullback(module.act2, branch + shortcut)

        def pull_block(g: Tensor) -> Tensor:
            g = pull_act(g)
            return pull_branch(g) + pull_shortcut(g)

        return y, pull_block
    if isinstance(module, ConvNorm):
        return pullback(module.conv, x)
    if isinstance(module, nn.Conv2d):
        return F.conv2d(x, module.weight, module.bias, module.stride, module.padding), lambda g: _unconv(module, g, x)
    if isinstance(module, nn.Linear):
        return module(x), lambda g: _unlinear(module, g)
    if isinstance(module, nn.MaxPool2d):
        return _max_pool(module, x)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        area = x.shape[-2] * x.shape[-1]
        return x.mean((2, 3), keepdim=True), lambda g: (g / area).expand(-1, -1, *x.shape[2:])
    if isinstance(module, nn.Flatten):
        return x.flatten(1), lambda g: g.view(-1, *x.shape[1:])
    if isinstance(module, nn.Identity):
        return x, lambda g: g
    y = module(x)
    return y, lambda g: g * SLOPES[type(module)](x, y)


def _chain(pulls: list[Pull], g: Tensor) -> Tensor:
    for pull in reversed(pulls):
        g = pull(g)
    return g


def _unconv(conv: nn.Conv2d, g: Tensor, x: Tensor) -> Tensor:
    weight, g = _scaled(conv, g)
    if conv.stride[0] == 1:
        return F.conv2d(g, weight.flip(2, 3).transpose(0, 1), padding=conv.padding)
    return input_gradient(g, weight, x.shape[-2], x.shape[-1])


def _unlinear(linear: nn.Linear, g: Tensor) -> Tensor:
    # As a 1x1 convolution: Inductor (torch 2.15) mistakes the orientation of a transposed int8 linear weight.
    weight, g = _scaled(linear, g)
    return F.conv2d(g[:, :, None, None], weight.t()[:, :, None, None]).flatten(1)


def _scaled(layer: nn.Conv2d | nn.Linear, g: Tensor) -> tuple[Tensor, Tensor]:
    """The weight and the gradient; of a layer with int8 scales, the scale taken from the former to the latter."""
    if not hasattr(layer, "scale"):
        return layer.weight, g
    assert isinstance(layer.scale, Tensor)  # (out,)
    along_weight, along_g = ([1] * (t.ndim - 1) for t in (layer.weight, g[0]))
    return layer.weight / layer.scale.view(-1, *along_weight), g * layer.scale.view(-1, *along_g)


def _max_pool(pool: nn.MaxPool2d, x: Tensor) -> tuple[Tensor, Pull]:
    y, winners = F.max_pool2d(x, pool.kernel_size, pool.stride, pool.padding, return_indices=True)

    def pull(g: Tensor) -> Tensor:
        flat = torch.zeros_like(x).flatten(2)
        return flat.scatter_add(2, winners.flatten(2), g.flatten(2)).view(-1, *x.shape[1:])

    return y, pull


def _silu_slope(x: Tensor, y: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return gate + y * (1 - gate)


def _gelu_slope(x: Tensor, y: Tensor) -> Tensor:
    below = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return below + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


SLOPES: dict[type[nn.Module], Callable[[Tensor, Tensor], Tensor]] = {  # (input, output) -> derivative
    nn.ReLU: lambda x, y: (x > 0).to(x.dtype),
    nn.SiLU: _silu_slope,
    nn.GELU: _gelu_slope,
    nn.ELU: lambda x, y: torch.where(x > 0, 1.0, y + 1),
    nn.LeakyReLU: lambda x, y: torch.where(x > 0, 1.0, 0.1),
}
PULLED = (nn.Sequential, BasicBlock, ConvNorm, nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)


def _plain(conv: nn.Conv2d) -> bool:
    k, stride = conv.kernel_size[0], conv.stride[0]
    wanted = (k % 2 == 1, (k, k), (stride, stride), (k // 2, k // 2), (1, 1), 1)
    is_so = (True, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return stride in (1, 2) and is_so == wanted
