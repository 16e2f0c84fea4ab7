"""Round the inputs of layers to the steps of their ranges, as int8 graphs do, in a network that still has its layers.

The steps can be trained (learned step size, Esser et al. 2020, arXiv 1902.08153); zero points stay fixed.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from lowenergy import networks
from lowenergy.runtimes.int8 import LearnedStep
from lowenergy.storage.encodings import Range


def of_inputs(ranges: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges of layers' inputs in the forward pass."""
    return {name: of_input for name, of_input in ranges.items() if name.endswith(":in") and ":gradient" not in name}


class RoundedInputs(nn.Module):
    """Rounds the inputs of a network's layers, call by call: a layer that is called twice has two ranges."""

    def __init__(self, ranges: Mapping[str, Range], same: Mapping[str, str]) -> None:
        super().__init__()
        first = {name: same.get(name, name) for name in ranges}
        places = {name: place for place, name in enumerate(dict.fromkeys(first.values()))}
        self.steps = nn.ModuleList(LearnedStep(ranges[name]) for name in places)
        self.places = {name: places[first[name]] for name in ranges}  # index of the step of each range
        self.of_layer: dict[str, list[int]] = {}  # by layer, the same indices in the order of its calls
        for name, place in self.places.items():
            self.of_layer.setdefault(name.split(":")[0], []).append(place)
        self.calls: dict[str, int] = {}

    def meet(self, layer: str, x: Tensor) -> Tensor:
        """Round `x`, which that layer's weight is multiplied with."""
        places = self.of_layer[layer]
        call = self.calls.get(layer, 0)
        self.calls[layer] = (call + 1) % len(places)  # every forward pass makes all calls
        return cast(Tensor, self.steps[places[call]](x))

    def ranges(self) -> dict[str, Range]:
        return {name: cast(LearnedStep, self.steps[place]).range() for name, place in self.places.items()}


@contextmanager
def rounded_inputs(
    network: networks.Network, ranges: MutableMapping[str, Range], same: Mapping[str, str]
) -> Iterator[RoundedInputs]:
    """Round the inputs of the layers that have ranges, within the context, by steps that can be trained; when it ends,
    `ranges` holds the trained ones.

    Args:
        ranges: see of_inputs.
        same: see int8.shared.
    """
    inputs = RoundedInputs(ranges, same)
    coded = networks.coded_layers(network)
    layers: dict[str, Any] = {}
    first: dict[str, str] = {}  # for each owner of a weight, the layer by whose name it has a range
    for name in inputs.of_layer:
        for number, (owner, _) in enumerate(networks.sharing(network, coded[name])):
            layers[f"{name} {number}"], first[f"{name} {number}"] = owner, name
    network.add_module("rounded_inputs", inputs)  # so that its parameters are trained with the network's
    try:
        with networks.fed(layers, lambda name, x: inputs.meet(first[name], x)):
            yield inputs
    finally:
        del network._modules["rounded_inputs"]
        ranges.update(inputs.ranges())
