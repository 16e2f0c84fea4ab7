"""The models of a commit, for instance an experiment's: what each was made from, with which values, and its card.

dvc.lock says what was run. Cards that the last stage has not gathered, because it did not run, are only in DVC's cache.
"""

import atexit
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML

from lowenergy.base import cards
from lowenergy.base.cards import Card
from lowenergy.base.nested import laid_over, leaves

MADE_BY = "compress@"  # begins a branch's stage in dvc.yaml, whose params are the method's section and the entry


@dataclass(frozen=True)
class Made:
    """A model that was measured."""

    name: str
    target: str
    methods: list[str]  # of its chain
    values: Mapping[str, Any]  # of their parameters, such as `prune.amount`; if a method is there twice, the later ones
    card: Card


class Revision:
    """A commit of this project."""

    def __init__(self, commit: str, root: str | Path = ".") -> None:
        from dvc.api import DVCFileSystem

        self.files = DVCFileSystem(str(root), rev=commit)
        atexit.register(self.files.close)  # see running/pipeline.py

    @cached_property
    def stages(self) -> Mapping[str, Any]:
        """The stages that were run, as dvc.lock has them."""
        if not self.files.exists("dvc.lock"):
            return {}
        return dict(YAML(typ="safe").load(self.files.read_text("dvc.lock")).get("stages") or {})

    @cached_property
    def _in_git(self) -> Mapping[str, Any]:
        return json.loads(self.files.read_text(str(cards.ALL))) if self.files.exists(str(cards.ALL)) else {}

    def card(self, name: str) -> Card | None:
        """A model's card; None if it was not measured, or if DVC has lost the card and cards.json does not have it."""
        path = f"{cards.FOLDER}/{name}.json"
        if not any(out["path"] == path for stage in self.stages.values() for out in stage.get("outs", ())):
            return None
        try:
            return cast(Card, json.loads(self.files.read_text(path)))
        except FileNotFoundError:
            return self._in_git.get(name)

    def models(self, target: str) -> Iterator[Made]:
        """Yield one teacher's models that have cards: itself, then its branches."""
        branches = [name.removeprefix(MADE_BY) for name in self.stages if name.startswith(MADE_BY)]
        for name in (target, *(name for name in branches if self._entry(name)["target"] == target)):
            if (card := self.card(name)) is not None:
                yield Made(name, target, *self._chain(name), card)

    def _entry(self, name: str) -> Mapping[str, Any]:
        entry: Mapping[str, Any] = self._params(name)[f"branches.{name}"]
        return entry

    def _params(self, name: str) -> Mapping[str, Any]:
        params: Mapping[str, Any] = self.stages[f"{MADE_BY}{name}"]["params"]["params.yaml"]
        return params

    def _chain(self, name: str) -> tuple[list[str], dict[str, Any]]:
        """The methods of a model's chain, and the values of their parameters."""
        if f"{MADE_BY}{name}" not in self.stages:
            return [], {}
        entry = self._entry(name)
        methods, values = self._chain(entry["start"])
        own = {key: value for key, value in entry.items() if key not in ("target", "start", "by")}
        section = laid_over(own, self._params(name).get(entry["by"], {}))
        return [*methods, entry["by"]], values | {f"{entry['by']}.{key}": value for key, value in leaves(section)}
