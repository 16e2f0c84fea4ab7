"""Make a model smaller by any method: what stages and calls have in common."""

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
        source: `start` as it was, or `teacher` where they are the same: the result must not answer like chance where
            this does not.
        section: the method's parameters; of_kind: those of the teacher's kind, which is run.kind.
        provenance: put into run.provenance before the method adds to it: a method with a budget of bytes has to know
            all that goes into the file.
        accept: see chance.check.
        given: further arguments for the method, beside its parameters: a student that is given as a module.
    Raises:
        UserError: the method cannot compress it, or its result answers like chance where `source` does not.
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
    """True if the model's weights are integers or codes, which no further method can take."""
    return bool(model.activations) or any(isinstance(part, Coded | Int8) for part in model.tensors.values())
