"""Allocation: choose longer or shorter blocks, more or fewer codewords, where they lower the loss most per bit."""

import math

import torch
from torch import Tensor

from lowenergy import networks, training
from lowenergy.base.progress import Progress
from lowenergy.compression.budget import divide_bits
from lowenergy.compression.pq import Params
from lowenergy.compression.pq.activations import moments_of
from lowenergy.compression.pq.codebooks import learn, row_major
from lowenergy.compression.pq.layers import (
    Layer,
    Shape,
    block_length,
    blocks_and_metric,
    codewords_for,
    groups_of,
    layers_to_code,
)
from lowenergy.storage.coded import CodedWeight
from lowenergy.training import Objective, Run

SCALES = 0.5, 1.0, 2.0  # factors of the params' block lengths that allocation tries
TRIED_ON = 200  # inputs, roughly


def shapes_of(
    network: networks.Network,
    objective: Objective,
    images: Tensor,
    weights: dict[str, Tensor] | None,
    p: Params,
    run: Run,
) -> dict[str, Shape]:
    """Choose block length and number of codewords for each layer: the params', or with allocation `sensitivity` those
    that lower the objective's loss most without taking more bits (codes and codebooks) than the params' would.

    To see what they cost, each layer alone is coded in each of the ways. The losses are kept on disk, so that a killed
    run resumes there. For an energy, the loss includes the error of the score.
    """
    layers = layers_to_code(network, p)
    plain = {name: (d := block_length(layer, p), codewords_for(layer, d, p)) for name, layer in layers.items()}
    if p.allocation == "uniform":
        return plain
    kept = training.kept(run, "ways")
    choices: dict[str, dict[tuple[int, int], tuple[int, float]]] = kept["choices"] if kept else {}
    index = torch.arange(0, len(objective.inputs), max(1, len(objective.inputs) // TRIED_ON), device=run.device)
    tried = networks.duplicate(network).to(run.device)
    exact = training.mean_loss(tried, objective, index, run)
    ways = {name: _ways(layer, p) for name, layer in layers.items()}
    progress = Progress(f"{run.name}: codes of each layer tried", len(SCALES) * len(layers))
    for scale in SCALES:
        lengths = {name: of_layer[scale][0] for name, of_layer in ways.items()}
        moments = moments_of(network, lengths, images, objective.precision)
        for name, layer in layers.items():
            d, counts = ways[name][scale]
            weight, of_layer = layer.weight.detach(), choices.setdefault(name, {})
            blocks, metric = blocks_and_metric(name, layer, d, moments[name], weights, p)
            place = networks.coded_layers(tried)[name].weight
            for k in (k for k in counts if (d, k) not in of_layer):
                learnt = learn(blocks, metric, k, steps=4, generator=torch.Generator().manual_seed(run.seed))
                code = CodedWeight(row_major(learnt.codes, groups_of(layer)), k, tuple(weight.shape))
                with torch.no_grad():
                    place.copy_(code(learnt.codewords))
                of_layer[d, k] = (_bits(layer, d, k), training.mean_loss(tried, objective, index, run) - exact)
            with torch.no_grad():
                place.copy_(weight)
            training.keep(run, "ways", {"choices": choices})
            progress(1)
    shapes = divide_bits(choices, sum(_bits(layers[name], *shape) for name, shape in plain.items()))
    run.say(f"blocks and codewords {', '.join(f'{name} {d} {k}' for name, (d, k) in shapes.items())}")
    return shapes


def _ways(layer: Layer, p: Params) -> dict[float, tuple[int, list[int]]]:
    """For each of SCALES, a block length about that many times the params', and numbers of codewords to try with it."""
    ways = {}
    for scale in SCALES:
        d = block_length(layer, with_blocks(p, scale))
        wanted = {
            of: [max(2, int(getattr(p, of) * more)) for more in (1 / 4, 1, 4)] for of in ("codewords", "codewords_fc")
        }
        counts = {
            codewords_for(layer, d, p.model_copy(update=dict(zip(wanted, pair, strict=True))))
            for pair in zip(*wanted.values(), strict=True)
        }
        ways[scale] = (d, sorted(counts))
    return ways


def with_blocks(p: Params, scale: float) -> Params:
    """The params with blocks so many times as long."""
    lengths = ("block_conv", "block_small", "block_1x1", "block_fc")
    return p.model_copy(update={of: max(1, int(getattr(p, of) * scale)) for of in lengths})


def _bits(layer: Layer, d: int, k: int) -> int:
    """Bits of a layer's codes and codebook, with `k` codewords for blocks of `d` weights."""
    return layer.weight.numel() // d * math.ceil(math.log2(k)) + 16 * k * d
