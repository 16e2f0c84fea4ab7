"""Product quantization of weights, layer after layer, then of the whole network (Stock et al. 2019, arXiv 1907.05686).

    for each layer, from the input side:
        learn its codebook on activations that come through the coded layers below it
        finetune its codewords towards the teacher
    finetune all codewords, norms and biases towards the teacher
    train them on by the target's own loss

Beyond the paper: errors are weighed by what the layer's outputs do to the network's, and bits have a price, one for all
layers, so that the bytes of a budget go where they save most error.
"""

import copy
import math
import sys
import time
from contextlib import suppress
from functools import partial

import torch
from torch import Generator, Tensor, nn

from lowenergy import networks, training
from lowenergy.base import device
from lowenergy.base.errors import UserError
from lowenergy.base.params import Pq, Precision
from lowenergy.base.progress import Progress
from lowenergy.compression.budget import share
from lowenergy.compression.codebooks import (
    Codebook,
    Metric,
    Moments,
    assign,
    bits,
    blocks_of,
    by_position,
    input_moments,
    learn,
    outputs_by_position,
    row_major,
)
from lowenergy.storage import artifact
from lowenergy.storage.artifact import Model
from lowenergy.storage.coded import CodedWeight, attach, coded_weights
from lowenergy.storage.encodings import Coded, Constant, Dense, Encoding, entropy
from lowenergy.training import Objective, Run

BatchNorm = nn.modules.batchnorm._BatchNorm
Shapes = dict[str, tuple[int, int]]  # by layer: block length and codewords
SCALES = 0.5, 1.0, 2.0  # of the params' block lengths, that allocation tries
TRIED_ON = 200  # inputs
SAMPLE = 2**13  # blocks a layer that are enough to find the price of a bit
SETTLING = 3  # times that codes are chosen by the bits that the choice before gave them
FILL = 0.99, 0.997  # of the budget, before finetuning, which may cost a few bytes


def compress(network: networks.AnyNetwork, target: str, objective: Objective, p: Pq, run: Run) -> Model:
    """Code every layer, finetune, encode.

    Raises:
        UserError: no price of bits makes the file fit pq.budget_bytes.
    """
    images = objective.inputs[:: max(1, len(objective.inputs) // p.calibration_images)].cpu()
    network = network.cpu().eval()
    generator = torch.Generator().manual_seed(run.seed)
    weights = output_weights(network, images, generator) if p.output_weights else None
    shapes = shapes_of(network, objective, images, weights, p, run)
    rate = price_of_bits(network, images, weights, shapes, p, objective.precision, run.seed) if p.budget_bytes else 0.0
    if rest := networks.left_out(network):
        run.fabric.print(f"{run.name}: of no layer, and uncoded: {', '.join(rest)}")
    code_layers(network, objective, images, weights, shapes, rate, p, run)
    fit_budget(network, target, p)
    networks.refresh_batchnorm(network, images)
    training.finetune(network, objective, p.finetune, run)
    if p.retrain.epochs:
        objective.retrain(network, p.retrain, run)
    return encoded(network, target)


# -- one layer --------------------------------------------------------------------------------------------------------


def block_length(layer: nn.Conv2d | nn.Linear, p: Pq) -> int:
    """Weights per block: `block_conv` (`block_small` in small layers) of a k x k convolution, `block_1x1` or `block_fc`
    inputs; at most what divides an output channel's weights."""
    if isinstance(layer, nn.Linear):
        wanted = p.block_fc
    elif layer.kernel_size == (1, 1):
        wanted = p.block_1x1
    else:
        wanted = p.block_small if layer.weight.numel() <= p.small_weights else p.block_conv
    row = layer.weight[0].numel()
    return max(d for d in range(1, wanted + 1) if row % d == 0)


def codewords_for(layer: nn.Conv2d | nn.Linear, d: int, p: Pq) -> int:
    """As many as asked for, clamped to a power of two of at most blocks / `vectors_per_codeword`, but at least 2 where
    there are as many blocks."""
    wanted = p.codewords_fc if isinstance(layer, nn.Linear) else p.codewords
    blocks = layer.weight.numel() // d
    return min(wanted, blocks, 2 ** max(1, (blocks // p.vectors_per_codeword).bit_length() - 1))


class PricedCode(CodedWeight):
    """A coded weight with what choosing its codes anew, at another price of bits, takes."""

    def __init__(self, found: Codebook, weight: Tensor, metric: Metric, rate: float, groups: int = 1) -> None:
        super().__init__(row_major(found.codes, groups), len(found.codewords), tuple(weight.shape))
        self.weight, self.metric, self.rate, self.groups = weight, metric, rate, groups
        self.first = self.codes.clone()

    def assign(self, codebook: Tensor, dearer: float) -> None:
        """Choose the codeword of each block anew, as if a bit had cost this many times as much.

        From the first codes on: choosing again from dear ones would not bring back a codeword that they left unused.
        """
        factors = self.metric.factors()
        white = blocks_of(self.weight, codebook.shape[1], self.groups) @ factors
        chosen = self.first.long()
        for _ in range(SETTLING):
            penalty = dearer * self.rate * bits(chosen, len(codebook))
            chosen, _ = assign(white, factors, self.metric.weights, codebook.detach(), penalty)
        self.codes.copy_(row_major(chosen, self.groups))


def groups_of(layer: nn.Conv2d | nn.Linear) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


class _LayerReachedError(Exception):
    pass


def moments_of(
    network: nn.Module, wanted: dict[str, int], images: Tensor, precision: Precision, *, only: bool = False
) -> dict[str, Moments]:
    """Input moments of the layers named, with the layers below them as they are now.

    Args:
        wanted: block length by layer.
        only: one layer is wanted; nothing above it is computed.
    """
    layers = networks.coded_layers(network)
    found: dict[str, Moments] = {}

    def look(name: str, module: nn.Module, inputs: tuple[Tensor]) -> None:
        with torch.autocast("cpu", enabled=False):  # sums of squares need all their bits
            seen = input_moments(layers[name], inputs[0].float(), wanted[name])
        found[name] = found[name] + seen if name in found else seen
        if only:
            raise _LayerReachedError

    handles = [layers[name].register_forward_pre_hook(partial(look, name)) for name in wanted]
    with torch.no_grad(), device.autocast("cpu", precision):
        for batch in images.split(64):
            with suppress(_LayerReachedError):
                network(batch)
    for handle in handles:
        handle.remove()
    return found


def grams_for(moments: Moments, p: Pq) -> Tensor:
    """What weighs the errors of blocks, (p, d, d), by `pq.gram`."""
    if p.gram == "none":
        return torch.eye(moments.sums.shape[1]).expand_as(moments.squares)
    if p.gram == "covariance":
        return moments.covariance()
    gram = moments.gram()
    return gram.mean(0, keepdim=True).expand_as(gram) if p.gram == "layer" else gram


def output_weights(network: nn.Module, images: Tensor, generator: Generator) -> dict[str, Tensor]:
    """What an error of each layer's output channels does to the logits: E Σ (∂(rᵀ logits) / ∂y)² over the pixels of an
    image, r ~ N(0, I), the diagonal of the Gauss-Newton matrix. (o,) by layer."""
    layers = networks.coded_layers(network)
    sums = {name: torch.zeros(layer.weight.shape[0]) for name, layer in layers.items()}

    def watch(name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            squares = gradient.float().square()
            if isinstance(layers[name], nn.Conv2d):
                sums[name] += squares.flatten(2).sum((0, 2))
            else:
                sums[name] += squares.flatten(0, -2).sum(0)

        output.register_hook(add)

    handles = [layer.register_forward_hook(partial(watch, name)) for name, layer in layers.items()]
    for batch in images.split(64):
        # Only the input's gradient is asked for: the weights collect none.
        batch = batch.clone().requires_grad_()
        logits = network(batch)
        torch.autograd.grad(logits, batch, torch.randn(logits.shape, generator=generator))
    for handle in handles:
        handle.remove()
    # A channel without effect still needs a code.
    return {name: total / len(images) + 1e-4 * total.mean() / len(images) + 1e-30 for name, total in sums.items()}


# -- all layers -------------------------------------------------------------------------------------------------------


def layers_to_code(network: nn.Module, p: Pq) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers whose weights become codewords.

    Raises:
        UserError: there is none.
    """
    layers = networks.coded_layers(network)
    first = next(iter(layers))
    found = {name: layer for name, layer in layers.items() if not (p.keep_first and name == first)}
    if not found:
        raise UserError("params.yaml: pq.keep_first leaves no layer to code; give false")
    return found


def shapes_of(
    network: networks.AnyNetwork,
    objective: Objective,
    images: Tensor,
    weights: dict[str, Tensor] | None,
    p: Pq,
    run: Run,
) -> Shapes:
    """Block length and codewords of each layer: the params', or with allocation `sensitivity` those that lower the
    objective's loss most and take no more bits, codes and codebooks, than the params' would.

    Each layer alone is coded in each of the ways; what was found is kept on disk, so that a killed run goes on there.
    Of an energy the loss is of the score as well.
    """
    layers = layers_to_code(network, p)
    plain = {name: (d := block_length(layer, p), codewords_for(layer, d, p)) for name, layer in layers.items()}
    if p.allocation == "uniform":
        return plain
    kept = training.kept(run, "ways")
    choices: dict[str, dict[tuple[int, int], tuple[int, float]]] = kept["choices"] if kept else {}
    index = torch.arange(0, len(objective.inputs), max(1, len(objective.inputs) // TRIED_ON), device=run.device)
    tried = copy.deepcopy(network).to(run.device)
    exact = training.mean_loss(tried, objective, index, run)
    ways = {name: _ways(layer, p) for name, layer in layers.items()}
    progress = Progress(f"{run.name}: codes of each layer tried", len(SCALES) * len(layers))
    for scale in SCALES:
        lengths = {name: of_layer[scale][0] for name, of_layer in ways.items()}
        moments = moments_of(network, lengths, images, objective.precision)
        for name, layer in layers.items():
            d, counts = ways[name][scale]
            groups, weight, of_layer = groups_of(layer), layer.weight.detach(), choices.setdefault(name, {})
            blocks = blocks_of(weight, d, groups)
            matter = weights[name] if weights else torch.ones(len(weight))
            metric = Metric(grams_for(moments[name], p), outputs_by_position(matter, len(blocks), groups))
            place = networks.coded_layers(tried)[name].weight
            for k in (k for k in counts if (d, k) not in of_layer):
                found = learn(blocks, metric, k, steps=4, generator=torch.Generator().manual_seed(run.seed))
                code = CodedWeight(row_major(found.codes, groups), k, tuple(weight.shape))
                with torch.no_grad():
                    place.copy_(code(found.codewords))
                of_layer[d, k] = (_bits(layer, d, k), training.mean_loss(tried, objective, index, run) - exact)
            with torch.no_grad():
                place.copy_(weight)
            training.keep(run, "ways", {"choices": choices})
            progress(1)
    shapes = share(choices, sum(_bits(layers[name], *shape) for name, shape in plain.items()))
    run.fabric.print(
        f"{run.name}: blocks and codewords {', '.join(f'{name} {d} {k}' for name, (d, k) in shapes.items())}"
    )
    return shapes


def _ways(layer: nn.Conv2d | nn.Linear, p: Pq) -> dict[float, tuple[int, list[int]]]:
    """Block lengths about as long as the params', half and twice; of each, numbers of codewords."""
    found = {}
    for scale in SCALES:
        scaled = {
            of: max(1, int(getattr(p, of) * scale)) for of in ("block_conv", "block_small", "block_1x1", "block_fc")
        }
        d = block_length(layer, p.model_copy(update=scaled))
        wanted = {
            of: [max(2, int(getattr(p, of) * more)) for more in (1 / 4, 1, 4)] for of in ("codewords", "codewords_fc")
        }
        counts = {
            codewords_for(layer, d, p.model_copy(update=dict(zip(wanted, pair, strict=True))))
            for pair in zip(*wanted.values(), strict=True)
        }
        found[scale] = (d, sorted(counts))
    return found


def _bits(layer: nn.Conv2d | nn.Linear, d: int, k: int) -> int:
    """Of codes and codebook."""
    return layer.weight.numel() // d * math.ceil(math.log2(k)) + 16 * k * d


def price_of_bits(
    network: nn.Module,
    images: Tensor,
    weights: dict[str, Tensor] | None,
    shapes: Shapes,
    p: Pq,
    precision: Precision,
    seed: int,
) -> float:
    """The price of a bit at which the codes of all layers together take about `budget_bytes`.

    A first estimate on a sample of each layer's output channels, on the uncoded network; fit_budget mends it.
    """
    assert p.budget_bytes is not None
    layers = layers_to_code(network, p)
    lengths = {name: d for name, (d, _) in shapes.items()}
    moments = moments_of(network, lengths, images, precision)
    wanted = 8.0 * p.budget_bytes
    sampled: list[tuple[float, Tensor, Tensor, Tensor, Codebook]] = []
    for name, layer in layers.items():
        groups = groups_of(layer)
        blocks = blocks_of(layer.weight.detach(), lengths[name], groups)
        every = max(1, blocks.shape[0] * blocks.shape[1] // SAMPLE)
        some = torch.arange(blocks.shape[1])[min(every // 2, blocks.shape[1] - 1) :: every]
        matter = (
            outputs_by_position(weights[name], len(blocks), groups)[..., some] if weights else torch.ones(len(some))
        )
        metric = Metric(grams_for(moments[name], p), matter)
        k = min(shapes[name][1], blocks.shape[0] * len(some))
        found = learn(blocks[:, some], metric, k, steps=4, generator=torch.Generator().manual_seed(seed))
        factors = metric.factors()
        scale = blocks.shape[1] / len(some)
        sampled.append((scale, blocks[:, some] @ factors, factors, metric.weights, found))
        wanted -= 16 * found.codewords.numel()
    coded = sum(layer.weight.numel() for layer in layers.values())
    wanted -= 16 * (sum(value.numel() for value in artifact.weights(network).values()) - coded)

    def taken(rate: float) -> float:
        total = 0.0
        for scale, white, factors, weight, found in sampled:
            codes = found.codes
            for _ in range(6):  # bits and choices settle on each other
                penalty = rate * bits(codes, len(found.codewords))
                codes, _ = assign(white, factors, weight, found.codewords, penalty)
            total += scale * codes.numel() * entropy(codes)
        return total

    low, high = -30.0, 10.0  # of log rate
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if taken(math.exp(middle)) > wanted else (low, middle)
    return math.exp((low + high) / 2)


def code_layers(
    network: nn.Module,
    objective: Objective,
    images: Tensor,
    weights: dict[str, Tensor] | None,
    shapes: Shapes,
    rate: float,
    p: Pq,
    run: Run,
) -> None:
    """Replace the weights of `network` by codewords, layer after layer from the input side.

    Each layer reached is kept on disk, so that a killed run goes on there.

    Args:
        images: (n, c, h, w) whose activations weigh the errors; those of each layer come through the coded layers
            below it, so that later codebooks make up for earlier errors.
        weights: by layer, how much an error of each output channel matters; None for all alike.
        shapes: by layer, block length and codewords.
        rate: price of a bit of code.
    """
    layers = layers_to_code(network, p)
    generator = torch.Generator().manual_seed(run.seed)
    done = _resume(network, layers, generator, rate, run)
    started = time.monotonic()
    total = sum(layer.weight.numel() for layer in list(layers.values())[done:])
    for name, layer in list(layers.items())[done:]:
        d, k = shapes[name]
        moments = moments_of(network, {name: d}, images, objective.precision, only=True)[name]
        weight, groups = layer.weight.detach(), groups_of(layer)
        blocks = blocks_of(weight, d, groups)
        matter = weights[name] if weights else torch.ones(len(weight))
        metric = Metric(grams_for(moments, p), outputs_by_position(matter, len(blocks), groups))
        found = learn(blocks, metric, k, steps=p.kmeans_steps, generator=generator, rate=rate)
        attach(layer, found.codewords, PricedCode(found, weight, metric, rate, groups))
        correct_bias(layer, blocks_of(weight - layer.weight.detach(), d, groups), moments)
        done += 1
        note = _finetune_layer(network, layer, objective, p, run)
        _keep(network, done, generator, run)
        left = sum(layer.weight.numel() for layer in list(layers.values())[done:])
        seconds = (time.monotonic() - started) * left / max(1, total - left)
        print(
            f"{run.name}  layer {done}/{len(layers)} {name}: blocks of {d}, {len(found.codewords)} codewords, "
            f"{entropy(found.codes) / d:.3f} bits/weight, output error {found.before:.2%} -> {found.after:.2%}"
            f"{note}, {seconds:.0f} s left",
            flush=True,
        )


def correct_bias(layer: nn.Conv2d | nn.Linear, error: Tensor, moments: Moments) -> None:
    """Put the mean of each output right after its blocks lost `error`, (p, o, d); BatchNorm does without."""
    if layer.bias is not None:
        groups = groups_of(layer)
        lost = torch.einsum("pod,pd->po", error, moments.mean())
        layer.bias.data += lost.unflatten(0, (groups, -1)).sum(1).flatten()


def _finetune_layer(network: nn.Module, layer: nn.Module, objective: Objective, p: Pq, run: Run) -> str:
    """Move this layer's codewords by the mean gradient of their blocks, as published."""
    if not p.layer_finetune.steps:
        return ""
    codebook, code = next((c, w) for _, at, c, w in coded_weights(network) if at is layer)
    counts = torch.bincount(code.codes.int(), minlength=len(codebook)).clamp_min(1)[:, None].to(run.device)
    network.to(run.device)  # the objective lives there; the parameters stay the same objects
    optimizer = torch.optim.SGD([codebook], p.layer_finetune.lr, momentum=0.9)
    order = torch.randperm(len(objective.inputs), generator=torch.Generator().manual_seed(run.seed))
    network.train()
    values = []
    for step in range(p.layer_finetune.steps):
        start = step * p.finetune.batch_size % len(order)
        index = order[start:][: p.finetune.batch_size].to(run.device)
        with run.autocast(objective.precision):
            loss, _ = objective.loss(network, index, run)
        (gradient,) = torch.autograd.grad(loss, [codebook])
        codebook.grad = gradient / counts
        optimizer.step()
        values.append(loss.item())
    codebook.grad = None
    network.eval().cpu()
    return f", loss {values[0]:.4g} -> {values[-1]:.4g}"


def _keep(network: nn.Module, done: int, generator: Generator, run: Run) -> None:
    metrics = {name: code.metric for name, _, _, code in coded_weights(network) if isinstance(code, PricedCode)}
    content = {
        "done": done,
        "network": network.state_dict(),
        "grams": {name: metric.grams.clone() for name, metric in metrics.items()},
        "weights": {name: metric.weights.clone() for name, metric in metrics.items()},
        "generator": generator.get_state(),
        "own": run.generator.get_state(),
    }
    training.keep(run, "layers", content)


def _resume(
    network: nn.Module, layers: dict[str, nn.Conv2d | nn.Linear], generator: Generator, rate: float, run: Run
) -> int:
    """Take up the layers that a killed run has coded; how many."""
    content = training.kept(run, "layers")
    if content is None:
        return 0
    state = content["network"]
    for name, layer in list(layers.items())[: content["done"]]:
        at, weight = f"{name}.parametrizations.weight", layer.weight.detach()
        groups = groups_of(layer)
        codebook, codes = state[f"{at}.original"], by_position(state[f"{at}.0.codes"].long(), len(weight), groups)
        metric = Metric(content["grams"][name], content["weights"][name])
        attach(layer, codebook, PricedCode(Codebook(codebook, codes, 0, 0), weight, metric, rate, groups))
    network.load_state_dict(state)
    generator.set_state(content["generator"])
    run.generator.set_state(content["own"].cpu())
    print(f"{run.name}: resumed after {content['done']} layers", flush=True)
    return int(content["done"])


# -- the whole network ------------------------------------------------------------------------------------------------


def fit_budget(network: networks.AnyNetwork, target: str, p: Pq) -> None:
    """Choose all codes anew at the price of a bit that brings the file just below the budget: bracket it, then bisect.

    Bytes need not fall with every step of the price: of the files that fit the largest is kept. Where one fits whose
    bits cost nothing, there is nothing to look for.

    Raises:
        UserError: no price does.
    """
    if p.budget_bytes is None:
        return
    low, high = FILL[0] * p.budget_bytes, FILL[1] * p.budget_bytes
    smallest = sys.maxsize
    dear = cheap = None  # the price, as a factor of the first one, of a file that fits, and of one that does not
    price, stride = 1.0, 1.1
    coded = [(codebook, code) for _, _, codebook, code in coded_weights(network)]
    best, kept = 0, [code.codes.clone() for _, code in coded]
    for _ in range(24):
        size = len(artifact.to_bytes(encoded(network, target), {}))
        print(f"{target}/pq  at {price:.3g} times the price of a bit: {size:,} bytes", flush=True)
        smallest = min(smallest, size)
        if best < size <= high:
            best, kept = size, [code.codes.clone() for _, code in coded]
        if low < best:
            break
        if price:
            dear, cheap = (price, cheap) if size <= high else (dear, price)
        elif size <= high:  # even with bits for nothing
            break
        if dear and cheap:
            new = math.sqrt(dear * cheap)
        elif dear == price == 1:  # the first file fits: so does, perhaps, one whose bits cost nothing
            new = 0.0
        else:
            last = cheap or dear or price
            new, stride = (last * stride if cheap else last / stride), min(stride**2, 100)
        for codebook, code in coded:
            assert isinstance(code, PricedCode)
            code.assign(codebook, new)
        price = new
    if not best:
        raise UserError(
            f"params.yaml: pq.budget_bytes = {p.budget_bytes}: the smallest file found has {smallest:,} bytes; give "
            "more, or larger blocks or fewer codewords"
        )
    for (_, code), codes in zip(coded, kept, strict=True):
        code.codes.copy_(codes)


def encoded(network: networks.AnyNetwork, target: str) -> Model:
    """The network as it is stored: indices and codewords, everything else float16, BatchNorm as scale and shift."""
    coded = {name: (codebook, code) for name, _, codebook, code in coded_weights(network)}
    tensors: dict[str, Encoding] = {}
    for name, (codebook, code) in coded.items():
        used, codes = code.codes.cpu().long().unique(return_inverse=True)
        tensors[f"{name}.weight"] = Coded(codes, codebook.detach().cpu().half()[used], code.shape)
    for name, value in artifact.weights(network).items():
        if ".parametrizations." not in name:
            tensors[name] = Dense(value.half() if value.is_floating_point() else value)
    for name, norm in network.named_modules():
        if isinstance(norm, BatchNorm) and norm.affine and norm.running_mean is not None:
            assert norm.running_var is not None
            scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().cpu()
            shift = (norm.bias - norm.running_mean * scale.to(norm.bias.device)).detach().cpu()
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = Dense(scale.half()), Dense(shift.half())
            tensors[f"{name}.running_mean"] = Constant(0.0, tuple(shift.shape))
            tensors[f"{name}.running_var"] = Constant(1 - norm.eps, tuple(shift.shape))
    return Model(target, network.spec, tensors)
