"""Product quantization of weights, layer after layer, then of the whole network (Stock et al. 2019, arXiv 1907.05686).

    order the channels so that weights that are alike share a block, if asked to
    for each layer, from the input side:
        learn its codebook on activations that come through the coded layers below it
        finetune its codewords towards the teacher
    finetune all codewords, norms and biases towards the teacher
    train them further by the target's own loss

Beyond the paper: errors are weighted by how the layer's outputs affect the network's, and bits have one price for all
layers, so that the bytes of a budget go where they save most error.
"""

import time
from functools import reduce
from operator import add

import torch
from torch import Generator, Tensor, nn

from lowenergy import networks, training
from lowenergy.compression.pq import Params, moving
from lowenergy.compression.pq.activations import moments_of, output_weights, plain_products
from lowenergy.compression.pq.allocation import shapes_of
from lowenergy.compression.pq.codebooks import Codebook, Metric, Moments, blocks_of, by_position, learn
from lowenergy.compression.pq.encoding import encoded
from lowenergy.compression.pq.layers import (
    Layer,
    PricedCode,
    Shape,
    blocks_and_metric,
    groups_of,
    layers_to_code,
    owners_of,
)
from lowenergy.compression.pq.price import check, fit_again, fit_budget, keep_budget, price_of_bits
from lowenergy.storage.artifact import Model
from lowenergy.storage.coded import attach, coded_weights
from lowenergy.storage.encodings import entropy
from lowenergy.training import Objective, Run

NORMS = 500  # images, at least, over which the norms' statistics are averaged


def compress(network: networks.Network, target: str, objective: Objective, p: Params, run: Run) -> Model:
    """Code every layer, finetune, encode.

    The file of the returned model, with run.provenance, has at most pq.budget_bytes.

    Raises:
        UserError: no file is that small; or a weight, or what a layer sees, is not finite.
    """
    network = network.cpu().eval()
    check(network, target, p, run)
    images = some(objective, p.calibration_images)
    if p.permute:
        from lowenergy.compression.pq.permuting import permute  # with Torch-Pruning, which takes a second to import

        permute(network, images, p, run)
    generator = torch.Generator().manual_seed(run.seed)
    weights = output_weights(network, images, generator) if p.output_weights else None
    shapes = shapes_of(network, objective, images, weights, p, run)
    rate = price_of_bits(network, images, weights, shapes, p, objective.precision, run.seed) if p.budget_bytes else 0.0
    if rest := networks.left_out(network):
        run.say(f"of no layer, and uncoded: {', '.join(rest)}")
    code_layers(network, objective, images, weights, shapes, rate, p, run)
    price = fit_budget(network, target, p, run)
    networks.refresh_batchnorm(network, some(objective, max(p.calibration_images, NORMS)))
    with moving.codes(network, p, run, lambda: fit_again(network, target, p, run, price)) as move:
        training.finetune(network, objective, p.finetune, run, before_step=move)
    if p.retrain.epochs:
        objective.retrain(network, p.retrain, run)
    keep_budget(network, target, p, run)
    return encoded(network, target)


def some(objective: Objective, count: int) -> Tensor:
    """About `count` of the objective's inputs, from all over, on the CPU."""
    return objective.inputs[:: max(1, len(objective.inputs) // count)].cpu()


def code_layers(
    network: networks.Network,
    objective: Objective,
    images: Tensor,
    weights: dict[str, Tensor] | None,
    shapes: dict[str, Shape],
    rate: float,
    p: Params,
    run: Run,
) -> None:
    """Replace the weights of `network` by codewords, layer after layer from the input side.

    Progress is kept on disk after each layer, so that a killed run resumes there.

    Args:
        images: (n, c, h, w) whose activations weigh the errors; those of each layer come through the coded layers
            below it, so that later codebooks make up for earlier errors.
        weights: by layer, how much an error of each output channel matters; None for all alike.
        shapes: by layer, block length and codewords.
        rate: price of a bit of code.
    """
    layers = layers_to_code(network, p)
    owners = {name: owners_of(network, layer) for name, layer in layers.items()}
    generator = torch.Generator().manual_seed(run.seed)
    plain = plain_products(network, [name for of_layer in owners.values() for name in of_layer], images[:2])
    done = _resume(network, layers, generator, rate, run)
    started = time.monotonic()
    total = sum(layer.weight.numel() for layer in list(layers.values())[done:])
    for name, layer in list(layers.items())[done:]:
        d, k = shapes[name]
        moments = moments_of(network, dict.fromkeys(owners[name], d), images, objective.precision, only=True)
        weight, groups = layer.weight.detach(), groups_of(layer)
        blocks, metric = blocks_and_metric(name, layer, d, reduce(add, moments.values()), weights, p)
        learnt = learn(blocks, metric, k, steps=p.kmeans_steps, generator=generator, rate=rate)
        attach(network, layer, learnt.codewords, PricedCode(learnt, weight, metric, rate, groups))
        for owner, of_owner in owners[name].items():
            if owner in plain:
                correct_bias(of_owner, blocks_of(weight - layer.weight.detach(), d, groups), moments[owner])
        done += 1
        note = _finetune_layer(network, layer, objective, p, run)
        _keep(network, done, generator, run)
        left = sum(layer.weight.numel() for layer in list(layers.values())[done:])
        seconds = (time.monotonic() - started) * left / max(1, total - left)
        print(
            f"{run.name}  layer {done}/{len(layers)} {name}: blocks of {d}, {len(learnt.codewords)} codewords, "
            f"{entropy(learnt.codes) / d:.3f} bits/weight, output error {learnt.before:.2%} -> {learnt.after:.2%}"
            f"{note}, {seconds:.0f} s left",
            flush=True,
        )


def correct_bias(layer: Layer, error: Tensor, moments: Moments) -> None:
    """Correct the mean of each output after its blocks lost `error`, (p, o, d). Without a bias, BatchNorm does it."""
    if layer.bias is not None:
        groups = groups_of(layer)
        lost = torch.einsum("pod,pd->po", error, moments.mean())
        layer.bias.data += lost.unflatten(0, (groups, -1)).sum(1).flatten()


def _finetune_layer(network: networks.Network, layer: nn.Module, objective: Objective, p: Params, run: Run) -> str:
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


def _keep(network: networks.Network, done: int, generator: Generator, run: Run) -> None:
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


def _resume(network: networks.Network, layers: dict[str, Layer], generator: Generator, rate: float, run: Run) -> int:
    """Restore the layers that a killed run has coded; return their number."""
    content = training.kept(run, "layers")
    if content is None:
        return 0
    state = content["network"]
    for name, layer in list(layers.items())[: content["done"]]:
        at, weight = f"{name}.parametrizations.weight", layer.weight.detach()
        groups = groups_of(layer)
        codebook, codes = state[f"{at}.original"], by_position(state[f"{at}.0.codes"].long(), len(weight), groups)
        metric = Metric(content["grams"][name], content["weights"][name])
        code = PricedCode(Codebook(codebook, codes, 0, 0), weight, metric, rate, groups)
        attach(network, layer, codebook, code)
    network.load_state_dict(state)
    generator.set_state(content["generator"])
    run.generator.set_state(content["own"].cpu())
    print(f"{run.name}: resumed after {content['done']} layers", flush=True)
    return int(content["done"])
