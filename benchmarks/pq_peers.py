"""Codebook learning side by side: our solver, the published E and M steps, and k-means of the weights.

    python benchmarks/pq_peers.py                                          # a made-up 512x512x3x3 layer
    python benchmarks/pq_peers.py --model models/classifier.safetensors --layer features.9.second.conv

All learn 256 codewords for the same blocks of 9. The error is the published objective, Σ ‖X̃(v - c)‖² / Σ ‖X̃v‖², over
all input blocks X̃ of held-out images; everyone may look at the other half only.

The published E step (Stock et al. 2019, as its code does it) forms X̃(v - c) for every block, codeword and sampled row.
On a layer of this size that takes minutes an iteration, so it is timed on a slice of the blocks and multiplied up; the
codebook it arrives at is computed with the same steps through the Gram matrix of the same sampled rows. On a small
layer, first, both ways are run to the end, to show that they choose the same codes.
"""

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor, nn

from lowenergy import data
from lowenergy.compression.pq.codebooks import Metric, Moments, blocks_of, input_moments, learn
from lowenergy.runtimes.loading import load

ROWS, ITERATIONS = 1000, 100  # sampled rows (the paper's code takes far more) and E/M iterations, as published


# -- the published steps ----------------------------------------------------------------------------------------------


def published_distances(blocks: Tensor, codewords: Tensor, rows: Tensor) -> Tensor:
    """‖X̃(v - c)‖² of every pair, (n, k), formed as published: differences first, then the activations."""
    differences = blocks[:, None] - codewords  # (n, k, d)
    return (differences @ rows.T).square_().sum(2)  # (n, k, rows) in between


def published_em(
    blocks: Tensor, rows: Tensor, k: int, iterations: int, nearest: Callable[[Tensor, Tensor], Tensor], seed: int
) -> tuple[Tensor, Tensor]:
    """Random start; E: nearest codeword by `nearest`; M: X̃⁺X̃ times the mean of the blocks; empty clusters are refilled
    from the largest one, slightly perturbed."""
    generator = torch.Generator().manual_seed(seed)
    codewords = blocks[torch.randperm(len(blocks), generator=generator)[:k]].clone()
    project = torch.linalg.pinv(rows) @ rows  # (d, d)
    for _ in range(iterations):
        codes = nearest(blocks, codewords)
        counts = torch.bincount(codes, minlength=k)
        sums = torch.zeros_like(codewords).index_add_(0, codes, blocks)
        codewords = sums / counts.clamp_min(1)[:, None] @ project.T
        for empty in (counts == 0).nonzero()[:, 0].tolist():
            largest = int(counts.argmax())
            nudge = 1e-8 * torch.randn(codewords.shape[1], generator=generator)
            codewords[empty], codewords[largest] = codewords[largest] + nudge, codewords[largest] - nudge
            counts[largest] = counts[empty] = counts[largest] // 2
    return codewords, nearest(blocks, codewords)


def through_gram(rows: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    factor = torch.linalg.cholesky(rows.double().T @ rows.double() + 1e-9 * torch.eye(rows.shape[1])).float()

    def nearest(blocks: Tensor, codewords: Tensor) -> Tensor:
        white, centers = blocks @ factor, codewords @ factor
        parts = [torch.addmm(centers.square().sum(1), part, centers.T, alpha=-2) for part in white.split(2**15)]
        return torch.cat([part.argmin(1) for part in parts])

    return nearest


def directly(rows: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda blocks, codewords: torch.cat(
        [published_distances(part, codewords, rows).argmin(1) for part in blocks.split(64)]
    )


# -- the layer --------------------------------------------------------------------------------------------------------


def made_up_layer() -> tuple[nn.Conv2d, Tensor]:
    """Heavy-tailed weights and smooth, rectified activations."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(512, 512, 3, padding=1, bias=False)
    noise = torch.randn(layer.weight.shape, generator=generator)
    layer.weight.data = 0.01 * noise * torch.rand(512, 512, 1, 1, generator=generator)
    inputs = nn.functional.avg_pool2d(torch.randn(128, 512, 6, 6, generator=generator), 3, 1)
    return layer, (inputs * torch.rand(512, 1, 1, generator=generator)).relu()


def real_layer(model: str, name: str) -> tuple[nn.Conv2d, Tensor]:
    """A layer of a model file, and what reaches it from the training images."""
    network, images = load(model), data.load("data/splits.safetensors").train.images[:256]
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    found: list[Tensor] = []
    layer.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    with torch.no_grad():
        for batch in images.split(64):
            network(data.to_float(batch))
    return layer, torch.cat(found)


def timed(make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, float]:
    start = time.perf_counter()
    codewords, codes = make()
    return codewords, codes, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="file of a classifier, EBM or JEM; data/splits.safetensors feeds it")
    parser.add_argument("--layer", default="features.9.second.conv", help="a 3x3 convolution of it")
    parser.add_argument("--slice", type=int, default=512, help="blocks on which the published E step is timed")
    args = parser.parse_args()
    layer, inputs = real_layer(args.model, args.layer) if args.model else made_up_layer()
    seen, unseen = inputs.chunk(2)
    blocks = blocks_of(layer.weight.detach(), 9)  # (p, o, 9)
    flat = blocks.transpose(0, 1).flatten(0, 1)  # (n, 9), row-major
    columns = nn.functional.unfold(seen, 3, padding=1, stride=layer.stride).transpose(1, 2).reshape(-1, 9)
    rows = columns[torch.randperm(len(columns), generator=torch.Generator().manual_seed(0))[:ROWS]]
    held_out = input_moments(layer, unseen, 9).gram()
    shared = held_out.mean(0)

    def error(codewords: Tensor, codes: Tensor, gram: Tensor) -> str:
        """Relative, of codes in row-major order, with `gram` (p, 9, 9) or (9, 9)."""
        gram = gram.expand(len(blocks), 9, 9)
        off = blocks - codewords[codes].view(blocks.shape[1], blocks.shape[0], 9).transpose(0, 1)
        total = torch.einsum("pod,pde,poe->", blocks, gram, blocks)
        return f"{float(torch.einsum('pod,pde,poe->', off, gram, off) / total):.4f}"

    small = flat[:: max(1, len(flat) // 512)]
    both = [published_em(small, rows, 16, 5, nearest(rows), 0)[1] for nearest in (directly, through_gram)]
    same = float((both[0] == both[1]).float().mean())
    print(f"published E/M on {len(small)} blocks, directly and through the Gram matrix: {same:.1%} the same codes")

    k = min(256, len(flat) // 4)
    part = flat[: args.slice]
    start = time.perf_counter()
    directly(rows)(part, flat[:k])
    e_step = (time.perf_counter() - start) * len(flat) / len(part)
    codewords, codes, _ = timed(lambda: published_em(flat, rows, k, ITERATIONS, through_gram(rows), 0))
    published = e_step * ITERATIONS

    table = Table(title=f"{tuple(layer.weight.shape)}, {k} codewords for {len(flat):,} blocks of 9")
    for column in ("method", "seconds", "published / it", "error, one Gram (published)", "error, Gram by position"):
        table.add_column(column, justify="left" if column == "method" else "right")

    def add(name: str, seconds: float, codewords: Tensor, codes: Tensor) -> None:
        found = error(codewords, codes, shared), error(codewords, codes, held_out)
        table.add_row(name, f"{seconds:,.1f}", f"{published / seconds:,.0f}x", *found)

    add(f"published E/M, {ITERATIONS} iterations, {ROWS} rows (E steps estimated)", published, codewords, codes)

    def ours(gram: Callable[[Moments], Tensor]) -> tuple[Tensor, Tensor]:
        metric = Metric(gram(input_moments(layer, seen, 9)), torch.ones(blocks.shape[1]))
        found = learn(blocks, metric, k, steps=20, generator=torch.Generator().manual_seed(0))
        return found.codewords, found.codes.T.flatten()

    one = timed(lambda: ours(lambda m: m.gram().mean(0, keepdim=True).expand_as(m.squares)))
    add("ours, one Gram matrix (the published objective)", one[2], *one[:2])
    by_position = timed(lambda: ours(Moments.gram))
    add("ours, Gram matrix by position", by_position[2], *by_position[:2])

    def sklearn(kind: type) -> tuple[Tensor, Tensor]:
        extra = {"batch_size": 8192} if kind is MiniBatchKMeans else {}
        found = kind(k, n_init=1, max_iter=20, random_state=0, **extra).fit(flat.numpy())
        return torch.from_numpy(found.cluster_centers_).float(), torch.from_numpy(found.labels_).long()

    for kind in (KMeans, MiniBatchKMeans):
        of_weights = timed(lambda kind=kind: sklearn(kind))  # type: ignore[misc]
        add(f"weights only, scikit-learn {kind.__name__}", of_weights[2], *of_weights[:2])
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
