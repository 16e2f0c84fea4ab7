"""Sections `architecture` and `student`: which network."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lowenergy.params.section import Section, is_import_path, known

RESNETS = ("resnet8", "resnet10", "resnet18", "resnet20")  # those of the zoo


def _network(name: str) -> str:
    if not is_import_path(name):
        try:
            family = known("networks/zoo", name.rstrip("0123456789"))
            if name not in (sizes := RESNETS if family == "resnet" else (family,)):
                raise ValueError(f"{name!r} is not {' or '.join(sizes)}")
        except ValueError as error:
            raise ValueError(
                f"{error}, and no import path such as torchvision.models.resnet18 or mynets.py:Net"
            ) from None
    return name


class Architecture(Section):
    """A network by name; the data give the channels of the images and the number of classes."""

    name: Annotated[str, AfterValidator(_network)]
    """resnet18, resnet10, resnet20, resnet8, cnn, strided, compact, shallow, residual or unet (docs/architectures.md),
    or an import path such as torchvision.models.resnet18 or mynets.py:Net (docs/networks.md)"""
    width: Annotated[int, Field(ge=2, le=1024)] | None = None
    """channels of the first stage; this and the next three of the zoo's networks only"""
    stem: Literal["7x7", "5x5", "3x3", "3x3-pool"] | None = None
    """of resnets and of residual; 7x7: stride 2 and max-pool (ImageNet, resnets only); 5x5: stride 2; 3x3: full
    resolution; 3x3-pool: max-pool after it (resnets only)"""
    activation: Literal["relu", "swish", "gelu", "elu", "leaky_relu"] | None = None
    """the non-linearity"""
    norm: Literal["batch", "none"] | None = None
    """batch: BatchNorm after each convolution; none: biases"""
    arguments: dict[str, Any] = Field(default={})
    """of an import path's constructor: {num_classes: 10}"""
    weights: str | None = None
    """safetensors file or state dict to start from; with train.epochs 0 it is the teacher"""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        own = {"width": self.width, "stem": self.stem, "activation": self.activation, "norm": self.norm}
        missing = [name for name, value in own.items() if value is None]
        if missing and not is_import_path(self.name):
            raise ValueError(f"{', '.join(missing)} missing: {self.name} is one of the zoo, which wants them")
        if self.arguments and not is_import_path(self.name):
            raise ValueError(f"arguments are for import paths; {self.name} is one of the zoo")
        return self
