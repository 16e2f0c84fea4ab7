"""params.yaml: every knob, its range and what it means.

`load()` reads and checks the whole file, so that a typo in the last entry stops the first stage.

A section that only one method or kind reads has its class in that package, called `Params` (docs/extending.md). This
package has the sections that several share, and the code that reads, checks and lists all of them.
"""

from lowenergy.params.architecture import Architecture
from lowenergy.params.checking import check
from lowenergy.params.data import Data, check_place
from lowenergy.params.energies import EnergyKind, EnergyMatching, EnergyTraining, Sampler
from lowenergy.params.entries import Branch, Kind, Method, Teacher, kinds, methods
from lowenergy.params.evaluation import ClassifierEvaluation, EnergyEvaluation
from lowenergy.params.messages import completed, method
from lowenergy.params.reading import held, load, read
from lowenergy.params.reference import listing
from lowenergy.params.scorer import Scorer, ScorerTraining
from lowenergy.params.section import (
    Count,
    Fraction,
    NotNegative,
    ParamsError,
    Positive,
    Section,
    SomeEpochs,
    Times,
    is_import_path,
)
from lowenergy.params.training import Finetune, Retrain, StudentRetrain
from lowenergy.params.whole import Params

__all__ = [
    "Architecture",
    "Branch",
    "ClassifierEvaluation",
    "Count",
    "Data",
    "EnergyEvaluation",
    "EnergyKind",
    "EnergyMatching",
    "EnergyTraining",
    "Finetune",
    "Fraction",
    "Kind",
    "Method",
    "NotNegative",
    "Params",
    "ParamsError",
    "Positive",
    "Retrain",
    "Sampler",
    "Scorer",
    "ScorerTraining",
    "Section",
    "SomeEpochs",
    "StudentRetrain",
    "Teacher",
    "Times",
    "check",
    "check_place",
    "completed",
    "held",
    "is_import_path",
    "kinds",
    "listing",
    "load",
    "method",
    "methods",
    "read",
]
