"""What every stage works on: a network, from the zoo (backbone.py) or from elsewhere (foreign.py)."""

import torch
from torch import Tensor, nn

from lowenergy.networks.spec import Spec


class Network(nn.Module):
    """A network from images in [-1, 1], (batch, c, h, w), to logits or energies, (batch, n).

    It knows what compression asks of it, so that no other code has to ask where it comes from.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.scale: Tensor | None
        self.shift: Tensor | None
        scale, shift = _normalisation(spec)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.layers: tuple[str, ...] = ()  # those that can be compressed; only the first of layers that share a weight
        self.last = ""  # the layer that is called last
        self.tied: dict[str, str] = {}  # tensors that have two names: later name -> first
        self.unbearable: dict[str, str] | None = None  # layers whose channels all stay, and why; None: not yet known
        self.bears_channels_last: bool | None = None  # None: not yet known

    @property
    def module(self) -> nn.Module:
        """The module whose tensors have the names that they have in the user's own files."""
        return self

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise images as the network was trained to see them, by the data's mean and standard deviation."""
        return x if self.scale is None or self.shift is None else x * self.scale + self.shift

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Return logits or energies, and in training mode also those of auxiliary classifiers, if there are any."""
        return [self(x)]

    def find_layers(self) -> None:
        """Run the network once, to see that its tensors fit together; call this in evaluation mode.

        Networks from elsewhere also remember which layers they call and which of their tensors are one.

        Raises:
            RuntimeError, ValueError, TypeError, AssertionError: its tensors do not fit together.
        """
        with torch.no_grad():
            self(black(self.spec))


def black(spec: Spec) -> Tensor:
    """Two black images."""
    return torch.full((2, *spec.input_shape), -1.0)


def tied(network: nn.Module) -> dict[str, str]:
    """Map each name of a tensor that the network also has under an earlier name to its first name."""
    first: dict[int, str] = {}
    state = {name: w for name, w in network.state_dict(keep_vars=True).items() if isinstance(w, Tensor)}
    return {name: first[id(w)] for name, w in state.items() if first.setdefault(id(w), name) != name}


def _normalisation(spec: Spec) -> tuple[Tensor | None, Tensor | None]:
    """Scale and shift, (c, 1, 1) each, so that scale * x + shift is ((x + 1) / 2 - mean) / std; or None for both."""
    if spec.normalisation is None:
        return None, None
    mean, std = (torch.tensor(values)[:, None, None] for values in spec.normalisation)
    return 0.5 / std, (0.5 - mean) / std
