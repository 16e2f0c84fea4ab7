"""What a search may try: search.yaml, and one trial drawn from it.

chains: [[prune], [prune, quantize]]           branches from the teacher on; the last one is measured
parameters:
  prune.amount: {low: 0.3, high: 0.95}         a number in between; with `log: true` by its logarithm, with `step`
  quantize.weight_bits: {low: 2, high: 8}      in steps of it; whole numbers where both ends are
  prune.kind: [unstructured, structured]       one of these
targets:
  ebm: {chains: ..., parameters: ...}          laid over the above, for this target; null takes a parameter out
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lowenergy.base import params
from lowenergy.base.errors import UserError
from lowenergy.base.params import METHODS

Value = bool | int | float | str | None
Choice = Annotated[list[Value], Field(min_length=1)]


class SpaceError(UserError):
    """search.yaml cannot be used; the message names the place and what is allowed."""


class Trial(Protocol):
    """What of Optuna's trial is used here."""

    def suggest_categorical(self, name: str, choices: list[Any], /) -> Any: ...

    def suggest_int(self, name: str, low: int, high: int, /, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_float(
        self, name: str, low: float, high: float, /, *, step: float | None = None, log: bool = False
    ) -> float: ...


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Range(_Section):
    low: int | float
    high: int | float
    step: Annotated[int | float, Field(gt=0)] | None = None
    log: bool = False

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log: true wants low above 0, and no step")
        return self


class Space(_Section):
    """What one target's trials are drawn from."""

    chains: Annotated[list[Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
    parameters: dict[str, Range | Choice]

    def draw(self, trial: Trial) -> tuple[list[str], dict[str, Value]]:
        """A chain, and values of all its methods' parameters: those of `source` too."""
        chain = trial.suggest_categorical("chain", [" → ".join(chain) for chain in self.chains]).split(" → ")
        values: dict[str, Value] = sources(chain)
        for name, kind in self.parameters.items():
            if name.split(".")[0] in chain:
                values[name] = _drawn(trial, name, kind)
        return chain, values

    def first(self, values: Mapping[str, Any]) -> list[dict[str, Value]]:
        """Trials to begin with: each chain with the values of params.yaml, where they are within the space."""
        found = []
        for chain in self.chains:
            trial: dict[str, Value] = {"chain": " → ".join(chain)}
            for name, kind in self.parameters.items():
                if name.split(".")[0] in chain:
                    value = value_at(values, name)
                    if _within(value, kind):
                        trial[name] = value
            found.append(trial)
        return found


def sources(chain: list[str]) -> dict[str, Value]:
    """The `source` of each method of a chain: the one before it."""
    return {f"{method}.source": before for before, method in zip(["teacher", *chain], chain, strict=False)}


def _drawn(trial: Trial, name: str, kind: "Range | Choice") -> Value:
    if isinstance(kind, list):
        value: Value = trial.suggest_categorical(name, kind)
        return value
    if isinstance(kind.low, int) and isinstance(kind.high, int):
        return trial.suggest_int(name, kind.low, kind.high, step=int(kind.step or 1), log=kind.log)
    drawn = trial.suggest_float(name, kind.low, kind.high, step=kind.step, log=kind.log)
    return float(f"{drawn:.4g}")  # as a person would write it, so that two trials may share it


def _within(value: Any, kind: "Range | Choice") -> bool:
    if isinstance(kind, list):
        return value in kind
    if not isinstance(value, int | float) or not kind.low <= value <= kind.high:
        return False
    return kind.step is None or abs((value - kind.low) / kind.step - round((value - kind.low) / kind.step)) < 1e-9


def load(path: Path, target: str, values: Mapping[str, Any]) -> Space:
    """Read search.yaml for one target.

    Args:
        values: of params.yaml, in which every parameter of the space must be, and may take the values that it names.
    Raises:
        SpaceError: one line per problem: the file is missing, no YAML, names a parameter that does not exist or a value
            that it cannot have, or a chain that cannot be.
    """
    try:
        found = YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise SpaceError(f"{path}: no such file; `git checkout search.yaml`, or name one: --space FILE") from None
    except YAMLError as error:
        raise SpaceError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(found, Mapping):
        raise SpaceError(f"{path}: expected chains and parameters, found {type(found).__name__}")
    shared = {key: value for key, value in found.items() if key != "targets"}
    own = (found.get("targets") or {}).get(target) or {}
    parameters = {**(shared.get("parameters") or {}), **(own.get("parameters") or {})}
    whole = {**shared, **own, "parameters": {name: kind for name, kind in parameters.items() if kind is not None}}
    try:
        space = Space.model_validate(whole)
    except ValidationError as error:
        lines = [f"{path}: {_place(e['loc'])}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        raise SpaceError("\n".join(dict.fromkeys(lines))) from None
    problems = [*_bad_chains(space, values), *_bad_parameters(space, values)]
    if problems:
        raise SpaceError("\n".join(f"{path}: {line}" for line in problems))
    return space


def _place(loc: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in loc if part not in ("Range",) and not str(part).startswith(("list[", "con")))


def _bad_chains(space: Space, values: Mapping[str, Any]) -> list[str]:
    problems = []
    for chain in space.chains:
        name = " → ".join(chain)
        if unknown := [method for method in chain if method not in METHODS or method not in values]:
            problems.append(f"chain {name}: {unknown[0]} is none of {', '.join(METHODS)}")
        elif len(set(chain)) < len(chain):
            problems.append(f"chain {name}: a method twice")
        elif why := _refused(values, sources(chain)):
            problems.append(f"chain {name} cannot be: {why}")
    return problems


def _bad_parameters(space: Space, values: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, kind in space.parameters.items():
        if name.split(".")[0] not in METHODS or name.endswith(".source") or value_at(values, name) is MISSING:
            problems.append(f"{name} is no parameter of a method; `lowenergy params` lists all of them")
            continue
        for value in kind if isinstance(kind, list) else [kind.low, kind.high]:
            if why := next((line for line in _refused(values, {name: value}).splitlines() if name in line), ""):
                problems.append(why)
    return problems


MISSING = object()


def value_at(values: Any, name: str) -> Any:
    """The value at a dotted name; MISSING where there is none."""
    for key in name.split("."):
        if not isinstance(values, Mapping) or key not in values:
            return MISSING
        values = values[key]
    return values


def with_values(values: Mapping[str, Any], changes: Mapping[str, Value]) -> dict[str, Any]:
    """A copy of params.yaml's values with those of a trial."""
    copied = dict(values)
    for name, value in changes.items():
        first, *rest = name.split(".", 1)
        copied[first] = with_values(copied.get(first) or {}, {rest[0]: value}) if rest else value
    return copied


def _refused(values: Mapping[str, Any], changes: Mapping[str, Value]) -> str:
    """What params.yaml's schema has against these values; '' for nothing."""
    try:
        params.check(with_values(values, changes))
    except params.ParamsError as error:
        return str(error).replace("params.yaml: ", "")
    return ""


def refused(values: Mapping[str, Any], changes: Mapping[str, Value]) -> str:
    """Why a trial's values do not go together; '' if they do."""
    return _refused(values, changes).partition("\n")[0]
