"""From a model to a smaller one by any method: what a stage and a call have in common."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from lowenergy import targets
from lowenergy.data import Splits
from lowenergy.runtimes.loading import network_of
from lowenergy.storage.artifact import Model
from lowenergy.storage.encodings import Coded, Int8
from lowenergy.training import Run, chance, disband


def make(
    start: nn.Module,
    teacher: nn.Module,
    source: nn.Module,
    method: str,
    section: Any,
    of_kind: Any,
    splits: Splits,
    run: Run,
    provenance: Mapping[str, Any],
    *,
    accept: str = "",
    **given: Any,
) -> Model:
    """Compress `start`, which is changed, so that it matches `teacher`.

    Args:
        source: `start` as it was, or `teacher` where they are the same: the result must not be worse by chance.
        section: the method's parameters; of_kind: those of the teacher's kind, which is run.kind.
        provenance: put into run.provenance, to which the method adds: one that must keep within a number of bytes has
            to know all of them.
        accept: see chance.check.
        given: to the method, beside its parameters: a student that is no name.
    Raises:
        UserError: the method cannot, or its result answers like chance where `source` does not.
    """
    objective = targets.get(run.kind).objective(teacher, splits, of_kind, run)
    run.provenance |= provenance
    compress = import_module(f"lowenergy.compression.{method}").compress
    model: Model = compress(start, run.kind, objective, section, run, **given)
    disband(run)
    before = objective.teacher if source is teacher else source
    chance.check(network_of(model), before, splits.validation, run, accepted=section.accept_chance, accept=accept)
    return model


def is_coded(model: Model) -> bool:
    """Whether its weights are integers or codes, which no further method can take."""
    return bool(model.activations) or any(isinstance(part, Coded | Int8) for part in model.tensors.values())
