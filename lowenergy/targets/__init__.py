"""What is compressed. One module per target says how its teacher is trained and what compressed ones must match.

Each module has

    train(splits, p, run) -> Network                     the teacher
    objective(teacher, splits, p, run) -> Objective      probes, and the loss of finetuning and distillation
"""

from importlib import import_module
from types import ModuleType


def get(target: str) -> ModuleType:
    # By name, so that a stage of one target does not depend on the code of the others.
    return import_module(f"lowenergy.targets.{target}")
