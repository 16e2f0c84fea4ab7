"""params.yaml as a whole: models are entries, made with the values of sections."""

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from lowenergy.params.architecture import Architecture
from lowenergy.params.data import SIDES, Data
from lowenergy.params.entries import Method
from lowenergy.params.scorer import Scorer
from lowenergy.params.section import Section, is_import_path


class Params(Section):
    model_config = ConfigDict(extra="allow")  # a section of each kind and method, which `check` has checked

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    """of everything random"""
    networks: Annotated[str, Field(min_length=1)]
    """file or folder of your own networks and weights, which all stages that build networks depend on"""
    teachers: dict[str, Any] = Field(min_length=1)
    """models to train, by name: {kind: ebm}, and values of their own over those of section ebm"""
    branches: dict[str, Any]
    """models made from others, by name: {target: ebm, start: ebm, by: prune}, and values of their own over those of
    section prune"""
    data: Data
    """the images"""
    scorer: Scorer
    """the classifier that only measures"""

    @model_validator(mode="after")
    def _crops_fit(self) -> Self:
        side = self.data.image_size or SIDES.get(self.data.source)
        for name, each in {"scorer": self.scorer, **self.teachers}.items():
            train = getattr(each, "train", None)  # there is none if it has mistakes of its own
            if side is not None and (crop := getattr(train, "crop_padding", 0)) >= side:
                raise ValueError(
                    f"{name}.train.crop_padding = {crop}: images have {side} pixels a side; give at most {side - 1}"
                )
        return self

    @property
    def models(self) -> list[str]:
        """The names of all models: each teacher, followed by the branches that must match it."""
        return [
            model
            for teacher in self.teachers
            for model in (teacher, *(name for name, branch in self.branches.items() if branch.target == teacher))
        ]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @property
    def methods(self) -> dict[str, Any]:
        """The section of every method."""
        return {name: part for name, part in (self.model_extra or {}).items() if isinstance(part, Method)}

    @property
    def architectures(self) -> dict[str, Architecture]:
        """All architectures of the scorer and of entries, by place: `ebm.architecture`, `ebm-distill.student`."""
        students = {f"{name}.student": getattr(b.params, "student", None) for name, b in self.branches.items()}
        return {
            "scorer.architecture": self.scorer.architecture,
            **{f"{name}.architecture": teacher.architecture for name, teacher in self.teachers.items()},
            **{place: student for place, student in students.items() if isinstance(student, Architecture)},
        }

    @property
    def trusted(self) -> list[str]:
        """The import paths in this file, which model files may therefore name as well."""
        return [a.name for a in self.architectures.values() if is_import_path(a.name)]

    def target_of(self, name: str) -> str:
        """The teacher that a model is compared with; for a teacher, itself."""
        return name if name in self.teachers else self.branches[name].target

    def chain(self, name: str) -> list[str]:
        """The names of all models from a teacher to this one, each made from the one before."""
        links = [name]
        while links[0] not in self.teachers:
            links.insert(0, self.branches[links[0]].start)
        return links
