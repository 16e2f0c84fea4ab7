"""What a search may try: search.yaml, and one trial drawn from it.

chains: [[prune], [prune, quantize]]           methods, starting from the teacher; what the last one makes is measured
parameters:
  prune.amount: {low: 0.3, high: 0.95}         a number in between; with `log: true` on a logarithmic scale, with
                                               `step` in steps of that size
  quantize.weight_bits: {low: 2, high: 8}      whole numbers if both ends and the step are
  prune.kind: [unstructured, structured]       one of these
targets:
  ebm: {chains: ..., parameters: ...}          laid over the above for this teacher, or for all of this kind; null
                                               removes a parameter
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lowenergy import params
from lowenergy.base.errors import UserError
from lowenergy.base.nested import MISSING, laid_over, value_at, with_values

if TYPE_CHECKING:
    from optuna import Trial

Value = bool | int | float | str | None
Choice = Annotated[list[Value], Field(min_length=1)]
ARROW = " → "


class SpaceError(UserError):
    """search.yaml cannot be used; the message names the place and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Range(_Section):
    low: int | float
    high: int | float
    step: Annotated[int | float, Field(gt=0)] | None = None
    log: bool = False

    @property
    def is_of_whole_numbers(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int) and float(self.step or 1).is_integer()

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

    def draw(self, trial: "Trial") -> tuple[list[str], dict[str, Value]]:
        """Draw a chain, and values for those of its methods' parameters that the space has."""
        chain = trial.suggest_categorical("chain", [ARROW.join(chain) for chain in self.chains]).split(ARROW)
        return chain, {name: _drawn(trial, name, kind) for name, kind in self.parameters.items() if _of(name, chain)}

    def first(self, values: Mapping[str, Any]) -> list[dict[str, Value]]:
        """Trials to begin with: each chain with those values of params.yaml that are within the space."""
        trials = []
        for chain in self.chains:
            known = {name: value_at(values, name) for name in self.parameters if _of(name, chain)}
            within = {name: value for name, value in known.items() if _within(value, self.parameters[name])}
            trials.append({"chain": ARROW.join(chain), **within})
        return trials


def _of(name: str, chain: list[str]) -> bool:
    """True if a parameter belongs to a method of the chain."""
    return name.partition(".")[0] in chain


def entries(values: Mapping[str, Any], target: str, chain: list[str], drawn: Mapping[str, Value]) -> dict[str, Any]:
    """The branches of a trial, by name: each link of its chain, made from the one before.

    The links that two trials begin with have the same names if they are the same, so that they are made once. If
    params.yaml has a branch for a link, as after a search whose winner was applied, the link is that branch.

    Args:
        values: those of params.yaml.
        drawn: values of the methods' parameters, by their names in params.yaml.
    """
    known = {json.dumps(_whole(values, entry), sort_keys=True): name for name, entry in values["branches"].items()}
    links: dict[str, Any] = {}
    start = target
    for number, method in enumerate(chain, 1):
        own = {name.removeprefix(f"{method}."): value for name, value in drawn.items() if _of(name, [method])}
        entry = {"target": target, "start": start, "by": method, **with_values({}, own)}
        digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:6]
        there = known.get(json.dumps(_whole(values, entry), sort_keys=True))
        start = there or "-".join(["search", target, *chain[:number], digest])
        links[start] = values["branches"][there] if there else entry
    return links


def _whole(values: Mapping[str, Any], entry: Any) -> Any:
    """An entry with all its values, including those of its method's section."""
    return laid_over(entry, values.get(entry["by"], {})) if isinstance(entry, Mapping) and "by" in entry else entry


def _drawn(trial: "Trial", name: str, kind: "Range | Choice") -> Value:
    if isinstance(kind, list):
        value: Value = trial.suggest_categorical(name, kind)
        return value
    if kind.is_of_whole_numbers:
        return trial.suggest_int(name, int(kind.low), int(kind.high), step=int(kind.step or 1), log=kind.log)
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
        values: those of params.yaml, which must have every parameter of the space and allow the values that it names.
    Raises:
        SpaceError: one line per problem: the file is missing, is not YAML, or names a parameter that does not exist, a
            value that it cannot have, or a chain that cannot be.
    """
    if not path.is_file():
        raise SpaceError(f"{path}: no such file; `git checkout search.yaml`, or name one: --space FILE")
    try:
        contents = _section(params.read(path), "chains and parameters")
        shared = {key: value for key, value in contents.items() if key != "targets"}
        by_target = _section(contents.get("targets"), "names of teachers or kinds", "targets")
        if unknown := sorted(by_target.keys() - values["teachers"].keys() - params.kinds().keys(), key=str):
            raise SpaceError(f"targets: {unknown[0]} is no teacher of params.yaml and no kind")
        at = target if by_target.get(target) else values["teachers"][target]["kind"]
        own = _section(by_target.get(at), "chains or parameters", f"targets.{at}")
        parameters = dict(_section(shared.get("parameters"), "names of parameters", "parameters"))
        parameters |= _section(own.get("parameters"), "names of parameters", f"targets.{at}.parameters")
    except params.ParamsError as error:
        raise SpaceError(str(error)) from None
    except SpaceError as error:
        raise SpaceError(f"{path}: {error}") from None
    whole = {**shared, **own, "parameters": {name: kind for name, kind in parameters.items() if kind is not None}}
    try:
        space = Space.model_validate(whole)
    except ValidationError as error:
        found = (_said(e["loc"], e["msg"], whole["parameters"]) for e in error.errors())
        raise SpaceError("\n".join(dict.fromkeys(f"{path}: {line}" for line in found if line))) from None
    problems = [*_bad_chains(space, target, values), *_bad_parameters(space, values)]
    if problems:
        raise SpaceError("\n".join(f"{path}: {line}" for line in problems))
    return space


def _section(value: Any, of: str, place: str = "") -> Mapping[str, Any]:
    """A part of the file that must be a dictionary; {} where it is left out."""
    if value is not None and not isinstance(value, Mapping):
        raise SpaceError(f"{place}: expected {of}, found {type(value).__name__}".removeprefix(": "))
    return value or {}


def _said(loc: tuple[Any, ...], message: str, parameters: Mapping[str, Any]) -> str:
    """One of pydantic's errors in words; '' for those of a range where a list was given, and the other way round."""
    message = message.removeprefix("Value error, ")
    if loc[0] != "parameters" or len(loc) < 3 or loc[1] not in parameters or "[key]" in loc:
        return f"{'.'.join(map(str, loc))}: {message}"
    value, of_range = parameters[loc[1]], "Range" in str(loc[2])
    if not isinstance(value, Mapping | list):
        return f"parameters.{loc[1]}: expected a list of values, or low and high"
    if isinstance(value, Mapping) != of_range:
        return ""
    if isinstance(value, list) and value:
        return f"parameters.{loc[1]}: the values of a list are numbers, texts, true, false or null"
    return f"{'.'.join(map(str, (*loc[:2], *loc[3:])))}: {message}"


def _bad_chains(space: Space, target: str, values: Mapping[str, Any]) -> list[str]:
    problems = []
    methods = params.check(values).methods
    for chain in space.chains:
        name = ARROW.join(chain)
        if unknown := [method for method in chain if method not in methods]:
            problems.append(f"chain {name}: {unknown[0]} is none of {', '.join(methods)}")
        elif len(set(chain)) < len(chain):
            problems.append(f"chain {name}: a method twice")
        elif why := refused(values, entries(values, target, chain, {})):
            problems.append(f"chain {name} cannot be: {why}")
    return problems


def _bad_parameters(space: Space, values: Mapping[str, Any]) -> list[str]:
    problems = []
    methods = params.check(values).methods
    for name, kind in space.parameters.items():
        if not _of(name, list(methods)) or value_at(values, name) is MISSING:
            problems.append(f"{name} is no parameter of a method; `lowenergy params` lists all of them")
            continue
        for value in kind if isinstance(kind, list) else [kind.low, *_second(kind), kind.high]:
            why = _refused(with_values(values, {name: value}))
            problems += [line for line in why.splitlines() if name in line][:1]
    return problems


def _second(kind: Range) -> list[float]:
    """The value after the lowest, where there are steps: it is no whole number if the step is none."""
    return [] if kind.step is None or kind.low + kind.step > kind.high else [kind.low + kind.step]


def with_entries(values: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """The values of params.yaml with these branches added."""
    return {**values, "branches": {**values["branches"], **entries}}


def refused(values: Mapping[str, Any], entries: Mapping[str, Any]) -> str:
    """Why a trial's values do not go together, on one line; '' if they do."""
    return _refused(with_entries(values, entries)).partition("\n")[0]


def _refused(values: Mapping[str, Any]) -> str:
    """The problems that the schema of params.yaml has with these values, a line each; '' if none."""
    try:
        params.check(values)
    except params.ParamsError as error:
        return str(error).replace("params.yaml: ", "")
    return ""
