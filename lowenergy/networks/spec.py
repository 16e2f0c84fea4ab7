"""All it takes to build a network, small enough for a file's header."""

from dataclasses import dataclass

from torch import nn

from lowenergy.base.params import Architecture


@dataclass(frozen=True)
class Spec:
    """All it takes to build a network: the params' architecture and the shape of its data."""

    name: str
    width: int
    stem: str
    activation: str
    norm: str
    channels: int
    image_size: int
    outputs: int
    head: str | None = None  # of an energy: mean, scalar or logsumexp; None for a plain classifier

    @classmethod
    def of(
        cls, architecture: Architecture, input_shape: tuple[int, int, int], outputs: int, head: str | None = None
    ) -> "Spec":
        """The params' architecture for images of this shape."""
        return cls(
            name=architecture.name,
            width=architecture.width,
            stem=architecture.stem,
            activation=architecture.activation,
            norm=architecture.norm,
            channels=input_shape[0],
            image_size=input_shape[1],
            outputs=outputs,
            head=head,
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.channels, self.image_size, self.image_size)


def spec_of(network: nn.Module) -> Spec:
    """The spec that every network here carries, int8 graphs included."""
    assert isinstance(network.spec, Spec)
    return network.spec
