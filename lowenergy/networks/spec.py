"""Everything needed to build a network, small enough for a file's header."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from lowenergy.params import Architecture, is_import_path

ZOO = ("width", "stem", "activation", "norm")


class Given:
    """A module that a caller handed over, to be copied wherever its network is built; copies of its spec share it.

    It is never changed: whoever builds from it deep-copies `module`. With `made_by_name`, a file also says how to make
    it without this object.
    """

    def __init__(self, module: nn.Module, *, made_by_name: bool = True) -> None:
        self.module, self.made_by_name = module, made_by_name

    def __deepcopy__(self, memo: dict[int, Any]) -> "Given":
        return self


@dataclass(frozen=True)
class Spec:
    """Everything needed to build a network: the params' architecture and what its data look like."""

    name: str  # one of the zoo, or an import path
    width: int = 0
    stem: str = ""
    activation: str = ""
    norm: str = ""
    channels: int = 1
    image_size: int = 0
    outputs: int = 0
    head: str | None = None  # for an energy: mean, scalar or logsumexp; None for a plain classifier
    arguments: dict[str, Any] | None = None  # for an import path's constructor; None if a file does not say
    mean: list[float] | None = None  # by channel, for images in [0, 1]: the normalisation that the network wants
    std: list[float] | None = None
    given: Given | None = field(default=None, compare=False, repr=False)  # copied instead of importing `name`

    def __post_init__(self) -> None:
        if not self.is_foreign and not all(getattr(self, key) for key in ZOO):
            raise ValueError(f"{self.name} is one of the zoo, and lacks some of {', '.join(ZOO)}")

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        input_shape: tuple[int, int, int],
        outputs: int,
        head: str | None = None,
        normalisation: tuple[list[float], list[float]] | None = None,
        given: Given | None = None,
    ) -> "Spec":
        """Return the spec of the params' architecture for images of this shape.

        Args:
            outputs: number of the last layer's outputs; 0 for as many as a network with an import path has.
            normalisation: mean and standard deviation of each channel, for images in [0, 1].
            given: the module that the architecture's name stands for.
        """
        own: dict[str, Any] = {"arguments": architecture.arguments}
        if given is not None and not given.made_by_name:
            own = {"arguments": None}
        elif not is_import_path(architecture.name):
            own = {key: getattr(architecture, key) for key in ZOO}
        mean, std = normalisation or (None, None)
        return cls(
            name=architecture.name,
            **own,
            channels=input_shape[0],
            image_size=input_shape[1],
            outputs=outputs,
            head=head,
            mean=mean,
            std=std,
            given=given,
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.channels, self.image_size, self.image_size)

    @property
    def is_foreign(self) -> bool:
        """True if the network is named by an import path, not one of the zoo."""
        return is_import_path(self.name)

    @property
    def normalisation(self) -> tuple[list[float], list[float]] | None:
        return (self.mean, self.std) if self.mean is not None and self.std is not None else None

    def as_header(self) -> dict[str, Any]:
        """Return the spec as a file's header holds it, with no more than is needed."""
        left_out = ZOO if self.is_foreign else ()
        later = ("arguments", "mean", "std", "given")
        return {
            key: value
            for key, value in asdict(replace(self, given=None)).items()
            if key not in left_out and (value is not None or key not in later)
        }


def spec_of(network: nn.Module) -> Spec:
    """The spec that every network here carries, int8 graphs included."""
    assert isinstance(network.spec, Spec)
    return network.spec
