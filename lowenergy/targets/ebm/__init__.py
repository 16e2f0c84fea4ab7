"""Kind `ebm`: an energy trained by flow and chains; compressed ones match energies and scores."""

from typing import Literal, Self

from pydantic import model_validator

from lowenergy.base.later import later
from lowenergy.params import Architecture, Count, EnergyKind, is_import_path


class EnergyArchitecture(Architecture):
    head: Literal["mean", "scalar", "logsumexp"]
    """the energy E(x): mean of the logits, the single logit, or -logsumexp of the logits (JEM)"""
    logits: Count | None = None
    """outputs of the last layer; 1 for head scalar; of an import path as many as it has"""

    @model_validator(mode="after")
    def _has_logits(self) -> Self:
        if is_import_path(self.name):
            return self
        if self.logits is None:
            raise ValueError(f"logits missing: {self.name} is one of the zoo, which wants their number")
        if self.head == "scalar" and self.logits != 1:
            raise ValueError(f"head scalar needs logits = 1, got {self.logits}")
        return self


class Params(EnergyKind):
    architecture: EnergyArchitecture
    """the teacher's network"""


train = later("lowenergy.targets.ebm.training:train")
objective = later("lowenergy.targets.ebm.training:objective")
