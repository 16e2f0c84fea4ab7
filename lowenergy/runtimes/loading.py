"""Turn a stored model back into a ready network."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from lowenergy import energies, networks
from lowenergy.base.files import FileError
from lowenergy.base.precision import Precision
from lowenergy.energies import Energy, ExplicitEnergy
from lowenergy.storage import artifact
from lowenergy.storage.artifact import Model
from lowenergy.storage.coded import CodedWeight, attach
from lowenergy.storage.encodings import Coded

SAME = 1e-4  # how far outputs may differ, as a fraction of their norm


def dense_network(model: Model) -> networks.Network:
    """Build the network of the model's spec with every tensor decoded to float32; activations are not rounded."""
    return model.build()


def coded_network(model: Model) -> networks.Network:
    """Build the network with product-quantized weights still coded: each layer decodes its weight whenever it is used.

    Raises:
        FileError: this network gives other outputs, because its code writes into its weights.
    """
    network = dense_network(model)
    images = torch.rand(2, *model.spec.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        wanted = network(images)
    for name, layer in networks.coded_layers(network).items():
        encoded = model.tensors[f"{name}.weight"]
        if isinstance(encoded, Coded):
            code = CodedWeight(encoded.codes, len(encoded.codebook), encoded.shape)
            attach(network, layer, encoded.codebook.float(), code)
    with torch.no_grad():
        off = networks.distance(network(images), wanted)
    if wanted.isfinite().all() and not off <= SAME:
        raise FileError(
            f"{model.origin or model.spec.name}: {model.spec.name} writes into its weights where it uses them, which "
            "coded ones do not keep; load it without coded"
        )
    return network


def network_of(model: Model, *, coded: bool = False) -> nn.Module:
    """Build the ready network, in evaluation mode, on the CPU."""
    if model.activations:
        from lowenergy.runtimes import int8  # torchao takes seconds to import, and no other model needs it

        return int8.restore(model)
    return coded_network(model) if coded else dense_network(model)


def energy_in(model: Model, network: nn.Module, precision: Precision = "32-true") -> Energy:
    """The energy of a stored EBM or JEM.

    Args:
        network: what network_of made of the model.
        precision: of the network, see energies.energy_of. It does not apply to int8 models, which bring their own
            arithmetic for both directions.
    Raises:
        FileError: the model has no energy.
    """
    if model.spec.head is None:
        raise FileError(f"a {model.target} has no energy to sample from; give an EBM or a JEM")
    if model.activations:
        from lowenergy.runtimes import int8

        graph = int8.restore(model, gradient=True)
        return ExplicitEnergy(network, graph.to(next(network.parameters()).device), model.spec.head)
    network.to(memory_format=networks.memory_format(network))
    return energies.energy_of(network, model.spec.head, precision, frozen=True)


def load(
    path: str | Path,
    *,
    coded: bool = False,
    trust: Collection[str] = (),
    network: nn.Module | None = None,
    limit: int | None = None,
) -> nn.Module:
    """Read a model file and build its network, on the CPU. `lowenergy.load` documents arguments and errors."""
    model, _ = artifact.read(path, trust=None if network is not None else trust, limit=limit)
    if network is not None and model.spec.is_foreign:
        model = replace(model, spec=replace(model.spec, given=networks.Given(network)))
    return network_of(model, coded=coded)
