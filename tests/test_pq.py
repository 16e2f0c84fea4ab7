"""Product quantization: the Gram identity against brute force, k-means, and coded networks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from lowenergy import data, models, params
from lowenergy.compression import pq

shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 2))


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 2**31))
def test_gram_of_a_convolution_is_that_of_its_input_blocks(shape: tuple[int, int, int, int], seed: int) -> None:
    """Σ over blocks and positions of (x · e)², brute force, is eᵀ G e for any error e of a block."""
    channels, out, kernel, stride = shape
    generator = Generator().manual_seed(seed)
    layer = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    d = kernel * kernel if kernel > 1 else channels
    inputs = torch.randn(2, channels, 5, 5, generator=generator)
    gram = pq.input_gram(layer, inputs, d)
    error = torch.randn(d, generator=generator)
    # Brute force: a layer whose every block is the error, one input block at a time.
    total, rows = 0.0, 0
    for block in range(channels * kernel * kernel // d):
        weight = torch.zeros(1, channels * kernel * kernel)
        weight[0, block * d : (block + 1) * d] = error
        response = F.conv2d(inputs, weight.view(1, channels, kernel, kernel), None, stride, kernel // 2)
        total += float(response.square().double().sum())
        rows += response.numel()
    torch.testing.assert_close(float(error.double() @ gram @ error.double()), total / rows, rtol=1e-4, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(2, 8), st.integers(8, 40), st.integers(0, 2**31))
def test_whitened_kmeans_assigns_by_the_output_error(d: int, k: int, n: int, seed: int) -> None:
    """Every block has the codeword with the least ‖X̃(v - c)‖², computed by brute force over sampled rows X̃."""
    generator = Generator().manual_seed(seed)
    rows, blocks = (torch.randn(m, d, generator=generator) for m in (50, n))
    gram = rows.double().T @ rows.double() / len(rows)
    codebook, codes = pq.whitened_kmeans(blocks, gram, min(k, n), steps=10, generator=generator)
    errors = (rows @ (blocks[:, None] - codebook[None]).flatten(0, 1).T).square().mean(0).view(n, -1)
    chosen = errors[torch.arange(n), codes]
    assert (chosen <= errors.min(1).values * (1 + 1e-3) + 1e-5).all()


def objective(blocks: Tensor, gram: Tensor, codebook: Tensor, codes: Tensor) -> float:
    error = (blocks - codebook[codes]).double()
    return float((error @ gram * error).sum())


def test_whitening_beats_plain_kmeans_where_inputs_differ(generator: Generator) -> None:
    blocks = torch.randn(600, 4, generator=generator)
    gram = torch.diag(torch.tensor([100.0, 1.0, 1.0, 0.01], dtype=torch.float64))
    aware = pq.whitened_kmeans(blocks, gram, 16, steps=20, generator=generator)
    plain = pq.whitened_kmeans(blocks, torch.eye(4, dtype=torch.float64), 16, steps=20, generator=generator)
    assert objective(blocks, gram, *aware) < 0.5 * objective(blocks, gram, *plain)


def test_as_many_codewords_as_blocks_is_exact_and_more_are_refused(generator: Generator) -> None:
    blocks, gram = torch.randn(20, 3, generator=generator), torch.eye(3, dtype=torch.float64)
    codebook, codes = pq.whitened_kmeans(blocks, gram, 20, steps=20, generator=generator)
    torch.testing.assert_close(codebook[codes], blocks, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="21 codewords for 20 blocks"):
        pq.whitened_kmeans(blocks, gram, 21, steps=1, generator=generator)


def test_repeated_blocks_and_dead_inputs_do_no_harm(generator: Generator) -> None:
    blocks = torch.ones(30, 3)
    codebook, codes = pq.whitened_kmeans(blocks, torch.zeros(3, 3).double(), 4, steps=5, generator=generator)
    torch.testing.assert_close(codebook[codes], blocks)


def test_coding_keeps_the_function_roughly_and_trains_codewords_only(
    splits: data.Splits, small: params.Params, generator: Generator
) -> None:
    network = models.build(models.Spec("resnet8", 16, "3x3", "relu", "batch", 1, 8, 10), seed=0).eval()
    images = data.to_float(splits.train.images[:200])
    before = network(images)
    pq.code_layers(network, images, small.pq, generator)
    after = network(images)
    assert F.cosine_similarity(before, after, dim=1).mean() > 0.9
    layer = network.features[2].first.conv
    assert len(layer.weight.flatten(2).flatten(0, 1).unique(dim=0)) <= small.pq.codewords
    trainable = {name for name, w in network.named_parameters() if "parametrizations" in name}
    assert trainable and all(name.endswith("weight.original") for name in trainable)


def test_refreshed_norms_have_the_statistics_of_the_images() -> None:
    network = models.build(models.Spec("cnn", 4, "3x3", "relu", "batch", 1, 8, 3), seed=0)
    images = torch.rand(40, 1, 8, 8)
    pq.refresh_batchnorm(network, images, batch_size=20)
    mean = network.features[0].conv(images).mean((0, 2, 3))
    torch.testing.assert_close(network.features[0].norm.running_mean, mean, rtol=1e-3, atol=1e-4)
