"""What is compressed: one package per kind, with how its teacher is trained and what compressed models must match.

Each package has

    train(splits, p, run, given=None) -> Network         the teacher; given: its module, instead of its name
    objective(teacher, splits, p, run) -> Objective      probes, and the loss of finetuning and distillation
"""

from importlib import import_module
from types import ModuleType


def get(target: str) -> ModuleType:
    # By name, so that a stage of one target does not depend on the code of the others.
    return import_module(f"lowenergy.targets.{target}")
