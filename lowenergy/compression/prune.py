"""Pruning: drop single weights and store the rest sparse, or remove whole channels for good."""

import torch
import torch_pruning as tp
from torch import nn
from torch.nn.utils import prune as magnitude

from lowenergy import models, training
from lowenergy.artifact import Model, dense, weights
from lowenergy.encodings import Dense, Sparse
from lowenergy.params import Prune
from lowenergy.training import Objective, Run


def compress(network: models.Network, target: str, objective: Objective, p: Prune, run: Run) -> Model:
    """Prune, finetune towards `objective`, encode.

    Unstructured pruning holds its masks through finetuning, so what reaches the file is as sparse as was asked for.
    """
    if p.kind == "structured":
        remove_channels(network, p.amount, conv_only=p.scope == "conv")
        training.finetune(network, objective, p.finetune, run)
        return dense(network, target)
    mask_weights(network, p.amount, conv_only=p.scope == "conv")
    training.finetune(network, objective, p.finetune, run)
    for layer in models.coded_layers(network).values():
        if magnitude.is_pruned(layer):
            magnitude.remove(layer, "weight")
    tensors = {
        name: Sparse.encode(value) if (value == 0).float().mean() > 1 / 32 else Dense(value)
        for name, value in weights(network).items()
    }
    return Model(target, network.spec, tensors)


def mask_weights(network: nn.Module, amount: float, *, conv_only: bool) -> None:
    """Mask the `amount` of weights that are smallest in magnitude.

    Args:
        conv_only: rank and prune the convolutions' weights only; otherwise all layers' are ranked together.
    """
    layers = [
        (layer, "weight")
        for layer in models.coded_layers(network).values()
        if isinstance(layer, nn.Conv2d) or not conv_only
    ]
    magnitude.global_unstructured(layers, pruning_method=magnitude.L1Unstructured, amount=amount)


def remove_channels(network: models.Network, amount: float, *, conv_only: bool) -> None:
    """Remove the `amount` of channels whose coupled weights are smallest (Torch-Pruning's dependency graph, L1).

    Args:
        conv_only: leave hidden fully connected layers as wide as they are. The outputs always stay.
    """
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    pruner = tp.pruner.BasePruner(
        network.eval(),
        torch.zeros(1, *network.spec.input_shape),
        importance=tp.importance.GroupMagnitudeImportance(p=1),
        global_pruning=True,
        pruning_ratio=amount,
        max_pruning_ratio=0.9,  # no layer may vanish
        ignored_layers=linear if conv_only else [network.fc],
    )
    pruner.step()
