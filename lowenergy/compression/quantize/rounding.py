"""Round weights layer by layer so that each layer's output changes least: each weight up or down (AdaRound, Nagel et
al. 2020, arXiv 2004.10568), or one making up for another (gptq.py).

Rounding to the nearest integer gives each weight the least error, but not the layer's output. AdaRound puts each weight
of a layer between the two integers next to it, floor(w / s) + h(v), where h is the rectified sigmoid and v minimises

    ‖W x − s (floor(W / s) + h(v)) x̂‖² + λ Σ (1 − |2 h(v) − 1|^β)

x is the layer's input in the float network, x̂ its input once earlier layers and all activations are rounded. β falls,
so that h ends at 0 or 1.
"""

from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lowenergy import networks
from lowenergy.base.progress import Progress
from lowenergy.compression.quantize import gptq
from lowenergy.compression.quantize.inputs import rounded_inputs
from lowenergy.networks.layers import Layer
from lowenergy.runtimes import int8
from lowenergy.storage.encodings import Range
from lowenergy.training import Run

IMAGES = 1024  # shown to the layers, as in the paper
POSITIONS = 16  # looked at among each image's outputs: neighbours resemble each other
BATCH = 512  # positions per step
AT_A_TIME = 64  # images
STEPS, LR = 500, 0.1
LOW, HIGH = -0.1, 1.1  # the sigmoid's ends, before it is cut off at 0 and 1
FIRST_BETA, LAST_BETA, FREE = 20.0, 2.0, 0.1  # FREE: the share of steps at the start without the regulariser
# λ, for terms scaled so that the error is 1 if a layer is rounded to nearest, the regulariser 1 if all its weights are
# half way. If inputs are independent, a weight's error has a second derivative of 24, its regulariser in the end one of
# -8 λ: with λ below 3, h would end in between.
REGULARISER = 8.0
SAME = 1e-4  # largest difference of weights times patches from a layer's output, relative to its norm


def learn_rounding(
    network: networks.Network,
    scales: Mapping[str, Tensor],
    bits: Mapping[str, int],
    ranges: MutableMapping[str, Range],
    images: Tensor,
    run: Run,
    how: Literal["learned", "gptq"] = "learned",
) -> None:
    """Round the weights of these layers, in place, to the steps of their integers.

    Layers that are called more than once, share their weight, or compute more than a convolution or a product are
    rounded to nearest, and their names are printed.

    Args:
        scales: (out,) by layer, what an integer stands for; bits: of the integers, by layer.
        ranges: of the layers' inputs; see inputs.of_inputs.
        images: (n, c, h, w).
    """
    network.to(run.device).eval()
    generator = torch.Generator().manual_seed(run.seed)
    layers = {name: layer for name, layer in networks.coded_layers(network).items() if name in scales}
    batches = images.to(run.device).split(AT_A_TIME)
    alone = {name: len(networks.sharing(network, layer)) == 1 for name, layer in layers.items()}
    # Outputs of convolutions are compared with products, and a GPU's TF32 would make them rougher.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        wanted = _wanted({name: layer for name, layer in layers.items() if alone[name]}, network, batches, generator)
    progress = Progress(f"{run.name}: rounding learned", STEPS * sum(layers[name].weight.numel() for name in wanted))
    shares = []
    with rounded_inputs(network, ranges, {}) as inputs:
        for name, layer in layers.items():
            scale = scales[name].to(run.device).view(-1, *[1] * (layer.weight.ndim - 1))
            integers = int8.rounded(layer.weight.detach(), scale, bits[name]).float()
            if name in wanted:
                seen = []
                for batch, positions in zip(batches, wanted[name].positions, strict=True):
                    inputs.calls.clear()
                    layer_input = _input_of(layer, network, batch)
                    if name in inputs.of_layer:  # the rounding takes place behind what was watched
                        layer_input = inputs.meet(name, layer_input)
                    seen.append(_patches_at(layer, layer_input, positions))
                inputs.calls.clear()
                patches, outputs = torch.cat(seen, 1), wanted[name].outputs
                if how == "gptq":
                    chosen, share = compensated(layer, integers, scale, bits[name], patches, outputs)
                    progress(STEPS * layer.weight.numel())
                else:
                    chosen, share = learned(layer, integers, scale, bits[name], patches, outputs, generator, progress)
                integers = chosen.view(layer.weight.shape)
                shares.append(share)
            with torch.no_grad():
                layer.weight.copy_(integers * scale)
    if rest := [name for name in layers if name not in wanted]:
        run.say(f"rounded to nearest, for learning does not apply: {', '.join(rest)}")
    if shares:
        mean = sum(shares) / len(shares)
        run.say(f"rounding so leaves {mean:.0%} of the squared error of layers' outputs")
    network.cpu()


@dataclass
class _Wanted:
    """Outputs of a layer in the float network, without its bias."""

    positions: list[Tensor]  # of each batch, counted through all its images
    parts: list[Tensor]  # (groups, positions, outputs)

    @property
    def outputs(self) -> Tensor:
        return torch.cat(self.parts, 1)


def _wanted(
    layers: Mapping[str, Layer], network: nn.Module, batches: Sequence[Tensor], generator: torch.Generator
) -> dict[str, _Wanted]:
    """The float outputs of each layer that is called once and only multiplies its weights with patches."""
    wanted: dict[str, _Wanted] = {name: _Wanted([], []) for name in layers}
    calls: Counter[str] = Counter()

    def look(name: str, layer: Layer, given: Tensor, output: Tensor) -> None:
        calls[name] += 1
        if name not in wanted or calls[name] > 1:
            wanted.pop(name, None)
            return
        try:
            count = output.numel() // len(layer.weight) // images  # positions of one image
            some = torch.randint(count, (images, POSITIONS), generator=generator)
            if count <= POSITIONS:
                some = torch.arange(count).expand(images, count)
            positions = (some + count * torch.arange(images)[:, None]).flatten().to(output.device)
            picked = _outputs_at(layer, output, positions)
            if not wanted[name].parts:
                again = _patches_at(layer, given, positions) @ _as_matrices(layer, layer.weight).mT
                if again.shape != picked.shape or not (again - picked).norm() <= SAME * picked.norm():
                    raise ValueError("computes something else")
        except (RuntimeError, IndexError, ValueError):
            del wanted[name]
            return
        wanted[name].positions.append(positions)
        wanted[name].parts.append(picked)

    with networks.watched(layers, look):
        for batch in batches:
            images = len(batch)
            calls.clear()
            with torch.no_grad():
                network(batch)
    return {name: outputs for name, outputs in wanted.items() if outputs.parts}


class _MetError(Exception):
    """Ends a forward pass at a layer, because what follows is not needed."""


def _input_of(layer: Layer, network: nn.Module, images: Tensor) -> Tensor:
    """The input that the layer's weight is multiplied with."""
    met: list[Tensor] = []

    def stop(_: str, __: Layer, given: Tensor, ___: Tensor) -> None:
        met.append(given)
        raise _MetError

    with torch.no_grad(), networks.watched({"": layer}, stop), suppress(_MetError):
        network(images)
    return met[0]


def _groups(layer: Layer) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def _as_matrices(layer: Layer, weight: Tensor) -> Tensor:
    """Reshape a weight to (groups, outputs, weights of each output)."""
    return weight.detach().flatten(1).unflatten(0, (_groups(layer), -1))


def _outputs_at(layer: Layer, output: Tensor, positions: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        output = output.permute(0, 2, 3, 1)
    flat = output.flatten(0, -2)[positions]
    if layer.bias is not None:
        flat = flat - layer.bias.detach()
    return flat.unflatten(1, (_groups(layer), -1)).transpose(0, 1)


def _patches_at(layer: Layer, x: Tensor, positions: Tensor) -> Tensor:
    """The patches for the outputs at these positions, counted through the batch: (groups, n, weights of an output)."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)[positions][None]
    reach = [layer.dilation[d] * (layer.kernel_size[d] - 1) for d in (0, 1)]
    size = [(x.shape[2 + d] - reach[d] - 1) // layer.stride[d] + 1 for d in (0, 1)]
    image, rest = positions // (size[0] * size[1]), positions % (size[0] * size[1])
    taps = [torch.arange(layer.kernel_size[d], device=x.device) * layer.dilation[d] for d in (0, 1)]
    rows = (rest // size[1] * layer.stride[0])[:, None] + taps[0]
    columns = (rest % size[1] * layer.stride[1])[:, None] + taps[1]
    places = image[:, None, None], rows[:, :, None], columns[:, None, :]
    patches = x.permute(0, 2, 3, 1)[places]  # (n, kernel, kernel, channels)
    grouped = patches.unflatten(3, (layer.groups, -1)).permute(3, 0, 4, 1, 2)
    return grouped.reshape(layer.groups, len(positions), -1)


def learned(
    layer: Layer,
    nearest: Tensor,
    scale: Tensor,
    bits: int,
    patches: Tensor,
    outputs: Tensor,
    generator: torch.Generator,
    progress: Progress,
) -> tuple[Tensor, float]:
    """Learn the integers of a layer's weights for which its outputs are off by the least (AdaRound).

    Args:
        nearest: the weights' nearest integers; scale: of weights and integers, (out, 1, ...).
        patches: (groups, n, weights of an output); outputs: (groups, n, outputs), what their products should be.
    Returns:
        integers (groups, outputs, weights of each), and the share of the nearest ones' squared error that they leave.
    """
    levels = 2 ** (bits - 1)
    steps = _as_matrices(layer, layer.weight / scale)
    factor = scale.flatten().view(len(steps), -1, 1)
    near = _as_matrices(layer, nearest)
    below = steps.floor()
    low = below.clamp(-levels, levels - 1)
    high = torch.where(steps == below, low, (below + 1).clamp(-levels, levels - 1))  # what was pruned stays zero
    start, span = low * factor, (high - low) * factor
    # λ needs no unit if the error is measured in multiples of that of rounding to nearest.
    unit = _error(patches, (near - steps) * factor, torch.zeros_like(outputs)).sum().clamp_min(1e-30) / len(outputs[0])
    rest = ((steps - below - LOW) / (HIGH - LOW)).clamp(0.01, 0.99)
    v = nn.Parameter(torch.log(rest / (1 - rest)))  # starts h at the weight's distance from the integer below
    movable = int(span.count_nonzero().clamp_min(1))  # pruned weights are not, nor those beyond the last integer
    optimizer = torch.optim.Adam([v], lr=LR)
    for step in range(STEPS):
        some = torch.randint(patches.shape[1], (BATCH,), generator=generator).to(patches.device)
        x = patches[:, some]
        with torch.no_grad():  # the gradient written out takes half the time of autograd
            share = v.sigmoid()
            h = (share * (HIGH - LOW) + LOW).clamp_(0, 1)
            off = x @ (start + h * span).mT - outputs[:, some]
            slope = (off.mT @ x).mul_(span).mul_(2 / BATCH / unit)
            done = (step / STEPS - FREE) / (1 - FREE)
            if done > 0:
                beta = FIRST_BETA + (LAST_BETA - FIRST_BETA) * done
                away = 2 * h - 1
                slope -= away.sign() * away.abs().pow_(beta - 1).mul_(2 * beta * REGULARISER / movable)
            v.grad = slope.mul_(share * (1 - share) * (HIGH - LOW)).mul_((h > 0) & (h < 1))
        optimizer.step()
        progress(layer.weight.numel())
    chosen = torch.where(v.detach().sigmoid() * (HIGH - LOW) + LOW >= 0.5, high, low)
    return _better(near, chosen, factor, patches, outputs)


def compensated(
    layer: Layer, nearest: Tensor, scale: Tensor, bits: int, patches: Tensor, outputs: Tensor
) -> tuple[Tensor, float]:
    """Do the same as `learned`, by the method of gptq.py."""
    weights, near = _as_matrices(layer, layer.weight), _as_matrices(layer, nearest)
    factor = scale.flatten().view(len(weights), -1, 1)
    by_group = zip(weights, factor, patches, outputs, strict=True)
    chosen = torch.stack([gptq.compensated(w, s, bits, x, y) for w, s, x, y in by_group])
    return _better(near, chosen, factor, patches, outputs)


def _better(near: Tensor, found: Tensor, factor: Tensor, patches: Tensor, outputs: Tensor) -> tuple[Tensor, float]:
    """The better of `found` and the nearest integers for each output, and the share of the nearest's error left."""
    before, after = (_error(patches, integers * factor, outputs) for integers in (near, found))
    found = torch.where((after < before)[:, :, None], found, near)
    return found, float(torch.minimum(before, after).sum() / before.sum().clamp_min(1e-30))


def _error(patches: Tensor, values: Tensor, outputs: Tensor) -> Tensor:
    """The sum of squared errors of each output, (groups, outputs)."""
    return (patches @ values.mT - outputs).square_().sum(1)
