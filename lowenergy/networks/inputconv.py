"""A strided convolution of images whose input gradient is fast.

Sampling spends most of its time on one operation, the gradient of the first convolution with respect to an image of one
or three channels, for which CPU libraries have no good kernel. It is an ordinary convolution in disguise: pixels of the
same parity depend on the output gradient through the same few weights, so four small kernels, one per parity, make the
four interleaved quarters of the image at once (sub-pixel convolution, Shi et al. 2016).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight


class InputConv2d(nn.Conv2d):
    """nn.Conv2d with stride 2, odd kernel and padding kernel // 2: the same values and gradients, faster."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return super().forward(x)  # exporters want plain operations, and without gradients nothing is slow
        weight, bias = self.weight, self.bias
        assert bias is not None
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        return _StridedConv.apply(x, weight, bias)


class _StridedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, stride=2, padding=weight.shape[-1] // 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = input_gradient(gradient, weight, x.shape[-2], x.shape[-1])
        if ctx.needs_input_grad[1]:
            padding = weight.shape[-1] // 2
            of_weight = conv2d_weight(x, list(weight.shape), gradient, stride=2, padding=padding)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias


def input_gradient(gradient: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
    """Compute ∂L/∂x, (batch, in, height, width), from ∂L/∂y, for y = conv(x, weight), k odd, stride 2, padding k // 2.

    Pixel 2j + r of x meets weight o + k // 2 at output j - (o - r) / 2, for offsets o of the same parity as r. Aligned
    to even offsets, the weights of one parity r are a kernel of (k + 1) / 2 taps over the output's grid.
    """
    outs, ins, k, _ = weight.shape
    before = k // 2 % 2  # zeros that make the first offset even
    padded = F.pad(weight, [before, (k + before) % 2] * 2)
    taps = padded.shape[-1] // 2
    kernels = padded.reshape(outs, ins, taps, 2, taps, 2).flip(2, 4).permute(1, 3, 5, 0, 2, 4)
    after = (k // 2 + 1) // 2
    quarters = F.conv2d(
        F.pad(gradient, [taps - 1 - after, after] * 2),
        kernels.reshape(4 * ins, outs, taps, taps).contiguous(memory_format=torch.channels_last),
    )
    return F.pixel_shuffle(quarters, 2)[..., :height, :width]
