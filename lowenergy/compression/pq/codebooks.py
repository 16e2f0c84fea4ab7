"""Learn codebooks for the blocks of a weight, by the error they cause in the layer's output and the bits they take.

A layer's weight is cut into blocks v of length d, one for every output channel o and position p, the place among the
inputs that the block is multiplied with. Each block becomes one of k codewords c, chosen to minimise

    Σ_{o,p}  w_o (v - c)ᵀ G_p (v - c)  +  rate · bits(c)

With G_p = E[x xᵀ] over the input blocks x at p, the first term is the error of the output: ‖X̃(v - c)‖² of Stock et al.
2019 (arXiv 1907.05686, eq. 2) depends on the activations X̃ only through X̃ᵀX̃. With G_p = L Lᵀ it is the ordinary
squared distance between Lᵀv and Lᵀc: exact, without keeping or sampling activations. Their covariance in place of
E[x xᵀ] leaves out the error of each output's mean, which BatchNorm or a bias corrects at no cost. The second term,
entropy-constrained vector quantization (Chou, Lookabaugh & Gray 1989), prefers codewords that are common and so cost
few bits.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

CHUNK = 2**24  # distances held at once, 64 MiB


def blocks_of(weight: Tensor, d: int, groups: int = 1) -> Tensor:
    """Cut a weight into row-major blocks, which never cross an output channel: (o, ...) -> (p, o, d).

    For a grouped convolution the result is (groups * p, o / groups, d): its outputs meet only the inputs of their own
    group, so every group has positions of its own.
    """
    blocks = weight.flatten(1).unflatten(1, (-1, d)).unflatten(0, (groups, -1))  # (groups, o / groups, p, d)
    return blocks.transpose(1, 2).flatten(0, 1)


def row_major(codes: Tensor, groups: int = 1) -> Tensor:
    """Put codes by position and output, (groups * p, o / groups), in the order of the weight's blocks, (o * p,)."""
    return codes.unflatten(0, (groups, -1)).transpose(1, 2).flatten()


def by_position(codes: Tensor, outputs: int, groups: int = 1) -> Tensor:
    """The inverse of row_major: (o * p,) -> (groups * p, o / groups)."""
    return codes.view(groups, outputs // groups, -1).transpose(1, 2).flatten(0, 1)


def outputs_by_position(values: Tensor, positions: int, groups: int = 1) -> Tensor:
    """Spread one value per output, (o,), over the places of blocks_of: (groups * p, o / groups); (o,) if groups = 1."""
    if groups == 1:
        return values
    return values.view(groups, 1, -1).expand(groups, positions // groups, -1).flatten(0, 1)


@dataclass(frozen=True)
class Moments:
    """Moments of the input blocks x that a layer's weight blocks are multiplied with, summed over images and pixels."""

    squares: Tensor  # Σ x xᵀ, (p, d, d) float64
    sums: Tensor  # Σ x, (p, d) float64
    count: int  # number of x at each position

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.squares + other.squares, self.sums + other.sums, self.count + other.count)

    def gram(self) -> Tensor:
        """E[x xᵀ], (p, d, d): weighs the error of the outputs."""
        return (self.squares / self.count).float()

    def covariance(self) -> Tensor:
        """E[x xᵀ] - E[x] E[x]ᵀ, (p, d, d): weighs the error that is left once the mean of each output is corrected."""
        mean = self.mean().double()
        return (self.squares / self.count - mean[:, :, None] * mean[:, None]).float()

    def mean(self) -> Tensor:
        """E[x], (p, d)."""
        return (self.sums / self.count).float()


def any_moments(layer: nn.Conv2d | nn.Linear, d: int) -> Moments:
    """Moments for inputs of which nothing is known: all alike, and independent."""
    positions = layer.weight[0].numel() * getattr(layer, "groups", 1) // d
    return Moments(torch.eye(d, dtype=torch.double).repeat(positions, 1, 1), torch.zeros(positions, d).double(), 1)


def input_moments(layer: nn.Conv2d | nn.Linear, inputs: Tensor, d: int) -> Moments:
    """Moments of the input blocks at each position of a layer's weight.

    Args:
        inputs: what its weight is multiplied with, see networks.watched: (batch, channels, h, w) or (..., features).
    """
    if isinstance(layer, nn.Linear):
        columns = inputs.reshape(-1, inputs.shape[-1])[:, :, None]  # (batch, features, 1)
    elif layer.kernel_size == (1, 1):
        columns = inputs[:, :, :: layer.stride[0], :: layer.stride[1]].flatten(2)  # (batch, channels, pixels)
    else:
        columns = F.unfold(inputs, layer.kernel_size, layer.dilation, stride=layer.stride)
    blocks = columns.unflatten(1, (-1, d)).permute(1, 2, 0, 3).flatten(2)  # (p, d, batch * pixels)
    return Moments(torch.bmm(blocks, blocks.mT).double(), blocks.sum(2).double(), blocks.shape[2])


@dataclass(frozen=True)
class Metric:
    """How much an error of a layer's blocks matters."""

    grams: Tensor  # (p, d, d) float32, symmetric positive semidefinite
    weights: Tensor  # (o,), or (p, o) for a grouped convolution, float32 > 0

    def factors(self) -> Tensor:
        """L, (p, d, d), with G_p = L Lᵀ; small eigenvalues are raised so that dead inputs leave G_p definite."""
        values, vectors = torch.linalg.eigh(self.grams.double())
        least = 1e-4 * values.mean(1, keepdim=True) + 1e-6 * values.mean() + 1e-12
        return (vectors * torch.maximum(values, least).sqrt()[:, None]).float()


@dataclass(frozen=True)
class Codebook:
    codewords: Tensor  # (k, d) float32
    codes: Tensor  # (p, o) int64
    before: float  # the relative output error, Σ w (v - c)ᵀG(v - c) / Σ w vᵀGv, at the k-means++ start
    after: float  # and at the end


def learn(blocks: Tensor, metric: Metric, k: int, *, steps: int, generator: Generator, rate: float = 0.0) -> Codebook:
    """Learn a codebook: a k-means++ start, then Lloyd steps, with bits priced in the second half of them.

    While bits are free, a codeword left without blocks moves to the block that is worst off. Once they have a price, it
    is dropped: rare codewords cost more bits than they save error.

    Args:
        blocks: (p, o, d) float32.
        k: number of codewords; fewer come back if the price of bits dropped some.
        rate: price of one bit, in units of the error.
    Raises:
        ValueError: more codewords than blocks.
    """
    if k > (count := blocks.shape[:2].numel()):
        raise ValueError(f"{k} codewords for {count} blocks; give fewer")
    factors, weights = metric.factors(), metric.weights
    white = blocks @ factors  # row v becomes (Lᵀv)ᵀ
    energy = float((white.square().sum(2) * weights).sum().double()) + 1e-30
    grams = factors @ factors.mT
    pull = (blocks @ grams) * weights[..., None]  # w G v, what a codeword's normal equations sum
    codewords = _plus_plus(white, blocks, factors, weights, k, generator)
    codes, before = None, 0.0
    for step in range(steps + 1):
        price = rate if step >= steps // 2 else 0.0
        penalty = price * bits(codes, len(codewords)) if price and codes is not None else None
        assigned, errors = assign(white, factors, weights, codewords, penalty)
        if codes is None:
            before = float(errors.sum().double()) / energy
        unchanged = codes is not None and torch.equal(assigned, codes)
        codes = assigned
        if step == steps or (unchanged and step > steps // 2):
            break
        codewords = _centroids(codes, codewords, grams, weights, pull)
        counts = torch.bincount(codes.flatten(), minlength=len(codewords))
        if price:
            codewords, codes = _without_unused(codewords, codes, counts)
        elif len(empty := (counts == 0).nonzero()[:, 0]):
            codewords[empty] = blocks.flatten(0, 1)[errors.flatten().topk(len(empty)).indices]
    assert codes is not None
    if rate:
        counts = torch.bincount(codes.flatten(), minlength=len(codewords))
        codewords, codes = _without_unused(codewords, codes, counts)
    return Codebook(codewords, codes, before, float(errors.sum().double()) / energy)


def bits(codes: Tensor, k: int) -> Tensor:
    """-log2 of each codeword's frequency, (k,): what an entropy coder spends on it. Unused ones count as used once."""
    counts = torch.bincount(codes.flatten(), minlength=k).clamp_min(1)
    return -torch.log2(counts / codes.numel())


def assign(
    white: Tensor, factors: Tensor, weights: Tensor, codewords: Tensor, penalty: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The best codeword of every block, (p, o) int64, and the error w ‖Lᵀ(v - c)‖² it leaves, (p, o).

    Args:
        white: (p, o, d) blocks times `factors`, (p, d, d).
        penalty: (k,) added to the error when choosing.
    """
    (positions, out, _), k = white.shape, len(codewords)
    if penalty is not None:  # one more coordinate, so that a single product gives error and penalty together
        white = torch.cat([white, (1 / weights)[..., None].expand(positions, out, 1)], 2)
    codes, errors = white.new_empty(positions, out, dtype=torch.long), white.new_empty(positions, out)
    for some in torch.arange(positions).split(max(1, CHUNK // (out * k))):
        first, last = int(some[0]), int(some[-1]) + 1
        centers = codewords @ factors[first:last]  # (chunk, k, d)
        length = centers.square().sum(2)[:, None]  # (chunk, 1, k)
        if penalty is not None:
            centers = torch.cat([centers, (-0.5 * penalty)[None, :, None].expand(len(some), k, 1)], 2)
        least = torch.baddbmm(length, white[first:last], centers.mT, alpha=-2).min(2)
        codes[first:last], errors[first:last] = least.indices, least.values
    if penalty is not None:
        errors -= penalty[codes] / weights
        white = white[..., :-1]
    return codes, (errors + white.square().sum(2)).clamp_min(0) * weights


def _centroids(codes: Tensor, codewords: Tensor, grams: Tensor, weights: Tensor, pull: Tensor) -> Tensor:
    """Move each codeword to the minimum of its blocks' errors: (Σ w G) c = Σ w G v. Unused ones stay where they are."""
    (k, d), (positions, out) = codewords.shape, codes.shape
    place = codes * positions + torch.arange(positions)[:, None]
    mass = torch.zeros(k * positions).index_add_(0, place.flatten(), weights.expand(positions, out).flatten())
    normal = (mass.view(k, positions) @ grams.flatten(1)).view(k, d, d)
    right = torch.zeros(k, d).index_add_(0, codes.flatten(), pull.flatten(0, 1))
    used = normal.diagonal(dim1=1, dim2=2).sum(1) > 0
    moved = codewords.clone()
    moved[used] = torch.linalg.solve(normal[used].double(), right[used].double()).float()
    return moved


def _without_unused(codewords: Tensor, codes: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    used = counts > 0
    return codewords[used], (used.cumsum(0) - 1)[codes]


def _plus_plus(white: Tensor, blocks: Tensor, factors: Tensor, weights: Tensor, k: int, generator: Generator) -> Tensor:
    """Draw spread-out blocks, each in proportion to the error it has so far (Arthur & Vassilvitskii 2007)."""
    flat = blocks.flatten(0, 1)
    chosen = torch.empty(k, flat.shape[1])
    chosen[0] = flat[int(torch.randint(len(flat), (1,), generator=generator))]
    errors = torch.full(white.shape[:2], torch.inf)
    for i in range(1, k):
        center = chosen[i - 1] @ factors  # (p, d)
        errors = torch.minimum(errors, (white - center[:, None]).square_().sum(2).mul_(weights))
        # All errors vanish where there are fewer distinct blocks than codewords: any block will do then.
        cumulative = (errors + 1e-30).flatten().double().cumsum(0)
        drawn = torch.rand(1, generator=generator, dtype=torch.double) * cumulative[-1]
        chosen[i] = flat[int(torch.searchsorted(cumulative, drawn).clamp_max(len(flat) - 1))]
    return chosen
