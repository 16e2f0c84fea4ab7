"""The schema of a model file's header: a file that fits it holds no surprises for its reader later on."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from lowenergy.params import Architecture, Count, NotNegative, Positive, Sampler, Times
from lowenergy.storage.encodings import FACTS, Shape

FORMAT = 1
SHOWN = 80  # characters of a wrong value in a message

Finite = Annotated[float, Field(allow_inf_nan=False)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Byte = Annotated[int, Field(ge=0, le=255)]
Bits = Annotated[int, Field(ge=2, le=8)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]


class Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)  # anything else in a newer file is for newer readers


class Network(Architecture):
    """A networks.Spec."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    channels: Annotated[int, Field(ge=1, le=1024)]
    image_size: Annotated[int, Field(ge=1, le=4096)]
    outputs: Annotated[int, Field(ge=0, le=10**6)]
    head: Literal["mean", "scalar", "logsumexp"] | None = None
    mean: list[Finite] | None = None
    std: list[Scale] | None = None

    @model_validator(mode="after")
    def _normalises_every_channel(self) -> Self:
        lengths = [len(values) for values in (self.mean, self.std) if values is not None]
        if lengths and lengths != [self.channels] * 2:
            raise ValueError(f"mean and std: there are both, with {self.channels} values each, or neither")
        return self


def _with_bits(said: Any) -> Any:
    """Add the eight bits that a file leaves out."""
    return [*said, 8] if isinstance(said, list | tuple) and len(said) == 2 else said


def _within_bits(said: tuple[float, int, int]) -> tuple[float, int, int]:
    if said[1] >= 2 ** said[2]:
        raise ValueError(f"its zero point is none of {2 ** said[2]} levels")
    return said


ActivationRange = Annotated[
    tuple[Scale, Byte, Bits], Strict(False), BeforeValidator(_with_bits), AfterValidator(_within_bits)
]


def _outputs_of_eight(said: dict[str, tuple[float, int, int]]) -> dict[str, tuple[float, int, int]]:
    if wrong := next((name for name, bounds in said.items() if bounds[2] < 8 and not name.endswith(":in")), None):
        raise ValueError(f"{wrong} has {said[wrong][2]} bits, where inputs alone have less than 8")
    return said


class Packed(Part):
    dtype: str
    shape: Shape


class RecordedSampler(Sampler):
    """The sampler of a file, which says every constant because defaults may change."""

    step_size: Positive
    noise: NotNegative
    gradient_clamp: Positive
    chain_steps: Count


class Provenance(Part):
    data: Text | None = None
    sampler: RecordedSampler | None = None
    recoveries: Times | None = None


class Header(Part):
    format: Literal[1]
    target: Text
    spec: Network
    encodings: dict[str, Annotated[tuple[str, dict[str, Any]], Strict(False)]] = {}
    packed: dict[str, Packed] = {}
    activations: Annotated[dict[str, ActivationRange], AfterValidator(_outputs_of_eight)] = {}
    tied: dict[str, Text] = {}
    answers: Annotated[list[Finite], Field(max_length=4)] = []
    provenance: Provenance = Provenance()


def check(header: dict[str, Any]) -> None:
    """Raise if a header does not fit the schema.

    Raises:
        ValueError: it does not; the message names the field and its value.
    """
    if strange := next((text for text in _texts(header) if not text.isprintable()), None):
        raise ValueError(f"{_short(strange)} is no name of anything")
    _fits(Header, header, ())
    for name, (kind, facts) in header.get("encodings", {}).items():
        at = ("encodings", name)
        if kind not in FACTS:
            raise ValueError(f"{_said(at)}: unknown encoding {_short(kind)}")
        schema = FACTS[kind]
        if schema is not None and (facts or kind != "int8"):  # int8 of eight bits needs none
            _fits(schema, facts, at)


def _fits(schema: type[BaseModel], value: Any, at: tuple[str, ...]) -> None:
    try:
        schema.model_validate(value)
    except ValidationError as errors:
        error = errors.errors(include_url=False)[0]
        field, message = _said((*at, *error["loc"])), error["msg"].removeprefix("Value error, ")
        if error["type"] == "missing":
            raise ValueError(f"{field} is missing") from None
        raise ValueError(f"{field} = {_short(error['input'])}: {message[0].lower()}{message[1:]}") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value:
            yield from _texts(item)
        if isinstance(value, dict):
            yield from _texts(list(value.values()))


def _said(at: tuple[str | int, ...]) -> str:
    return ".".join(map(str, at))


def _short(value: Any) -> str:
    text = f"{len(value):,} values" if isinstance(value, dict | list) and len(value) > SHOWN else ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
