"""Models are entries: a teacher is of a kind, a branch is made by a method; each of these has a class for its section.

Each folder of lowenergy/targets is a kind, each folder of lowenergy/compression a method. Its package has the class
`Params`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

from pydantic import model_validator

from lowenergy.params.section import PACKAGE, Section


def trains_what_is_random(section: Any) -> Any:
    if not section.train.epochs and section.architecture.weights is None:
        raise ValueError("train.epochs = 0 leaves random weights; give some, or architecture.weights")
    return section


class Kind(Section):
    """How models of one kind are trained, matched and measured."""

    over: ClassVar[str | None] = None  # the section below this kind's own, which it shares with related kinds

    _epochs = model_validator(mode="after")(trains_what_is_random)


class Method(Section):
    coded: ClassVar[bool] = False  # True if it makes codes, from which no method can go on

    accept_chance: bool = False
    """write the result even if it answers like chance where its start did not; may be left out"""

    def stored(self) -> dict[str, Any] | None:
        """How weights will be stored, as fields of runtimes.c.forecast.Coding; None if that cannot be foreseen, as when
        pruning removes channels."""
        return {}


@dataclass(frozen=True)
class Teacher:
    """An uncompressed model: its kind, and the effective values of its sections."""

    kind: str
    section: Any  # of the kind's class, as the functions of lowenergy/targets take it

    @property
    def architecture(self) -> Any:
        return self.section.architecture

    @property
    def train(self) -> Any:
        return self.section.train

    @property
    def matching(self) -> Any:
        return self.section.matching

    @property
    def evaluate(self) -> Any:
        return self.section.evaluate


@dataclass(frozen=True)
class Branch:
    """A compressed model: what it must match, what it is made from, by which method, and the effective values."""

    target: str
    start: str
    by: str
    params: Any  # of the method's class


# The keys of a branch's entry that do not belong to the method's section, and their meaning.
LINKS = {
    "target": "the teacher that it must match and is compared with",
    "start": "the teacher or branch that it is made from",
    "by": "the method",
}


@cache
def kinds() -> Mapping[str, type[Kind]]:
    """The class of each kind's section, by its name."""
    return _sections("targets", Kind)


@cache
def methods() -> Mapping[str, type[Method]]:
    """The class of each method's section, by its name."""
    return _sections("compression", Method)


def _sections(room: str, base: type[Any]) -> dict[str, Any]:
    names = sorted(path.parent.name for path in (PACKAGE / room).glob("*/__init__.py"))
    classes = {name: getattr(import_module(f"lowenergy.{room}.{name}"), "Params", None) for name in names}
    return {name: part for name, part in classes.items() if isinstance(part, type) and issubclass(part, base)}
