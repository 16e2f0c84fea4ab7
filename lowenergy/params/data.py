"""Section `data`: where the images come from."""

import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lowenergy.params.section import ParamsError, Section, known

TORCHVISION = "torchvision.datasets."
SIDES = {"digits": 8, "mnist": 28, "cifar100": 32}  # pixels, where the source alone says so
# What the stages of dvc.yaml make; DVC deletes it before they run.
OUTPUTS = (
    *("data/splits.safetensors", "data/recipes", "models", "cards", "said", "plots"),
    *("metrics", "report.html", "cards.json"),
)


def _source(name: str) -> str:
    if name.startswith(TORCHVISION) and name.removeprefix(TORCHVISION).isidentifier():
        return name
    return known("data/sources", name)


def _named_once(names: list[str]) -> list[str]:
    names = [unicodedata.normalize("NFC", name) for name in names]  # systems differ in how they write é
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice[:3])} stands there twice")
    return names


def check_place(folder: str) -> None:
    """Check that the images are not where the pipeline's own files are.

    Raises:
        ParamsError: they are.
    """
    place = Path(folder).resolve()
    for out in OUTPUTS:
        own = Path(out).resolve()
        if place.is_relative_to(own) or own.is_relative_to(place):
            raise ParamsError(
                f"data.folder {folder}: the pipeline writes and deletes {out}; move the images to a folder apart from "
                "it, such as data/images"
            )


class Data(Section):
    source: Annotated[str, AfterValidator(_source)]
    """where the images come from: digits, mnist, cifar100, folder, or a data set of torchvision such as
    torchvision.datasets.FashionMNIST"""
    root: str
    """torchvision root of mnist and cifar100; missing files are downloaded into it"""
    arguments: dict[str, Any] = Field(default={})
    """of the constructor of a data set torchvision.datasets.…, such as {split: letters}"""
    folder: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
    """for source folder: a directory with one sub-directory of images per class; or with train and test (and val), each
    with one sub-directory per class"""
    image_size: Annotated[int, Field(ge=8, le=512)] | None
    """side of the square images in pixels; null keeps the size of the source (not for folder)"""
    channels: Literal[1, 3]
    """1 for grey, 3 for RGB images"""
    validation: Annotated[float, Field(gt=0, lt=0.5)]
    """fraction of training images held out"""
    test: Annotated[float, Field(gt=0, lt=0.5)]
    """fraction of images tested on; only for sources without an official test set, such as digits"""
    limit: Annotated[int, Field(ge=100)] | None
    """keep at most this many training and as many test images, of every class its share; null keeps all"""
    mean: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    """of each channel, of pixels from 0 to 1, for networks that want images less this, over data.std; null for pixels
    from -1 to 1. Kept in the model files"""
    std: list[Annotated[float, Field(gt=0, le=10)]] | None = None
    """of each channel; see data.mean"""
    classes: Annotated[list[str], Field(min_length=1), AfterValidator(_named_once)] | None = None
    """names of the classes in the order of the network's outputs; null for the source's own"""

    @property
    def normalisation(self) -> tuple[list[float], list[float]] | None:
        return None if self.mean is None or self.std is None else (self.mean, self.std)

    @model_validator(mode="after")
    def _normalises_every_channel(self) -> Self:
        given = [len(values) for values in (self.mean, self.std) if values is not None]
        if given and given != [self.channels] * 2:
            raise ValueError(f"data.mean and data.std: give both, {self.channels} values each, or neither")
        return self

    @model_validator(mode="after")
    def _arguments_are_torchvisions(self) -> Self:
        if self.arguments and not self.source.startswith(TORCHVISION):
            raise ValueError(f"data.arguments are for torchvision.datasets.…; data.source is {self.source}")
        return self

    @model_validator(mode="after")
    def _folder_needs_a_size(self) -> Self:
        if self.source == "folder" and self.image_size is None:
            raise ValueError("data.image_size must be given for source folder, e.g. 32: files differ in size")
        return self
