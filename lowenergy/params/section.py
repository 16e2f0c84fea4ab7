"""What the sections of params.yaml are made of: their base class, ranges, and names of networks."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from lowenergy.base.errors import UserError

PACKAGE = Path(__file__).parents[1]

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
NotNegative = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Times = Annotated[int, Field(ge=0, le=10**9)]
SomeEpochs = Annotated[int, Field(ge=0, le=10**5)]


class ParamsError(UserError):
    """params.yaml cannot be used; the message names each field, its value and what is allowed."""


class Section(BaseModel):
    """Values of params.yaml. The text below a field says what it means; `lowenergy params` and errors quote it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def known(room: str, name: str) -> str:
    """Return the name if a file of lowenergy/<room> has it; raise ValueError otherwise."""
    names = sorted(path.stem for path in (PACKAGE / room).glob("*.py") if path.stem not in ("__init__", "blocks"))
    if name not in names:
        raise ValueError(f"{name!r} is none of {', '.join(names)}, the files of lowenergy/{room}")
    return name


def is_import_path(name: str) -> bool:
    """True for torchvision.models.resnet18 or mynets.py:Net; False for a network of the zoo."""
    return "." in name or ":" in name
