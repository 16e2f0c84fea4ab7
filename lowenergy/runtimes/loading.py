"""From a stored model back to a ready network."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from lowenergy import energies, networks
from lowenergy.base.errors import UserError
from lowenergy.base.files import FileError
from lowenergy.base.params import Precision
from lowenergy.energies import Energy, ExplicitEnergy
from lowenergy.storage import artifact
from lowenergy.storage.artifact import Model
from lowenergy.storage.coded import CodedWeight, attach
from lowenergy.storage.encodings import Coded


def dense_network(model: Model) -> networks.AnyNetwork:
    """Every tensor decoded to float32 in the network of the model's spec; activations are not rounded."""
    return model.build()


def coded_network(model: Model) -> networks.AnyNetwork:
    """The network with its product-quantized weights still coded: each layer decodes its own whenever it is used."""
    network = dense_network(model)
    for name, layer in networks.coded_layers(network).items():
        encoded = model.tensors[f"{name}.weight"]
        if isinstance(encoded, Coded):
            attach(layer, encoded.codebook.float(), CodedWeight(encoded.codes, len(encoded.codebook), encoded.shape))
    return network


def network_of(model: Model, *, coded: bool = False) -> nn.Module:
    """The ready network, in evaluation mode, on the CPU."""
    if model.activations:
        from lowenergy.runtimes import int8  # torchao takes seconds to import, and no other model needs it

        return int8.restore(model)
    return coded_network(model) if coded else dense_network(model)


def energy_of(model: Model, network: nn.Module, precision: Precision = "32-true") -> Energy:
    """The energy of a stored EBM or JEM, `network` being what network_of made of it.

    Args:
        precision: of the network, see energies.energy_of; int8 networks bring their own arithmetic, in both directions.
    Raises:
        FileError: the model has no energy.
    """
    if model.spec.head is None:
        raise FileError(f"a {model.target} has no energy to sample from; give an EBM or a JEM")
    if model.activations:
        from lowenergy.runtimes import int8

        graph = int8.restore(model, gradient=True)
        return ExplicitEnergy(network, graph.to(next(network.parameters()).device), model.spec.head)
    return energies.energy_of(network.to(memory_format=torch.channels_last), model.spec.head, precision, frozen=True)


def load(
    path: str | Path, *, coded: bool = False, trust: Collection[str] = (), network: nn.Module | None = None
) -> nn.Module:
    """The ready network of an artifact: images (batch, c, h, w) in [-1, 1] -> logits (batch, outputs).

    The network carries its `spec`; networks quantized to int8 come as a prepared PT2E graph whose forward pass rounds
    as int8 does and whose backward pass is straight-through. (Where `lowenergy` itself samples from an int8 EBM, the
    gradient's convolutions round as well: energy_of.)

    Args:
        coded: keep product-quantized weights coded in memory, which takes as little of it as the file, and more time.
        trust: import paths, modules or files, such as "mynets.py", that a network may come from which is neither of the
            zoo nor of torchvision or timm. A file is data: without this it makes nothing be imported.
        network: such a network, freshly built, instead of importing it; it is left as it is.
    Raises:
        FileError: missing, truncated, tampered with, or written by a newer version.
        NetworkError: its network is of none of these, or cannot be built.
    """
    try:
        model, _ = artifact.read(path, trust=None if network is not None else trust)
        return network_of(replace(model, body=network), coded=coded)
    except UserError:
        raise
    except (ValueError, RuntimeError) as error:
        raise FileError(f"{path}: {error}; make it again") from None
