"""Product quantization of weights, weighed by the activations that meet them (Stock et al. 2019, arXiv 1907.05686).

A layer's weight is cut into blocks v of d; each block becomes one of k codewords c. What matters is not the weights'
error but the outputs', ‖X̃(v - c)‖², where the rows of X̃ are the input blocks v is multiplied with. It depends on the
inputs only through G = X̃ᵀX̃: with G = LLᵀ it is ‖Lᵀ(v - c)‖², ordinary k-means of the whitened blocks Lᵀv, exact and
without keeping any activation.
"""

from contextlib import suppress

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from lowenergy import models, training
from lowenergy.artifact import Model, weights
from lowenergy.encodings import Coded, Dense, Encoding
from lowenergy.params import Pq
from lowenergy.training import Objective, Run


def block_length(layer: nn.Conv2d | nn.Linear, p: Pq) -> int:
    """Elements per block: a whole k x k kernel, or `block_1x1` / `block_fc` inputs; at most what divides them."""
    if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
        return layer.kernel_size[0] * layer.kernel_size[1]
    wanted, inputs = (
        (p.block_fc, layer.in_features) if isinstance(layer, nn.Linear) else (p.block_1x1, layer.in_channels)
    )
    return max(d for d in range(1, wanted + 1) if inputs % d == 0)


def input_gram(layer: nn.Conv2d | nn.Linear, inputs: Tensor, d: int) -> Tensor:
    """G = X̃ᵀX̃ / rows, (d, d) float64, over every input block that a weight block of this layer is multiplied with.

    Args:
        inputs: of the layer, (batch, channels, h, w) or (batch, features).
    """
    if isinstance(layer, nn.Linear):
        blocks = inputs.reshape(-1, d)  # (batch * features / d, d)
    elif layer.kernel_size == (1, 1):
        strided = inputs[:, :, :: layer.stride[0], :: layer.stride[1]]
        blocks = strided.movedim(1, -1).reshape(-1, d)  # (batch * pixels * channels / d, d)
    else:
        patches = F.unfold(inputs, layer.kernel_size, padding=layer.kernel_size[0] // 2, stride=layer.stride)
        blocks = patches.transpose(1, 2).reshape(-1, d)  # (batch, channels * d, pixels) -> (..., d)
    blocks = blocks.double()
    return blocks.T @ blocks / len(blocks)


def whitened_kmeans(
    blocks: Tensor, gram: Tensor, codewords: int, *, steps: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Codewords and assignments that minimise Σ (v - c)ᵀ G (v - c).

    k-means++ start, Lloyd steps; a codeword left without blocks moves to the block that is worst off.

    Args:
        blocks: (n, d) float32.
        gram: (d, d) float64, symmetric positive semidefinite; a small ridge makes it definite.
        steps: Lloyd iterations at most; stops when no assignment changes.
    Returns:
        codebook (k, d) float32 and codes (n,) int64.
    Raises:
        ValueError: more codewords than blocks.
    """
    n, d = blocks.shape
    if codewords > n:
        raise ValueError(f"{codewords} codewords for {n} blocks; give fewer")
    ridge = 1e-6 * gram.diagonal().mean().clamp_min(1e-12)
    factor = torch.linalg.cholesky(gram + ridge * torch.eye(d, dtype=gram.dtype)).float()  # G = L Lᵀ
    white = blocks @ factor  # (n, d): row v becomes (Lᵀ v)ᵀ
    centers = _kmeans_plus_plus(white, codewords, generator)
    codes = torch.full((n,), -1)
    for _ in range(steps):
        distance, nearest = _nearest(white, centers)
        if torch.equal(nearest, codes):
            break
        codes = nearest
        counts = torch.bincount(codes, minlength=codewords)
        sums = torch.zeros_like(centers).index_add_(0, codes, white)
        centers = sums / counts.clamp_min(1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty):
            worst = distance.topk(len(empty)).indices
            centers[empty] = white[worst]
    codes = _nearest(white, centers)[1]
    codebook = torch.linalg.solve_triangular(factor.T.double(), centers.T.double(), upper=True).T.float()
    return codebook, codes


def _nearest(points: Tensor, centers: Tensor, chunk: int = 65536) -> tuple[Tensor, Tensor]:
    """Squared distance to, and index of, each point's nearest center; bounded memory: chunk x k distances at once."""
    found = [torch.addmm(centers.square().sum(1), part, centers.T, alpha=-2).min(1) for part in points.split(chunk)]
    distance = torch.cat([f.values for f in found]) + points.square().sum(1)
    return distance, torch.cat([f.indices for f in found])


def _kmeans_plus_plus(points: Tensor, k: int, generator: Generator) -> Tensor:
    """Centers spread out by sampling each next one proportionally to its squared distance (Arthur & Vassilvitskii)."""
    first = int(torch.randint(len(points), (1,), generator=generator))
    centers = torch.empty(k, points.shape[1])
    centers[0] = points[first]
    distance = (points - centers[0]).square().sum(1)
    for i in range(1, k):
        # All distances vanish where there are fewer distinct points than centers: any point will do then.
        cumulative = (distance + 1e-30).double().cumsum(0)
        drawn = torch.rand(1, generator=generator, dtype=torch.double) * cumulative[-1]
        centers[i] = points[int(torch.searchsorted(cumulative, drawn).clamp_max(len(points) - 1))]
        distance = torch.minimum(distance, (points - centers[i]).square().sum(1))
    return centers


class CodedWeight(nn.Module):
    """A weight made of codewords: its parametrization's one parameter is the codebook, so training moves codewords."""

    def __init__(self, codes: Tensor, shape: torch.Size) -> None:
        super().__init__()
        self.codes: Tensor
        self.register_buffer("codes", codes)
        self.shape = shape

    def forward(self, codebook: Tensor) -> Tensor:
        # embedding, not indexing: its gradient adds up in a fixed order.
        return F.embedding(self.codes, codebook).view(self.shape)


class _LayerReachedError(Exception):
    pass


def _gram_of(network: nn.Module, layer: nn.Conv2d | nn.Linear, images: Tensor, d: int, batch_size: int) -> Tensor:
    """The layer's input Gram matrix with everything below it as it is now, that is, already coded."""
    gram = torch.zeros(d, d, dtype=torch.float64)

    def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
        gram.add_(input_gram(layer, inputs[0], d))
        raise _LayerReachedError  # nothing above this layer is needed

    handle = layer.register_forward_pre_hook(look)
    with torch.no_grad():
        for batch in images.split(batch_size):
            with suppress(_LayerReachedError):
                network(batch)
    handle.remove()
    return gram


def code_layers(network: models.Network, images: Tensor, p: Pq, generator: Generator, batch_size: int = 250) -> None:
    """Replace the weights of `network` by codewords, layer after layer from the input side.

    Args:
        images: (n, c, h, w) whose activations weigh the errors; those of each layer come through the coded layers
            below it, so that later codebooks make up for earlier errors.
    """
    network.eval()
    layers = list(models.coded_layers(network).items())
    for place, (_, layer) in enumerate(layers):
        if place == 0 and p.keep_first:
            continue
        d = block_length(layer, p)
        blocks = layer.weight.detach().reshape(-1, d)  # row-major: a block never crosses an output channel
        wanted = p.codewords_fc if isinstance(layer, nn.Linear) else p.codewords
        k = min(wanted, 2 ** max(1, (len(blocks) // p.vectors_per_codeword).bit_length() - 1))
        gram = _gram_of(network, layer, images, d, batch_size)
        codebook, codes = whitened_kmeans(blocks, gram, k, steps=p.kmeans_steps, generator=generator)
        coded = CodedWeight(codes, layer.weight.shape)
        layer.weight = nn.Parameter(codebook)
        parametrize.register_parametrization(layer, "weight", coded, unsafe=True)  # unsafe: the shape changes


def refresh_batchnorm(network: nn.Module, images: Tensor, batch_size: int = 250) -> None:
    """Average BatchNorm's statistics anew over `images`: coded weights shift what the norms see."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    network.train()
    with torch.no_grad():
        for batch in images.split(batch_size):
            network(batch)
    network.eval()
    for norm in norms:
        norm.momentum = 0.1


def compress(network: models.Network, target: str, objective: Objective, p: Pq, run: Run) -> Model:
    """Code every layer, finetune all codewords (and biases and norms) towards `objective`, encode."""
    generator = torch.Generator().manual_seed(run.seed)
    images = objective.inputs[:: max(1, len(objective.inputs) // p.calibration_images)].cpu()
    code_layers(network.cpu(), images, p, generator)
    refresh_batchnorm(network, images)
    training.finetune(network, objective, p.finetune, run)
    tensors: dict[str, Encoding] = {}
    for name, layer in models.coded_layers(network).items():
        if parametrize.is_parametrized(layer):
            tensors[f"{name}.weight"] = _encoded(layer)
            parametrize.remove_parametrizations(layer, "weight")
    for name, value in weights(network).items():
        tensors.setdefault(name, Dense(value.half()))
    return Model(target, network.spec, tensors)


def _encoded(layer: nn.Module) -> Coded:
    parametrization = layer.parametrizations.weight  # type: ignore[union-attr]
    coded: CodedWeight = parametrization[0]  # type: ignore[index, assignment]
    return Coded(coded.codes, parametrization.original.detach().half(), tuple(coded.shape))  # type: ignore[union-attr, operator]
